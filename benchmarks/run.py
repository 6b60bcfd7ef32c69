"""The benchmark: every figure a ratio of two things measured in this one run.

python benchmarks/run.py            writes benchmarks/RESULTS.md
python benchmarks/run.py --quick    fewer repetitions; prints, and writes nothing
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

import baselines
import folder
import mnist
import serving
from accuracy import measure
from digits.training.device import prepare
from digits.training.engine import for_answers, for_training
from digits.training.loop import Images, Step, new_net, train
from splice import outbox

HERE = Path(__file__).resolve().parent
FOUR_STAGES: dict[str, object] = {
    f"stage{n}": {"cmd": f"cat {n} > {n + 1}", "deps": [f"{n}"], "outs": [f"{n + 1}"]}
    for n in range(4)
}


@dataclass(frozen=True)
class Figure:
    """One row of the table: a value, the bar it is held to, and what it was made of."""

    name: str
    value: float
    bar: float
    made_of: str
    higher_is_better: bool = False

    @property
    def met(self) -> bool:
        """Whether the bar is met."""
        return self.value >= self.bar if self.higher_is_better else self.value <= self.bar


def epoch(rounds: int, images: int = 60_000) -> list[Figure]:
    """An epoch of the original recipe, ours beside the DataLoader loop; and the matrix rate."""
    params = mnist.params(mnist.recipe("original"))
    whole = mnist.read(0).train
    data = Images(whole.images[:images], whole.labels[:images])
    machine = prepare(params.train)
    ours, theirs, curves = [], [], []
    for number in range(rounds):
        torch.set_num_threads(machine.threads)
        seconds, their_losses = baselines.dataloader_epoch(data, number + 1)
        theirs.append(seconds)
        recipe = replace(params.train, seed=number + 1)
        net = new_net(recipe.seed, 10, (1, 28, 28), 0.1307, 0.3081)
        began = time.perf_counter()
        engine = for_training(net, *data, recipe, machine)
        none = Images(data.images[:0], data.labels[:0])
        events = train(net, data, none, recipe, machine, engine)
        steps = [event.loss for event in events if isinstance(event, Step)]
        ours.append(time.perf_counter() - began)
        curves.append((steps, their_losses))
    torch.set_num_threads(machine.threads)
    rate = baselines.matrix_rate(machine.precision)
    reached = baselines.flop_an_image() * len(data.labels) / min(ours)
    apart = max(abs(a - b) for a, b in zip(*curves[0], strict=True))
    return [
        Figure(
            "epoch of the original recipe / DataLoader loop",
            statistics.median(ours) / statistics.median(theirs),
            0.30,
            f"{_seconds(ours)} / {_seconds(theirs)}; losses at most {apart:.2f} apart",
        ),
        Figure(
            f"of the machine's {str(machine.precision).removeprefix('torch.')} matrix rate",
            reached / rate,
            0.45,
            f"{reached / 1e9:.0f} of {rate / 1e9:.0f} GFLOP/s, batch {params.train.batch_size}",
            higher_is_better=True,
        ),
    ]


def time_to_99(seeds: int) -> list[Figure]:
    """Training seconds to 99 %, this Net beside the record recipe's."""
    overrides = mnist.recipe("fast")
    params = mnist.params(overrides)
    data = mnist.read(0)
    ours, theirs = [], []
    for seed in range(1, seeds + 1):
        ours.append(measure(params, data, seed)[1:])
        torch.set_num_threads(prepare(params.train).threads)
        theirs.append(baselines.record(data, seed))
    accuracy = statistics.mean(row[0] for row in ours)
    return [
        Figure(
            "time to 99.0 % / record recipe",
            statistics.median(row[1] for row in ours) / statistics.median(row[0] for row in theirs),
            0.60,
            f"{_seconds([row[1] for row in ours])} for {accuracy:.2%} / "
            f"{_seconds([row[0] for row in theirs])} for "
            f"{statistics.mean(row[1] for row in theirs):.2%}, mean of {seeds} seeds",
        )
    ]


def evaluation() -> list[Figure]:
    """Seconds to evaluate 10,000 images, imports apart."""
    params = mnist.params()
    data = mnist.read(0)
    machine = prepare(params.train)
    torch.set_num_threads(machine.threads)
    net = new_net(1, 10, (1, 28, 28), 0.13, 0.31)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        engine = for_answers(net, data.test.images)
        engine.log_probabilities(net, data.test.images, params.evaluate.batch_size)
        times.append(time.perf_counter() - began)
    return [Figure("evaluation of 10,000 images (s)", times[0], 1.0, f"first {times[0]:.2f} s")]


def probe(rounds: int = 9) -> list[Figure]:
    """Seconds until the kernels have proved that they compute the Net, once they are loaded."""
    params, data = mnist.params(), mnist.read(0)
    machine = prepare(params.train)
    net = new_net(1, 10, (1, 28, 28), 0.1307, 0.3081)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        engine = for_training(net, *data.train, params.train, machine)
        times.append(time.perf_counter() - began)
    made_of = f"{engine.name}; first {times[0]:.2f} s, then median of {rounds - 1}"
    return [Figure("probe of the kernels (s)", statistics.median(times[1:]), 0.1, made_of)]


def pipelines(rounds: int, with_untracked: bool = True) -> list[Figure]:
    """Whole pipelines from nothing: ours, tracked and untracked, beside the one by the docs."""
    docs, tracked, untracked = [], [], []
    for _ in range(rounds):
        docs.append(_by_the_docs())
        tracked.append(_ours(tracking=True))
        if with_untracked:
            untracked.append(_ours(tracking=False))
    ours_total = [total for total, _ in tracked]
    docs_total = [total for total, _ in docs]
    ours_rest = [total - training for total, training in tracked]
    docs_rest = [total - parts["training_loop"] for total, parts in docs]
    figures = [
        Figure(
            "whole pipeline, default recipe / by the docs, original recipe",
            statistics.median(ours_total) / statistics.median(docs_total),
            0.50,
            f"{_seconds(ours_total)} / {_seconds(docs_total)}",
        ),
        Figure(
            "all of that but training / by the docs",
            statistics.median(ours_rest) / statistics.median(docs_rest),
            0.40,
            f"{_seconds(ours_rest)} / {_seconds(docs_rest)}",
        ),
    ]
    if with_untracked:
        off_rest = [total - training for total, training in untracked]
        added = statistics.median(ours_rest) - statistics.median(off_rest)
        theirs = statistics.median(
            parts["setup"] + parts["log_model"] + parts["load_model"] + 2 * parts["import_mlflow"]
            for _, parts in docs
        )
        made_of = f"{added:.1f} s / {theirs:.1f} s (imports, store, model)"
        figures.append(
            Figure("tracking's fixed cost a pipeline / by the docs", added / theirs, 0.40, made_of)
        )
    return figures


def tracking_in_the_loop(pairs: int) -> list[Figure]:
    """The training of `python src/train.py`, tracked and not: in turns, each from a cold start."""
    times: dict[bool, list[float]] = {True: [], False: []}
    with mnist.project() as ours:
        _prepared(ours, tracking=False)
        for stage in ("download", "preprocess"):
            _run([sys.executable, f"src/{stage}.py"], ours, os.environ)
        params = ours / "params.yaml"
        plain = params.read_text(encoding="utf-8")
        for number in range(2 * pairs):
            tracked = number % 4 in (1, 2)  # off on on off: what drifts meets both alike
            tracking = f"enabled: {str(tracked).lower()}"
            params.write_text(plain.replace("enabled: false", tracking), encoding="utf-8")
            said = _run([sys.executable, "src/train.py"], ours, os.environ)
            times[tracked].append(_training_seconds(said))
            _forget_tracking(ours)
    ratio = statistics.median(times[True]) / statistics.median(times[False])
    made_of = f"{_seconds(times[True])} / {_seconds(times[False])}, {pairs} of each in turns"
    return [Figure("tracking adds to the training loop", ratio, 1.02, made_of)]


def nothing_to_do(rounds: int) -> list[Figure]:
    """`dvc repro` with nothing to do: ours, without stages, and with the least of four stages."""
    with mnist.project() as ours, _dvc_project({}) as empty, _dvc_project(FOUR_STAGES) as least:
        _prepared(ours, tracking=False, dataset="mnist-5k")
        for project in (ours, least):
            _run(["dvc", "repro"], project, os.environ)
        rows = [[_timed(project) for project in (ours, empty, least)] for _ in range(rounds)]
    mine, floor, four = (list(column) for column in zip(*rows, strict=True))
    return [
        Figure(
            "`dvc repro` with nothing to do / DVC's floor",
            statistics.median(mine) / statistics.median(floor),
            1.10,
            f"{_seconds(mine)} / {_seconds(floor)}; four stages of one file each take "
            f"{statistics.median(four) / statistics.median(floor):.2f} of it",
        )
    ]


def preprocess_memory() -> list[Figure]:
    """Peak memory of preprocess over the size of the raw arrays."""
    with mnist.project() as ours:
        _prepared(ours, tracking=False)
        _run([sys.executable, "src/download.py"], ours, os.environ)
        code = (
            "import resource, subprocess, sys\n"
            "subprocess.run([sys.executable, 'src/preprocess.py'], check=True)\n"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        done = _run([sys.executable, "-c", code], ours, os.environ)
    peak = int(done.split()[-1]) * 1024
    raw = 70_000 * (28 * 28 + 1)
    return [
        Figure(
            "peak memory of preprocess / raw arrays",
            peak / raw,
            3.0,
            f"{peak / 1e6:.0f} MB / {raw / 1e6:.0f} MB",
        )
    ]


def own_images(images: int) -> list[Figure]:
    """A folder of JPEGs of 200 x 200 through preprocess, undisturbed and killed at half."""
    with folder.generated(images, side=200, size=28, channels=1) as root:
        folder.measured(root, "download")
        whole = folder.measured(root, "preprocess")
        folder.kill_at_half(root, images)
        rest = folder.measured(root, "preprocess")
    cores = len(os.sched_getaffinity(0))
    return [
        Figure(
            f"preprocess of {images:,} pictures: peak memory (MB)",
            whole.proportional,
            500.0,
            f"shares of all its processes; their resident pages {whole.resident:.0f} MB",
        ),
        Figure(
            f"… cores in use or waited for, of {cores}",
            whole.cores,
            0.8 * cores,
            f"{whole.seconds:.0f} s, {whole.cpu:.0f} s of processors: "
            f"{1000 * whole.cpu / images:.2f} ms a picture",
            higher_is_better=True,
        ),
        Figure(
            "… going on after a kill at half / undisturbed",
            rest.cpu / whole.cpu,
            0.60,
            f"{rest.cpu:.0f} s / {whole.cpu:.0f} s of processors",
        ),
    ]


def served(seconds: float) -> list[Figure]:
    """`digits serve` under load, and onnxruntime, with the model of a short pipeline."""
    with mnist.project() as ours:
        _prepared(ours, tracking=True, dataset="mnist-5k")
        _run(["dvc", "repro"], ours, os.environ)
        held = serving.measure(ours, seconds)
    full, plain = (
        "; ".join(f"{images} images a request: {load}" for images, load in loads.items())
        for loads in (held.full, held.plain)
    )
    return [
        Figure(
            f"p99 of one image, {serving.RATE} requests a second (ms)",
            held.steady.p99,
            15,
            f"{held.steady}; as many as are answered: {full}; plain torch in a loop: {plain}",
        ),
        Figure("onnxruntime, one image (ms)", held.onnx.p50, 1, str(held.onnx)),
    ]


def _by_the_docs() -> tuple[float, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder, _mirror() as address:
        project = Path(folder, "project")
        shutil.copytree(HERE / "by_the_docs", project)
        _git(project)
        timings = Path(folder, "timings.json")
        environment = {**os.environ, "DATA_MIRROR": address, "TIMINGS": str(timings)}
        environment.pop("MLFLOW_TRACKING_URI", None)
        began = time.perf_counter()
        _run(["dvc", "repro"], project, environment)
        total = time.perf_counter() - began
        stages = {entry["stage"]: entry for entry in json.loads(timings.read_text())}
    began = time.perf_counter()
    _run([sys.executable, "-c", "import mlflow"], HERE, os.environ)
    imports = time.perf_counter() - began
    return total, {
        **{name: stages["train"][name] for name in ("training_loop", "setup", "log_model")},
        "load_model": stages["evaluate"]["load_model"],
        "import_mlflow": imports,
    }


def _ours(tracking: bool) -> tuple[float, float]:
    with mnist.project() as project:
        _prepared(project, tracking)
        began = time.perf_counter()
        said = _run(["dvc", "repro"], project, os.environ)
        total = time.perf_counter() - began
    assert not tracking or "everything is delivered to MLflow" in said, said
    return total, _training_seconds(said)


def _training_seconds(said: str) -> float:
    found = re.search(r"trained in ([\d.]+) s", said)
    assert found, said
    return float(found.group(1))


def _forget_tracking(project: Path) -> None:
    """End the sender and remove all that tracking left."""
    folder = project / ".digits" / "outbox"
    doing = outbox.sender(folder)
    if doing is not None and outbox.is_locked(folder / ".sender.lock"):  # so it lives, and is it
        with suppress(ProcessLookupError):
            os.kill(doing.pid, signal.SIGKILL)
    for left in (".digits", "mlflow.db", "mlartifacts"):
        path = project / left
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def _dvc_project(stages: dict[str, object]) -> Iterator[Path]:
    """A project of DVC's alone, set up as ours is."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "0").write_text("x")
        (project / "dvc.yaml").write_text(json.dumps({"stages": stages}))  # JSON is YAML
        _git(project)
        shutil.copy(mnist.ROOT / ".dvc" / "config", project / ".dvc" / "config")
        yield project


def _prepared(project: Path, tracking: bool, dataset: str = "mnist") -> None:
    params = project / "params.yaml"
    text = params.read_text(encoding="utf-8")
    text = text.replace("enabled: true", f"enabled: {str(tracking).lower()}")
    params.write_text(text.replace("dataset: mnist ", f"dataset: {dataset} "), encoding="utf-8")
    _git(project)


def _git(folder: Path) -> None:
    identity = ["-c", "user.name=b", "-c", "user.email=b@localhost"]
    _run(["git", "init", "--quiet"], folder, os.environ)
    if not (folder / ".dvc").exists():
        _run(["dvc", "init", "--quiet"], folder, os.environ)
    _run(["git", "add", "--all"], folder, os.environ)
    _run(["git", *identity, "commit", "--quiet", "-m", "start"], folder, os.environ)


def _timed(folder: Path) -> float:
    began = time.perf_counter()
    _run(["dvc", "repro"], folder, os.environ)
    return time.perf_counter() - began


def _run(command: list[str], folder: Path, environment: "os._Environ[str] | dict[str, str]") -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    mirror = {"DATA_MIRROR": str(mnist.folder())}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**mirror, **environment, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}")
    return done.stdout


@contextmanager
def _mirror() -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        """Serves files and says nothing."""

        def log_message(self, *_: object) -> None:
            pass

    handler = partial(Quiet, directory=str(mnist.folder()))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a reader that hangs up
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


def _seconds(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} s"


def _table(figures: list[Figure]) -> str:
    rows = ["| figure | measured | bar | | made of |", "|---|---|---|---|---|"]
    for figure in figures:
        sign = "≥" if figure.higher_is_better else "≤"
        met = "met" if figure.met else "**missed**"
        rows.append(
            f"| {figure.name} | {figure.value:.2f} | {sign} {figure.bar:g} | {met} | "
            f"{figure.made_of} |"
        )
    return "\n".join(rows) + "\n"


def _machine() -> str:
    described = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"model name\s*: (.*)", described)
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, {model.group(1) if model else 'unknown'}, torch {torch.__version__}"


WHOLE: tuple[Callable[[], list[Figure]], ...] = (
    partial(epoch, 3),
    partial(time_to_99, 5),
    evaluation,
    probe,
    partial(pipelines, 2),
    partial(tracking_in_the_loop, 3),
    partial(nothing_to_do, 7),
    preprocess_memory,
    partial(own_images, 100_000),
    partial(served, 10),
)
QUICK: tuple[Callable[[], list[Figure]], ...] = (  # in three minutes tracking can't be told apart
    partial(epoch, 1, images=12_000),
    partial(time_to_99, 1),
    evaluation,
    probe,
    partial(pipelines, 1, with_untracked=False),
    partial(nothing_to_do, 3),
    preprocess_memory,
    partial(own_images, 20_000),
    partial(served, 3),
)


def main() -> None:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    began = time.perf_counter()
    figures: list[Figure] = []
    for part in QUICK if quick else WHOLE:
        found = part()
        figures += found
        print(_table(found).split("\n", 2)[2], end="", flush=True)
    minutes = (time.perf_counter() - began) / 60
    load = os.getloadavg()[0]
    print(f"\n{_machine()}; {minutes:.1f} minutes, load {load:.1f}")
    if not quick:
        (HERE / "RESULTS.md").write_text(
            "# Benchmark\n\n`make bench` writes this page. Each figure is a ratio of two things "
            f"measured in the same run (median).\n\n{_machine()}; {minutes:.0f} minutes.\n\n"
            f"{_table(figures)}",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
