"""The pages say what is true: the example runs, tables have every key and every command."""

import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import digits.cli
from conftest import HERE
from foreign import INSTALLED, Foreign
from splice import cli
from splice.config import Config
from splice.files import md5

PAGE = (HERE / "docs" / "splice.md").read_text(encoding="utf-8")
FILES = re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE, re.S)


def commands(after: str) -> list[str]:
    """The commands of the first console block behind a heading."""
    block = re.search(r"```console\n(.*?)```", PAGE.partition(after)[2], re.S)
    assert block
    return [line.removeprefix("$ ") for line in block.group(1).splitlines()]


def test_the_example_makes_one_run_with_curve_metric_and_model(
    tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    project = Foreign(tmp_path, clean_environment | INSTALLED)
    assert [name for name, _ in FILES] == [
        "pyproject.toml",
        "dvc.yaml",
        "src/train.py",
        "src/evaluate.py",
    ]
    for name, text in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("1, 2\n2, 4\n3, 6\n")
    project.git("init", "--quiet")
    project.dvc("init", "--quiet")
    ignore, repro, find, _ = commands("# src/evaluate.py")
    project.run("sh", "-c", ignore)
    project.commit("The example")
    try:
        assert "everything is delivered" in project.run("sh", "-c", repro).stdout
        installed = find.replace("splice", "python -m splice.cli", 1)
        assert "FINISHED" in project.run("sh", "-c", installed).stdout
    finally:
        project.stop_sender()
    (run,) = project.store().tagged({"dvc.model": md5(tmp_path / "model.json")})
    assert run.data.params == {"rate": "0.1"}
    assert run.data.metrics["error"] < 0.1
    assert len(project.store().client.get_metric_history(run.info.run_id, "slope")) == 20
    assert project.git("status", "--porcelain") == "M .gitignore\n?? dvc.lock"


def test_the_page_has_every_setting_and_its_default(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.splice]\n")
    config = Config.read(tmp_path)
    settings = {**vars(config)}
    for section in ("tracking", "registry"):
        values = vars(settings.pop(section)).items()
        settings |= {f"{section}.{key}": value for key, value in values}
    unset = ("root", "home", "registry.threshold")  # have no default, or none in TOML
    settings = {key: settings[key] for key in settings if key not in unset}

    rows = re.findall(r"^\| `([a-z_.]+)` \| `(.*?)` \|", PAGE.partition("## Settings")[2], re.M)
    written = {key: tomllib.loads(f"it = {default}")["it"] for key, default in rows}
    assert written == {
        key: list(it) if isinstance(it, tuple) else it for key, it in settings.items()
    }
    assert "| `registry.threshold` | none |" in PAGE


@pytest.mark.parametrize(
    ("page", "programs"), [("splice", [cli]), ("reference", [cli, digits.cli])]
)
def test_the_table_of_a_page_has_every_command(page: str, programs: list[ModuleType]) -> None:
    text = (HERE / "docs" / f"{page}.md").read_text(encoding="utf-8")
    table = "".join(re.findall(r"^\| (.*?) \|", text.partition("## Commands")[2], re.M))
    for program in programs:
        for name in program.EXAMPLES:
            assert f"`{program._parser().prog} {name}" in table


@pytest.mark.parametrize("command", [cli, digits.cli], ids=["splice", "digits"])
def test_every_command_has_an_example_that_it_takes_and_help_on_all_that_it_takes(
    command: ModuleType,
) -> None:
    parser = command._parser()
    commands = parser._subparsers._group_actions[0].choices
    assert set(commands) == set(command.EXAMPLES)
    for name, of in commands.items():
        example = f"{parser.prog} {name} {command.EXAMPLES[name]}"
        assert f"Example: {example}".strip() in " ".join(of.format_help().split())
        assert parser.parse_args(shlex.split(example)[1:]).command == name
        assert [action.dest for action in of._actions if not action.help] == []


@pytest.mark.parametrize(
    ("command", "typed", "said"),
    [
        (cli, "stats", "splice: error: there is no stats; did you mean status?"),
        (digits.cli, "predct", "digits: error: there is no predct; did you mean predict?"),
        (digits.cli, "compare main", "digits: error: there is no compare; it is `splice compare`"),
        (cli, "predict a.png", "splice: error: there is no predict; it is `digits predict`"),
        (cli, "xyz", "splice: error: argument COMMAND: invalid choice: 'xyz'"),
        (
            cli,
            "sync --histroy",
            "splice sync: error: there is no --histroy; did you mean --history",
        ),
        (
            digits.cli,
            "predict --form=champion a.png",
            "digits predict: error: there is no --form; did you mean --from?",
        ),
        (cli, "sync mian", "splice sync: error: unrecognized arguments: mian"),
    ],
)
def test_what_is_mistyped_is_answered_by_what_is_nearest_under_the_usage_of_its_command(
    command: ModuleType, typed: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command._parser().parse_args(typed.split())
    assert ended.value.code == 2
    usage, *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith(said)
    assert usage.startswith(f"usage: {said.partition(':')[0]} ")


@pytest.mark.parametrize("command", [cli, digits.cli], ids=["splice", "digits"])
def test_without_a_command_there_is_help_and_an_exit_code_of_misuse(
    command: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command._parser().parse_args([])
    assert ended.value.code == 2
    assert capsys.readouterr().err == command._parser().format_help()


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    version = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]["version"]
    for command in (cli, digits.cli):
        with pytest.raises(SystemExit) as ended:
            command._parser().parse_args(["--version"])
        assert ended.value.code == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == [f"{name} {version}" for name in ("splice", "digits")]
