"""params.yaml: every value is checked, and whatever is wrong is named."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from digits.errors import ParameterError
from digits.params import Params, load
from splice.settings import checked

ROOT = Path(__file__).resolve().parents[1]
GOOD: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
HERE = Path("params.yaml")
NAMES = [f"{section}.{name}" for section in GOOD for name in GOOD[section]]


def parse(document: Any, path: Path) -> Params:
    return checked(Params, document, path)


def changed(name: str, value: Any) -> dict[str, Any]:
    document = deepcopy(GOOD)
    section, _, key = name.partition(".")
    document[section][key] = value
    return document


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "params.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_parameters_of_the_repository_are_good() -> None:
    assert isinstance(load(ROOT / "params.yaml"), Params)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("download.dataset", 5),
        ("download.fallback", "yes"),
        ("download.fallback", 1),
        ("preprocess.validation", 0.6),
        ("preprocess.validation", -0.1),
        ("preprocess.validation", None),
        ("preprocess.std", 0),
        ("preprocess.seed", 1.0),
        ("preprocess.seed", 2**31),
        ("train.seed", -1),
        ("train.seed", True),
        ("train.epochs", 0),
        ("train.epochs", "4"),
        ("train.epochs", [4]),
        ("train.batch_size", 65_537),
        ("train.learning_rate", 0),
        ("train.learning_rate", float("nan")),
        ("train.learning_rate", float("inf")),
        ("train.learning_rate", 10**400),
        ("train.optimizer", "adam"),
        ("train.schedule", "linear"),
        ("train.clip_norm", 0),
        ("train.ema_decay", 1),
        ("train.warm_up", 1.1),
        ("train.step_epochs", 0),
        ("train.step_factor", 2),
        ("train.device", "gpu"),
        ("train.device", "cuda:128"),
        ("train.device", "cuda:01"),
        ("train.device", "cuda:٣"),
        ("train.precision", "float16"),
        ("train.threads", -1),
        ("checkpoint.every_steps", -1),
        ("checkpoint.every_steps", 0.5),
        ("evaluate.calibration_bins", 0),
        ("tracking.experiment", ""),
        ("tracking.experiment", "../elsewhere"),
        ("tracking.experiment", "two\nlines"),
        ("tracking.patience", -1),
        ("registry.metric", "a\nb"),
        ("registry.promote", True),
        ("registry.class_drop", 1.5),
        ("registry.least_gain", 1e9),
    ],
)
def test_a_bad_value_is_refused_by_its_name_with_what_is_allowed(name: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=rf"{name} in params\.yaml is .*; allowed: "):
        parse(changed(name, value), HERE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.learning_rate", 1),
        ("train.momentum", 0),
        ("train.device", "cuda:7"),
        ("preprocess.mean", None),
        ("preprocess.mean", 0.1307),
        ("registry.least_gain", 0),
    ],
)
def test_a_whole_number_is_a_number_and_null_is_allowed_where_it_says_so(
    name: str, value: Any
) -> None:
    params = parse(changed(name, value), HERE)
    assert params.flat(name.partition(".")[0])[name] == value


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_key_is_named(name: str) -> None:
    document = deepcopy(GOOD)
    section, _, key = name.partition(".")
    del document[section][key]
    with pytest.raises(ParameterError, match=f"{name} is missing from"):
        parse(document, HERE)


def test_an_unknown_key_is_named_beside_the_nearest_one_or_all() -> None:
    with pytest.raises(ParameterError, match=r"train\.epoch .* did you mean epochs\?"):
        parse(changed("train.epoch", 3), HERE)
    with pytest.raises(ParameterError, match=r"train\.qqq .* known here: seed, epochs"):
        parse(changed("train.qqq", 3), HERE)


def test_a_word_that_is_not_allowed_is_answered_by_the_nearest_that_is() -> None:
    with pytest.raises(ParameterError, match=r"allowed: .*constant; did you mean one-cycle\?$"):
        parse(changed("train.schedule", "onecycle"), HERE)
    with pytest.raises(ParameterError, match=r"one of adamw, lion, muon, nesterov, sgd$"):
        parse(changed("train.optimizer", "zzz"), HERE)


def test_a_key_that_is_no_text_is_named() -> None:
    with pytest.raises(ParameterError, match=r"train\.1 in params\.yaml is not a parameter"):
        parse(GOOD | {"train": {1: 2}}, HERE)


@pytest.mark.parametrize("text", ["1: 2", "? [1]\n: 2"])
def test_a_key_of_the_file_that_is_no_text_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ParameterError, match=r"params\.yaml"):
        load(written(tmp_path, text))


def test_a_missing_or_unknown_section_is_named() -> None:
    document = deepcopy(GOOD)
    document["training"] = document.pop("train")
    with pytest.raises(ParameterError, match=r"training in params\.yaml is not a parameter"):
        parse(document, HERE)


@pytest.mark.parametrize("section", [None, 3, "text", [1, 2]])
def test_a_section_that_is_no_mapping_is_named(section: Any) -> None:
    with pytest.raises(ParameterError, match=r"train in params\.yaml must be a mapping"):
        parse(GOOD | {"train": section}, HERE)


@pytest.mark.parametrize("content", ["", "3", "[1]", "a: [", "\t", "a: b: c", "? [1]\n: 2", "..."])
def test_text_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ParameterError, match=r"params\.yaml"):
        load(written(tmp_path, content))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"train: \x80", b"a: \x00"])
def test_bytes_that_are_not_utf_8_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ParameterError, match="is not valid YAML"):
        load(written(tmp_path, content))


@pytest.mark.parametrize(
    "value",
    [
        '!!int ""',
        "!!bool maybe",
        "!!timestamp x",
        '!!float ""',
        "2024-99-99",
        "!!python/object/apply:os.system [echo]",
        "9" * 5000,
        "0x" + "f" * 5000,
    ],
)
def test_yaml_tags_and_numbers_that_break_the_parser_are_refused(
    tmp_path: Path, value: str
) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    with pytest.raises(ParameterError):
        load(written(tmp_path, re.sub(r"epochs: \d+", f"epochs: {value}", text, count=1)))


def test_a_doubled_key_is_refused(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    with pytest.raises(ParameterError, match="epochs stands twice"):
        load(written(tmp_path, text.replace("  epochs:", "  epochs: 1\n  epochs:", 1)))


def test_aliases_that_unfold_to_billions_of_values_are_refused_in_one_short_line(
    tmp_path: Path,
) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for earlier, name in zip("abcdefghi", "bcdefghij", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{earlier}'] * 9)}]\n"
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    unfolded = bomb + re.sub(r"epochs: \d+", "epochs: *j", text, count=1)
    with pytest.raises(ParameterError) as caught:
        load(written(tmp_path, unfolded))
    assert len(str(caught.value)) < 500
    document = yaml.safe_load(unfolded)
    with pytest.raises(ParameterError, match="a list of 9"):
        parse(changed("train.epochs", document["j"]), HERE)


def test_deeply_nested_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="is not valid YAML"):
        load(written(tmp_path, "[" * 100_000))


def test_exponents_are_numbers_as_dvc_reads_them(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    changed_text = re.sub(r"learning_rate: [\d.]+", "learning_rate: 1e-3", text, count=1)
    assert load(written(tmp_path, changed_text)).train.learning_rate == 0.001


def test_a_missing_file_or_a_folder_in_its_place_names_the_cure(tmp_path: Path) -> None:
    (tmp_path / "a" / "params.yaml").mkdir(parents=True)
    for path in (tmp_path / "params.yaml", tmp_path / "a" / "params.yaml"):
        with pytest.raises(ParameterError, match=r"git checkout params\.yaml"):
            load(path)


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=8)
    | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(NAMES), json_like)
def test_any_value_is_either_typed_or_refused_by_name(name: str, value: Any) -> None:
    section, _, key = name.partition(".")
    try:
        params = parse(changed(name, value), HERE)
    except ParameterError as error:
        assert name in str(error) and "\n" not in str(error).replace(repr(value), "")
    else:
        assert getattr(getattr(params, section), key) == value


@settings(max_examples=200, deadline=None)
@given(json_like)
def test_any_document_is_refused_as_one_line(document: Any) -> None:
    with pytest.raises(ParameterError):
        parse(document, HERE)
