"""One training from files to files: resumed if it was interrupted, and tracked."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from digits import checkpoints, processed, stage, weights
from digits.errors import DataError, ParameterError
from digits.history import EPOCH_COLUMNS, History, Metric, epoch_metrics, step_metrics
from digits.params import Params
from digits.processed import PixelFacts, Split
from digits.project import Paths, State
from digits.training.device import Machine, prepare
from digits.training.engine import Engine, for_training
from digits.training.loop import Epoch, Event, Images, Snapshot, Step, new_net, train
from splice import Data, Join, Run
from splice.files import digest, md5, write_json


def fit(params: Params, paths: Paths, state: State, join: Join) -> None:
    """Train as params.yaml says and write models/net.safetensors and reports/history.

    Raises:
        UserError: bad data, a device that isn't there, divergence, a full disk.
    """
    splits = _read_splits(params, paths)
    training = splits["train"]
    machine = prepare(params.train)
    data = {name: md5(paths.split(name)) for name in splits}
    net = new_net(
        params.train.seed, len(training.facts.classes), training.shape, *_pixels(training, paths)
    ).to(machine.device)
    images = {name: _on(machine, split) for name, split in splits.items()}
    engine = for_training(net, *images["train"], params.train, machine)
    stage.say("train", f"computed by {engine.name} on {machine.description}: {engine.why}")
    identity = _identity(params, data, machine, engine)
    key = digest(identity)
    file = checkpoints.path(state.checkpoints, key)
    opened = join.training(
        identity,
        params=params.flat("download", "preprocess", "train"),
        data=_data(splits, data),
        tags=_tags(params, machine, engine, training),
    )
    with opened as run:
        history, resume = _resumed(file, key)
        events = train(
            net,
            images["train"],
            images["validation"],
            params.train,
            machine,
            engine,
            params.checkpoint.every_steps,
            resume,
        )

        def save(snapshot: Snapshot) -> None:
            checkpoints.save(file, snapshot.tensors, key, asdict(history))

        _follow(events, history, run, params, len(training), save)
        weights.save(paths.model, net.state_dict(), _description(params, splits, data))
        _write_reports(paths, history)
        files = {"history/steps.csv": paths.steps, "history/epochs.csv": paths.epochs}
        run.model(training.images[:2].tolist(), files)
    file.unlink(missing_ok=True)
    checkpoints.prune(state.checkpoints)


def _read_splits(params: Params, paths: Paths) -> dict[str, Split]:
    splits = {name: processed.read(paths.split(name)) for name in ("train", "validation")}
    training, validation = splits["train"], splits["validation"]
    if params.train.keep == "best" and not len(validation):
        raise ParameterError(
            f"train.keep in {paths.params} is 'best', which needs validation images; "
            "set preprocess.validation above 0, or train.keep to last"
        )
    if not len(training):
        raise DataError(f"{paths.split('train')} holds no images; run `dvc repro` again")
    return splits


def _pixels(training: Split, paths: Paths) -> tuple[float, float]:
    if isinstance(training.facts, PixelFacts):
        return training.facts.mean, training.facts.std
    raise DataError(f"{paths.split('train')} has no pixel statistics; run `dvc repro` again")


def _on(machine: Machine, split: Split) -> Images:
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    return Images(images, labels.long()).to(machine.device)


def _identity(
    params: Params, data: dict[str, str], machine: Machine, engine: Engine
) -> dict[str, Any]:
    return {
        "train": asdict(params.train),
        "data": data,
        "code": checkpoints.code(),
        "torch": str(torch.__version__),
        "engine": engine.name,
        "machine": [str(part) for part in machine] if engine.name == "torch" else [],
    }


def _description(
    params: Params, splits: Mapping[str, Split], data: Mapping[str, str]
) -> dict[str, Any]:
    """What the model file says of itself: what it was made from, and nothing of when or where."""
    return {
        "net": weights.code_digest(),
        "classes": list(splits["train"].facts.classes),
        "shape": list(splits["train"].shape),
        "dataset": splits["train"].facts.dataset,
        "data": dict(data),
        "images": {name: len(split) for name, split in splits.items()},
        "params": params.flat("download", "preprocess", "train"),
    }


def _resumed(file: Path, key: str) -> tuple[History, dict[str, torch.Tensor] | None]:
    try:
        found = checkpoints.load(file, key)
    except DataError as error:
        stage.say("train", f"{error}; starting from the beginning")
        found = None
    if found is None:
        return History(), None
    tensors, history = found
    stage.say("train", f"going on after step {int(tensors['step']):,}")
    return History(**history), tensors


def _follow(
    events: Iterator[Event],
    history: History,
    run: Run,
    params: Params,
    images: int,
    save: Callable[[Snapshot], None],
) -> None:
    speed = _Speed()
    began = time.perf_counter()
    with _bar(params.train.epochs * images) as show:
        for event in events:
            match event:
                case Step():
                    history.steps.append(list(event))
                    points = step_metrics(event) + speed.metrics(event)
                    show(event.samples, f"loss {event.loss:.4f}")
                case Epoch():
                    history.epochs.append(list(event))
                    points = epoch_metrics(event)
                    _announce(event, params.train.epochs)
                case Snapshot():
                    points = []
                    run.sync()
                    save(event)
                    stage.stop_if_orphaned()
            run.points(points)
    seconds = time.perf_counter() - began
    stage.say("train", f"trained in {seconds:.2f} s")


class _Speed:
    """Images per second between two points of the loss curve."""

    def __init__(self) -> None:
        self.last: tuple[int, float] | None = None

    def metrics(self, step: Step) -> list[Metric]:
        now = time.perf_counter()
        last, self.last = self.last, (step.samples, now)
        if last is None:
            return []
        rate = (step.samples - last[0]) / (now - last[1])
        return [("train/images_per_second", rate, step.step)]


def _announce(epoch: Epoch, epochs: int) -> None:
    validation = (
        ""
        if epoch.validation_accuracy is None or epoch.validation_loss is None
        else f"; validation loss {epoch.validation_loss:.4f}, "
        f"accuracy {epoch.validation_accuracy:.2%}"
    )
    stage.say(
        "train",
        f"epoch {epoch.epoch}/{epochs}: loss {epoch.train_loss:.4f}, "
        f"accuracy {epoch.train_accuracy:.2%}{validation}",
    )


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int, str], None]]:
    with tqdm(
        total=total,
        unit=" images",
        unit_scale=True,
        desc="train",
        leave=False,
        disable=not sys.stderr.isatty(),
    ) as bar:

        def show(samples: int, text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update(samples - bar.n)

        yield show


def _write_reports(paths: Paths, history: History) -> None:
    history.write(paths.steps, paths.epochs)
    last = dict(zip(EPOCH_COLUMNS, history.epochs[-1], strict=True))
    report = {
        split: {name: last[f"{split}_{name}"] for name in ("loss", "accuracy")}
        for split in ("train", "validation")
        if last[f"{split}_loss"] is not None
    }
    write_json(paths.reports / "training.json", report)


def _data(splits: Mapping[str, Split], hashes: Mapping[str, str]) -> dict[str, Data]:
    return {
        name: processed.data(name, split.facts.dataset, hashes[name], split.images.shape)
        for name, split in splits.items()
    }


def _tags(params: Params, machine: Machine, engine: Engine, training: Split) -> dict[str, str]:
    """What a run says of its machine from its first moment."""
    return {
        "dataset": training.facts.dataset,
        "device": machine.description,
        "precision": str(machine.precision).removeprefix("torch."),
        "engine": engine.name,
        "engine.why": engine.why,
        "threads": str(machine.threads),
        "deterministic": str(params.train.deterministic).lower(),
    }
