"""Stage `train`: training and validation splits into weights, their history and an MLflow run."""

from digits import stage

if __name__ == "__main__":
    stage.begin()

import time
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from digits.data import dataset
from digits.data.dataset import PixelFacts, Split
from digits.errors import DataError, ParameterError, Stopped
from digits.model import weights
from digits.params import Params
from digits.paths import Paths, State
from digits.training.checkpoint import Checkpoint
from digits.training.device import Machine, prepare, processes
from digits.training.engine import Engine, for_training
from digits.training.group import Group
from digits.training.history import History, epoch_metrics, step_metrics
from digits.training.loop import Epoch, Images, Kept, Snapshot, Step, new_net, train
from digits.training.progress import Speed, announce, bar
from splice import Join
from splice.files import digest, md5

LARGEST_GROUP = 1024  # processes, of which some may leave


def main(params: Params, paths: Paths, state: State, join: Join) -> None:
    """Train as params.yaml says, from where an interrupted training left off.

    Raises:
        UserError: bad data, a device that isn't there, divergence, a full disk.
    """
    count = processes(params.train)
    if count > 1 and not stage.IS_MEMBER:
        from digits.training.launch import train_together  # which one process doesn't need

        train_together(Path(__file__), count)
        return
    machine = prepare(params.train, Group.found())
    with machine.group.joined(machine.device):
        _train(params, paths, state, join, machine)


def _train(params: Params, paths: Paths, state: State, join: Join, machine: Machine) -> None:
    """One process's part; the first one's includes all that is written."""
    recipe, group = params.train, machine.group
    splits = {name: dataset.read(paths.split(name)) for name in ("train", "validation")}
    hashes = {name: md5(paths.split(name)) for name in splits}
    training = splits["train"]
    _refuse_what_gives_no_training(params, paths, splits)
    _refuse_another_training(group, _description(params, splits, hashes))

    net = new_net(
        recipe.seed, len(training.facts.classes), training.shape, *_pixels(training, paths)
    ).to(machine.device)
    images = {name: _on(machine, split) for name, split in splits.items()}
    engine = for_training(net, *images["train"], recipe, machine)
    every = params.checkpoint.every_steps
    both = images["train"], images["validation"]
    events = partial(train, net, *both, recipe, machine, engine, every)
    if group.rank:
        for _ in events(_from_first(group, None)):
            pass
        return
    stage.say("train", f"computed by {engine.name} on {machine.description}: {engine.why}")

    identity, saved = _begun(_identity(params, hashes, machine, engine), state, group)
    saved.forget_if_recorded(paths.lock)
    with join.training(
        identity,
        params=params.of_weights(),
        data={name: dataset.data(name, split, hashes[name]) for name, split in splits.items()},
        tags=_tags(params, machine, engine, training),
    ) as run:
        history, resume = _resumed(saved, group)
        speed, began = Speed(), time.perf_counter()
        with bar(recipe.epochs * len(training)) as show:
            for event in events(_from_first(group, resume)):
                match event:
                    case Step():
                        history.steps.append(list(event))
                        run.points(step_metrics(event) + speed.metrics(event))
                        show(event.samples, f"loss {event.loss:.4f}")
                    case Epoch():
                        history.epochs.append(list(event))
                        run.points(epoch_metrics(event))
                        announce(event, recipe.epochs)
                        _report(event, saved)
                    case Snapshot():
                        run.sync()
                        saved.write(event.tensors, asdict(history))
                        stage.stop_if_orphaned()
                    case Kept():
                        kept = event
        stage.say("train", f"trained in {time.perf_counter() - began:.2f} s")
        doubt = _doubt(history, splits["validation"], recipe.keep)
        if doubt:
            stage.say("train", f"WARNING: {doubt}")

        weights.save(paths.model, net.state_dict(), _description(params, splits, hashes))
        history.write(paths)
        run.model(
            training.images[:2].tolist(),
            {"history/steps.csv": paths.steps, "history/epochs.csv": paths.epochs},
            {
                "processes": ", then ".join(map(str, history.processes)),
                **({"warning": doubt} if doubt else {}),
            },
            kept.step,
        )
    if stage.runs_in_dvc():
        saved.finish(md5(paths.model))
    else:
        saved.remove()


def _report(epoch: Epoch, saved: Checkpoint) -> None:
    try:
        stage.report(epoch._asdict())
    except Stopped:
        saved.remove()
        raise


def _refuse_what_gives_no_training(params: Params, paths: Paths, splits: dict[str, Split]) -> None:
    if params.train.keep == "best" and not len(splits["validation"]):
        raise ParameterError(
            f"train.keep in {paths.params} is 'best', which needs validation images; "
            "set preprocess.validation above 0, or train.keep to last"
        )
    if not len(splits["train"]):
        raise DataError(f"{paths.split('train')} holds no images; run `dvc repro` again")


def _refuse_another_training(group: Group, made_of: dict[str, Any]) -> None:
    own = digest([made_of, str(torch.__version__)]).encode()
    if group.first(own) != own:
        raise DataError(
            f"process {group.rank} of {group.size} has other parameters, data, Net or torch than "
            "the first one; bring the same commit, data and packages to its machine"
        )


def _from_first(group: Group, tensors: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """The tensors that the first process goes on from, in every process."""
    if group.is_alone:
        return tensors
    sent = group.first(safetensors.torch.save(tensors) if tensors else b"")
    return safetensors.torch.load(sent) if sent else None


def _pixels(training: Split, paths: Paths) -> tuple[float, float]:
    if isinstance(training.facts, PixelFacts):
        return training.facts.mean, training.facts.std
    raise DataError(f"{paths.split('train')} has no pixel statistics; run `dvc repro` again")


def _on(machine: Machine, split: Split) -> Images:
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    return Images(images, labels.long()).to(machine.device)


def _identity(
    params: Params, hashes: dict[str, str], machine: Machine, engine: Engine
) -> dict[str, Any]:
    """All that decides a training's result."""
    return {
        "params": params.of_weights(),
        "processes": machine.group.size,
        "data": hashes,
        "code": stage.code(),
        "torch": str(torch.__version__),
        "engine": engine.name,
        "machine": [str(part) for part in machine[:-1]] if engine.name != "compiled" else [],
    }


def _description(
    params: Params, splits: dict[str, Split], hashes: dict[str, str]
) -> dict[str, Any]:
    """What the model file says of itself: what it was made from, and nothing of when or where."""
    return {
        "net": weights.code_digest(),
        "classes": list(splits["train"].facts.classes),
        "shape": list(splits["train"].shape),
        "dataset": splits["train"].facts.dataset,
        "data": hashes,
        "images": {name: len(split) for name, split in splits.items()},
        "params": params.of_weights(),
    }


def _tags(params: Params, machine: Machine, engine: Engine, training: Split) -> dict[str, str]:
    """What a run says of its machine from its first moment."""
    return {
        "dataset": training.facts.dataset,
        "device": machine.description,
        "precision": str(machine.precision).removeprefix("torch."),
        "engine": engine.name,
        "engine.why": engine.why,
        "processes": str(machine.group.size),
        "threads": str(machine.threads),
        "deterministic": str(params.train.deterministic).lower(),
    }


def _doubt(history: History, validation: Split, keep: str) -> str:
    """What speaks against a training that came to its end; empty if nothing does."""
    accuracy = history.kept(keep)["validation_accuracy"]
    if accuracy is None:
        return ""
    commonest = np.bincount(validation.labels).max() / len(validation)
    if accuracy > commonest or commonest == 1:
        return ""
    return (
        f"validation accuracy {accuracy:.2%} is no better than always answering the commonest "
        f"class ({commonest:.2%}); the training diverged or learned nothing: "
        "try a lower train.learning_rate"
    )


def _begun(
    identity: dict[str, Any], state: State, group: Group
) -> tuple[dict[str, Any], Checkpoint]:
    """The training to go on with, and its checkpoint.

    It is the one that more processes began, if torchrun started these in their stead.
    """
    for size in range(group.size, LARGEST_GROUP + 1) if group.job else ():
        begun = identity | {"processes": size}
        saved = Checkpoint.of(state.checkpoints, digest(begun))
        if saved.file.exists() and (size == group.size or _job(saved) == group.job):
            return begun, saved
    return identity, Checkpoint.of(state.checkpoints, digest(identity))


def _job(saved: Checkpoint) -> str:
    with suppress(DataError):
        if found := saved.read():
            return History(**found[1]).job
    return ""


def _resumed(saved: Checkpoint, group: Group) -> tuple[History, dict[str, torch.Tensor] | None]:
    try:
        found = saved.read()
    except DataError as error:
        stage.say("train", f"{error}; starting from the beginning")
        found = None
    if found is None:
        return History(processes=[group.size], job=group.job), None
    tensors, history = found[0], History(**{**found[1], "job": group.job})
    stage.say("train", f"going on after step {int(tensors['step']):,}")
    if history.processes[-1] != group.size:
        stage.say("train", f"processes: {group.size} instead of {history.processes[-1]}")
        history.processes.append(group.size)
    return history, tensors


if __name__ == "__main__":
    stage.run("train", main)
