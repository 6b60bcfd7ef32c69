"""What a file of sweeps/ may say, and what is written to params.yaml."""

import shutil
from pathlib import Path

import optuna
import pytest
import yaml

from digits.errors import ParameterError
from digits.params import load
from digits.sweep.plan import Plan, write

ROOT = Path(__file__).resolve().parents[1]
RATE = "train.learning_rate: {low: 1e-4, high: 0.1, log: true}"


def planned(folder: Path, text: str) -> Plan:
    (folder / "mine.yaml").write_text(text)
    return Plan.read(folder / "mine.yaml", ROOT)


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*")), ids=lambda path: path.stem)
def test_every_sweep_that_is_there_can_be_begun(path: Path) -> None:
    plan = Plan.read(path, ROOT)
    assert plan.search.trials > 0
    assert plan.name.startswith(f"{path.stem}-")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be a mapping"),
        ("trials: 3", "space is missing"),
        ("space: {}\ntrials: 3", "names no parameter"),
        (f"space: {{{RATE}}}", "trials is missing"),
        (f"trials: 0\nspace: {{{RATE}}}", "trials in .* is 0; allowed: a whole number and at"),
        (f"trails: 3\nspace: {{{RATE}}}\ntrials: 1", "trails in .*; did you mean trials"),
        (f"trials: 3\nspace: {{{RATE}}}\nobjective: test/accuracy", "can't be judged by it"),
        (f"trials: 3\nspace: {{{RATE}}}\nobjective: train/loss", "one of validation/accuracy, "),
        ("trials: 3\nspace: {train.learning_rat: [1]}", "did you mean train.learning_rate"),
        ("trials: 3\nspace: {evaluate.mistakes: [1]}", "no parameter of a training"),
        ("trials: 3\nspace: {train.threads: [1]}", "no parameter of a training"),
        ("trials: 3\nspace: {train.learning_rate: []}", "a range or a list of other values"),
        ("trials: 3\nspace: {train.epochs: [2, 2]}", "a range or a list of other values"),
        ("trials: 3\nspace: {train.learning_rate: 3}", "must be a mapping"),
        ("trials: 3\nspace: {train.learning_rate: {low: 1e-4}}", r"train\.learning_rate\.high is"),
        (
            "trials: 3\nspace: {train.learning_rate: {low: 1e-4, hihg: 1, high: 1}}",
            r"space\.train\.learning_rate\.hihg .*; did you mean high",
        ),
        ("trials: 3\nspace: {train.learning_rate: {low: 1, high: 0.1}}", "low must be below high"),
        (
            "trials: 3\nspace: {train.momentum: {low: 0, high: 0.5, log: true}}",
            "log needs a low above 0",
        ),
        ("trials: 3\nspace: {train.epochs: {low: 1.5, high: 4}}", "whole numbers"),
        (
            "trials: 3\nspace: {train.learning_rate: {low: -1, high: 0.1}}",
            r"space\.train\.learning_rate in .* is -1.0; allowed: a number and above 0",
        ),
        ("trials: 3\nspace: {train.optimizer: [adam]}", "allowed: one of adamw, lion"),
    ],
)
def test_what_is_wrong_is_named_in_a_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ParameterError, match=words) as caught:
        planned(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_answered_by_the_nearest_or_by_those_of_sweeps() -> None:
    sweeps = ROOT / "sweeps"
    with pytest.raises(ParameterError, match=f"lrr.yaml; did you mean {sweeps}/lr.yaml"):
        Plan.read(sweeps / "lrr.yaml", ROOT)
    with pytest.raises(ParameterError, match=r"there is no lr; sweeps/ has lr\.yaml"):
        Plan.read(Path("lr"), ROOT)


def test_what_is_tried_is_what_params_yaml_can_hold(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        f"trials: 9\nspace: {{{RATE}, train.epochs: {{low: 1, high: 5}}, "
        "train.weight_decay: {low: 0, high: 1}, train.clip_norm: [null, 1.0]}",
    )
    path = Path(shutil.copy(ROOT / "params.yaml", tmp_path))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(9):
        values = plan.suggest(study.ask())
        write(values, path)
        train = load(path).train
        assert 1e-4 <= train.learning_rate <= 0.1
        assert len(f"{train.learning_rate:g}".lstrip("0.")) <= 6
        assert isinstance(train.epochs, int)
        assert 0 < train.weight_decay < 1
        assert [getattr(train, name.partition(".")[2]) for name in values] == [*values.values()]


def test_writing_changes_those_values_alone(tmp_path: Path) -> None:
    path = Path(shutil.copy(ROOT / "params.yaml", tmp_path))
    before = path.read_text().splitlines()
    write({"train.epochs": 7, "train.learning_rate": 2e-05, "preprocess.mean": None}, path)
    after = path.read_text().splitlines()
    changed = [new.split()[:2] for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [["epochs:", "7"], ["learning_rate:", "2e-05"]]
    train = load(path).train
    assert (train.epochs, train.learning_rate) == (7, 2e-05)


def test_another_space_or_other_parameters_are_another_sweep_but_not_what_is_searched(
    tmp_path: Path,
) -> None:
    text = f"trials: 3\nspace: {{{RATE}}}"
    plan = planned(tmp_path, text)
    assert planned(tmp_path, f"{text}\nworkers: 5\npruner: none").name == plan.name
    assert planned(tmp_path, text.replace("0.1", "0.2")).name != plan.name
    assert planned(tmp_path, f"{text}\nobjective: validation/loss").name != plan.name

    planned(tmp_path, text)
    for key, is_same in (("learning_rate", True), ("threads", True), ("epochs", False)):
        root = tmp_path / key
        shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "dvc.yaml", root)
        document = yaml.safe_load((ROOT / "params.yaml").read_text())
        document["train"][key] = 1
        (root / "params.yaml").write_text(yaml.safe_dump(document))
        assert (Plan.read(tmp_path / "mine.yaml", root).name == plan.name) == is_same
