"""The command `digits`: uses the model, runs recipes, and looks at what a pipeline starts from."""

import argparse
import os
import sys
from pathlib import Path

import splice.errors
from digits.errors import ParameterError
from digits.paths import ROOT, Paths
from splice.command_line import commands_of

EXAMPLES = {  # the arguments of one for each command's help
    "predict": "seven.png scan.jpg",
    "check": "",
    "data": "",
    "recipe": "fast",
}


def main() -> None:
    """Parse the command line and run a command."""
    arguments = _parser().parse_args()
    splice.errors.run(f"digits {arguments.command}", lambda: arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="digits", description="Uses and makes the model.")
    add = commands_of(parser, EXAMPLES)
    predict = add("predict", help="what the model takes pictures of digits for")
    predict.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="files")
    predict.add_argument("--model", type=Path, metavar="FILE", help="instead of models/'s")
    predict.set_defaults(run=_predict)
    check = add("check", help="whether params.yaml says what it may")
    check.set_defaults(run=_check)
    data = add("data", help="of which data set the results are, if not as asked")
    data.set_defaults(run=_data)
    recipe = add("recipe", help="run the pipeline as one of recipes/ says")
    recipe.add_argument("name", metavar="NAME", help="of a file in recipes/")
    recipe.set_defaults(run=_recipe)
    return parser


def _recipe(arguments: argparse.Namespace) -> None:
    """Hand over to DVC: an experiment in a folder of its own."""
    from digits.params import overrides

    known = {path.stem: path for path in sorted((ROOT / "recipes").glob("*.yaml"))}
    name = arguments.name
    if name not in known:
        raise ParameterError(f"there is no recipe {name!r}; there is {', '.join(known)}")
    changes = [f"--set-param={change}" for change in overrides(known[name], Paths(ROOT).params)]
    dvc = [sys.executable, "-m", "dvc", "--cd", str(ROOT)]
    os.execv(sys.executable, [*dvc, "exp", "run", "--temp", "--name", name, *changes])  # noqa: S606


def _predict(arguments: argparse.Namespace) -> None:
    from digits.predict import predict

    model = arguments.model or Paths(ROOT).model
    for path, found in zip(arguments.pictures, predict(model, arguments.pictures), strict=True):
        print(f"{path}: {found.name} ({found.probability:.1%})")


def _check(_arguments: argparse.Namespace) -> None:
    from digits.data import catalog
    from digits.params import load

    path = Paths(ROOT).params
    catalog.check_name(load(path).download.dataset, path)


def _data(_arguments: argparse.Namespace) -> None:
    from digits.data import description
    from digits.params import load

    paths = Paths(ROOT)
    if not paths.raw.exists():
        return
    here, asked = description.read(paths.raw).name, load(paths.params).download.dataset
    if here != asked:
        print(
            f"digits data: all this is of {here}, taken when {asked} could not be had; to switch, "
            "with a network or DATA_MIRROR: `dvc repro --force --single-item download`, "
            "then `make repro`"
        )


if __name__ == "__main__":
    main()
