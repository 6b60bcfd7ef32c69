"""One training from files to files: resumed if it was interrupted, and told to the outbox."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm import tqdm

from digits import checkpoints, lineage, processed, stage, weights
from digits.errors import DataError, ParameterError
from digits.files import md5, write_json
from digits.history import EPOCH_COLUMNS, History, Metric, epoch_metrics, step_metrics
from digits.lineage import Commit
from digits.params import Params
from digits.processed import PixelFacts, Split
from digits.project import Paths, State
from digits.tracking import telemetry
from digits.tracking.outbox import Training
from digits.training.device import Machine, prepare
from digits.training.engine import Engine, for_training
from digits.training.loop import Epoch, Event, Images, Snapshot, Step, new_net, train


def fit(params: Params, paths: Paths, state: State) -> None:
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
    key = checkpoints.key(_identity(params, data, machine, engine))
    file = checkpoints.path(state.checkpoints, key)
    at = lineage.commit(paths.root)
    opening = _opening(params, paths, at, machine, engine, splits, data, key)
    with _sources(paths, at) as sources, _journal(params, state, key, opening, sources) as journal:
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

        _follow(events, history, journal, params, len(training), save)
        weights.save(paths.model, net.state_dict(), _description(params, splits, data))
        _write_reports(paths, history)
        if journal is not None:
            example = training.images[:2].tolist()
            files = {"history/steps.csv": paths.steps, "history/epochs.csv": paths.epochs}
            journal.model(paths.model, md5(paths.model), example, files, _note(paths, at, data))
            journal.close("FINISHED")
    file.unlink(missing_ok=True)
    checkpoints.prune(state.checkpoints)


@contextmanager
def _sources(paths: Paths, at: Commit) -> Iterator[dict[str, Path]]:
    """The parameters, and what differs from the commit: files that go with the run."""
    with TemporaryDirectory() as folder:
        found = {"source/params.yaml": paths.params}
        if at.diff:
            found["source/uncommitted.diff"] = Path(folder, "uncommitted.diff")
            found["source/uncommitted.diff"].write_text(at.diff + "\n", encoding="utf-8")
        yield found


def _note(paths: Paths, at: Commit, data: Mapping[str, str]) -> dict[str, str]:
    """The run's description, now that its model is there too."""
    files = {name: (f"data/processed/{name}.safetensors", hash_) for name, hash_ in data.items()}
    files["model"] = ("models/net.safetensors", md5(paths.model))
    return {"mlflow.note.content": lineage.how_to_get(paths.root, at, files)}


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
    journal: Training | None,
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
                    if journal is not None:
                        journal.sync()
                    save(event)
                    stage.stop_if_orphaned()
            if journal is not None:
                journal.points(points)
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


@contextmanager
def _journal(
    params: Params, state: State, key: str, opening: Mapping[str, Any], files: Mapping[str, Path]
) -> Iterator[Training | None]:
    """The training's journal, with the machine's load noted in it as long as it is open."""
    if not params.tracking.enabled:
        yield None
        return
    with Training(state.outbox, key, opening, files) as journal, telemetry.noted(journal):
        yield journal


def _opening(
    params: Params,
    paths: Paths,
    at: Commit,
    machine: Machine,
    engine: Engine,
    splits: Mapping[str, Split],
    data: Mapping[str, str],
    key: str,
) -> dict[str, Any]:
    """What a run says of itself from its first moment."""
    files = {name: (f"data/processed/{name}.safetensors", md5) for name, md5 in data.items()}
    tags = {
        **lineage.tags(paths.root, at),
        "dataset": splits["train"].facts.dataset,
        "device": machine.description,
        "precision": str(machine.precision).removeprefix("torch."),
        "engine": engine.name,
        "engine.why": engine.why,
        "threads": str(machine.threads),
        "deterministic": str(params.train.deterministic).lower(),
        "mlflow.note.content": lineage.how_to_get(paths.root, at, files),
        **{f"dvc.data.{name}": md5 for name, md5 in data.items()},
    }
    datasets = {
        name: {
            "name": f"{split.facts.dataset}-{name}",
            "digest": data[name],
            "path": files[name][0],
            "shape": list(split.images.shape),
        }
        for name, split in splits.items()
        if len(split)
    }
    sections = ("download", "preprocess", "train")
    return {
        "experiment": params.tracking.experiment,
        "name": lineage.run_name(key),
        "params": params.flat(*sections),
        "tags": tags,
        "datasets": datasets,
    }
