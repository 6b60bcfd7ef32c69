"""The original recipe's loss curve over several seeds, beside the one once published.

python benchmarks/original_curve.py --seeds 3
"""

import argparse
from dataclasses import replace

import mnist
from digits.training.device import prepare
from digits.training.engine import for_training
from digits.training.loop import Images, Step, new_net, train

PUBLISHED = (
    2.290735, 2.228956, 2.121080, 1.893549, 1.570034,
    1.213198, 0.993993, 0.778737, 0.732925, 0.624502,
)  # fmt: skip


def curve(data: mnist.Data, seed: int) -> tuple[list[float], float]:
    """The losses at 0, 6400, … 57600 samples, and the test accuracy."""
    params = mnist.params(mnist.recipe("original"))
    recipe = replace(params.train, seed=seed)
    mean, std = params.preprocess.mean, params.preprocess.std
    assert mean is not None
    assert std is not None
    machine = prepare(recipe)
    net = new_net(seed, 10, (1, 28, 28), mean, std).to(machine.device)
    training, test = data.train.to(machine.device), data.test.to(machine.device)
    engine = for_training(net, *training, recipe, machine)
    none = Images(training.images[:0], training.labels[:0])
    events = train(net, training, none, recipe, machine, engine)
    losses = [event.loss for event in events if isinstance(event, Step)]
    right = engine.log_probabilities(net, test.images, 500).argmax(1) == test.labels
    return losses, right.double().mean().item()


def main() -> None:
    """Print the curves as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(1, parser.parse_args().seeds + 1)
    data = mnist.read(0)
    curves = [curve(data, seed) for seed in seeds]
    print("| samples | published | " + " | ".join(f"seed {seed}" for seed in seeds) + " |")
    print("|---|---|" + "---|" * len(seeds))
    for i, published in enumerate(PUBLISHED):
        cells = " | ".join(f"{losses[i]:.3f}" for losses, _ in curves)
        print(f"| {6400 * i:,} | {published:.3f} | {cells} |")
    print("| test accuracy | | " + " | ".join(f"{accuracy:.2%}" for _, accuracy in curves) + " |")


if __name__ == "__main__":
    main()
