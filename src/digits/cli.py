"""The command `digits`: uses the model, runs recipes, and looks at what a pipeline starts from."""

import argparse
import itertools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import splice.errors
from digits.errors import DataError, ParameterError, UserError, did_you_mean
from digits.paths import ROOT, Paths
from splice.command_line import Parser, commands_of, counted

EXAMPLES = {  # the arguments of one for each command's help
    "predict": "seven.png scan.jpg",
    "serve": "--port 5005",
    "draw": "--port 7860",
    "export": "--onnx digits.onnx",
    "check": "",
    "next": "",
    "recipe": "fast",
    "sweep": "sweeps/lr.yaml",
    "report": "main my-experiment --out comparison.html",
}

BLANK = "nothing on it"

if TYPE_CHECKING:
    from digits.predict import Guess


def main() -> None:
    """Parse the command line and run a command."""
    arguments = _parser().parse_args()
    splice.errors.run(f"digits {arguments.command}", lambda: arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="digits", description="Uses and makes the model.")
    add = commands_of(parser, EXAMPLES)
    predict = add("predict", _predict, help="what the model takes pictures for")
    predict.add_argument(
        "pictures", nargs="+", type=Path, metavar="PICTURE", help="files, and folders of them"
    )
    _add_from(predict, "which model; by default that of models/", str(Paths(ROOT).model))
    predict.add_argument(
        "--sure",
        type=float,
        default=0.5,
        metavar="P",
        help="what is less probable is not known; 0 to 1, by default %(default)s",
    )
    form = predict.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a line of JSON for each picture")
    form.add_argument("--csv", action="store_true", help="a row for each thing found on a picture")
    serve = add("serve", _serve, help="answer over HTTP, by MLflow's server")
    _add_from(serve, "which model; by default the champion, else the challenger, else models/'s")
    serve.add_argument(
        "--host", default="127.0.0.1", help="to listen on; 127.0.0.1: this machine's"
    )
    serve.add_argument(
        "--port", type=int, default=5001, help="5001, if none is given; 0: a free one"
    )
    export = add("export", _export, help="the model as a file for other programs")
    export.add_argument(
        "--onnx",
        nargs="?",
        const=Paths(ROOT).model.with_suffix(".onnx"),
        required=True,
        type=Path,
        metavar="FILE",
        help="in ONNX's format, to that file, or beside models/'s",
    )
    draw = add(
        "draw", _draw, help="serve a page to draw on, which says what the model takes it for"
    )
    _add_from(draw, "which model; by default that of models/", str(Paths(ROOT).model))
    draw.add_argument("--port", type=int, default=0, help="on 127.0.0.1; by default a free one")
    add("check", _check, help="whether params.yaml says what it may")
    add("next", _next, help="where to look next, and of which data set all is, if not as asked")
    recipe = add("recipe", _recipe, help="run the pipeline as one of recipes/ says")
    recipe.add_argument("name", metavar="NAME", help="of a file in recipes/")
    sweep = add(
        "sweep", _sweep, help="search parameters by Optuna; apply: write the best to params.yaml"
    )
    sweep.add_argument("what", nargs="?", choices=["apply"], help="write the best to params.yaml")
    sweep.add_argument("file", type=Path, metavar="FILE", help="of sweeps/")
    sweep.add_argument(
        "--workers", type=int, metavar="N", help="on this machine, instead of those in the file"
    )
    report = add("report", _report, help="one HTML page of a result, or of several side by side")
    report.add_argument(
        "results",
        nargs="*",
        metavar="REV|RUN",
        help="as of `splice compare`; none: the workspace",
    )
    report.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE", help="default: %(default)s"
    )
    return parser


def _add_from(command: argparse.ArgumentParser, what: str, default: str | None = None) -> None:
    command.add_argument(
        "--from",
        dest="model",
        default=default,
        metavar="WHAT",
        help=f"{what}. A file; or champion, challenger, a version's number, a run's id or name, "
        "the hash of a model file",
    )


def _recipe(arguments: argparse.Namespace) -> None:
    """Hand over to DVC: an experiment in a folder of its own."""
    from digits.params import overrides

    known = {path.stem: path for path in sorted((ROOT / "recipes").glob("*.yaml"))}
    name = arguments.name
    if name not in known:
        cure = did_you_mean(name, known, f"there is {', '.join(known)}")
        raise ParameterError(f"there is no recipe {name!r}; {cure}")
    changes = [f"--set-param={change}" for change in overrides(known[name], Paths(ROOT).params)]
    dvc = [sys.executable, "-m", "dvc", "--cd", str(ROOT)]
    free = _free_name(name)
    if free != name:
        print(f"digits recipe: there is an experiment {name} already; this one is {free}")
    sys.stdout.flush()
    os.execv(sys.executable, [*dvc, "exp", "run", "--temp", "--name", free, *changes])  # noqa: S606


def _sweep(arguments: argparse.Namespace) -> None:
    try:
        from digits.sweep import command
    except ModuleNotFoundError as error:
        raise UserError(f"there is no package {error.name}; `make setup` installs it") from error
    if arguments.what == "apply":
        command.apply(arguments.file)
    else:
        command.sweep(arguments.file, arguments.workers)


def _free_name(name: str) -> str:
    """A name that no experiment has: DVC takes each once, and earlier results are to stay."""
    from splice.provenance import history

    taken = {each.experiment for each in history(ROOT, "", experiments_only=True)}
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(free for free in names if free not in taken)


def _predict(arguments: argparse.Namespace) -> None:
    import csv
    import json

    from digits.predict import Guess, files, predict
    from digits.source import of

    sure = arguments.sure
    if not 0 <= sure <= 1:
        raise ParameterError(f"--sure is {sure:g}, which is no probability; give one from 0 to 1")
    pictures = files(arguments.pictures)
    table = csv.DictWriter(sys.stdout, ("picture", "place", *Guess._fields, "known", "note"))
    if arguments.csv:
        table.writeheader()
    unreadable = 0
    answers = predict(of(arguments.model), pictures)
    if not sys.stdout.isatty():  # where answers are progress enough
        answers = counted(answers, len(pictures), "digits predict", "pictures")
    for path, guesses, error in answers:
        found = [{**guess._asdict(), "known": guess.probability >= sure} for guess in guesses]
        if error:
            unreadable += 1
            print(f"digits predict: {error}", file=sys.stderr)
        if arguments.json:
            print(json.dumps({"picture": str(path), "found": found, "error": error}))
        elif arguments.csv:
            rows = [{"place": at, **each} for at, each in enumerate(found, 1)]
            table.writerows({"picture": path, **row} for row in rows or [{"note": error or BLANK}])
        elif not error:
            print(f"{path}: {_in_words(guesses, sure)}")
    if unreadable:
        raise DataError(f"{unreadable:,} of {len(pictures):,} pictures could not be read")


def _serve(arguments: argparse.Namespace) -> None:
    from digits.serve import serve

    serve(arguments.host, arguments.port, arguments.model)


def _export(arguments: argparse.Namespace) -> None:
    import torch

    from digits.data import dataset
    from digits.model.weights import load_net

    try:
        from digits.model import onnx
    except ModuleNotFoundError as error:
        raise UserError(f"there is no package {error.name}; `make setup` installs it") from error
    paths = Paths(ROOT)
    net, description = load_net(paths.model)
    images = torch.from_numpy(dataset.read(paths.split("test")).images)
    apart = onnx.export(net, description, images, arguments.onnx)
    print(f"{arguments.onnx}: answers to {len(images):,} test images within {apart:.1g} of torch's")


def _draw(arguments: argparse.Namespace) -> None:
    from digits import source
    from digits.draw import serve

    serve(source.of(arguments.model), arguments.port)


def _in_words(guesses: "list[Guess]", sure: float) -> str:
    if not guesses:
        return BLANK
    names, shares, others, other_shares = zip(*guesses, strict=True)
    first, second = (", ".join(f"{one:.1%}" for one in of) for of in (shares, other_shares))
    text = f"{''.join(names)} ({first}), else {''.join(others)} ({second})"
    return text if min(shares) >= sure else f"not known: {text}"


def _report(arguments: argparse.Namespace) -> None:
    from digits import page
    from splice import Config
    from splice.compare import WORKSPACE  # slow

    page.write(Config.read(ROOT), arguments.results or [WORKSPACE], arguments.out)
    print(arguments.out.resolve().as_uri())


def _check(_arguments: argparse.Namespace) -> None:
    from digits.data import catalog
    from digits.params import load

    path = Paths(ROOT).params
    catalog.check_name(load(path).download.dataset, path)


def _next(_arguments: argparse.Namespace) -> None:
    from digits.data import description
    from digits.params import load
    from splice import Config

    paths = Paths(ROOT)
    if paths.model.exists():
        if Config.read(ROOT).tracking.enabled:
            print("make ui                           its run beside all others, in MLflow")
        print("make report                       one page of its numbers, curves and mistakes")
        print(".venv/bin/digits predict PICTURE  what it takes a picture for")
    if not paths.raw.exists():
        return
    here, asked = description.read(paths.raw).name, load(paths.params).download.dataset
    if here != asked:
        print(
            f"digits next: all this is of {here}, taken when {asked} could not be had; to switch, "
            "with a network or DATA_MIRROR: `dvc repro --force --single-item download`, "
            "then `make repro`"
        )


if __name__ == "__main__":
    main()
