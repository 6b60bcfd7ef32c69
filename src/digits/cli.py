"""The command `digits`: uses the model."""

import argparse
from pathlib import Path

import splice.errors
from digits.paths import ROOT, Paths


def main() -> None:
    """Parse the command line and run a command."""
    arguments = _parser().parse_args()
    splice.errors.run(f"digits {arguments.command}", lambda: arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="digits", description="Uses the pipeline's model.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    predict = commands.add_parser("predict", help="what the model takes pictures of digits for")
    predict.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    predict.add_argument("--model", type=Path, metavar="FILE", help="instead of models/'s")
    predict.set_defaults(run=_predict)
    return parser


def _predict(arguments: argparse.Namespace) -> None:
    from digits.predict import predict

    model = arguments.model or Paths(ROOT).model
    for path, found in zip(arguments.pictures, predict(model, arguments.pictures), strict=True):
        print(f"{path}: {found.name} ({found.probability:.1%})")


if __name__ == "__main__":
    main()
