"""The pipeline's definition: deps are imports, params are what matters, slow imports stay out."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from digits.params import Train, load
from imports import imported_files

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("download", "preprocess", "train", "evaluate")
SLOW = ("torch", "torchvision", "mlflow", "matplotlib", "mlxtend", "pandas", "scipy")
WHEN_IMPORTED: dict[str, set[str]] = {
    "download": set(),
    "preprocess": set(),
    "train": {"torch"},
    "evaluate": {"torch", "matplotlib"},
}


def stages() -> dict[str, dict[str, Any]]:
    document = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    return {name: document["stages"][name] for name in document["stages"]}


def test_the_stages_are_the_four_and_each_is_a_script_of_its_name() -> None:
    assert tuple(stages()) == STAGES
    for name, stage in stages().items():
        assert stage["cmd"] == f"python src/{name}.py"


@pytest.mark.parametrize("name", STAGES)
def test_the_deps_of_a_stage_are_exactly_the_modules_it_imports(name: str) -> None:
    listed = {dep for dep in stages()[name]["deps"] if dep.startswith("src/")}
    imported = imported_files(ROOT / "src" / f"{name}.py", ROOT / "src")
    assert listed == {path.relative_to(ROOT).as_posix() for path in imported}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_its_own_section_of_the_parameters_alone(name: str) -> None:
    assert stages()[name]["params"] == [name]


def test_every_parameter_is_explained_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    params = load(ROOT / "params.yaml")
    names = [
        f"`{section}.{key}`"
        for section in params.__dataclass_fields__
        for key in params.section(section)
    ]
    assert [name for name in names if name not in readme] == []


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_imports_nothing_slow_that_it_does_not_need(name: str) -> None:
    modules = [
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        for path in imported_files(ROOT / "src" / f"{name}.py", ROOT / "src")
        if path.suffix == ".py"
    ]
    code = (
        "import importlib, json, sys\n"
        f"for name in {sorted(modules)!r}: importlib.import_module(name)\n"
        f"print(json.dumps([name for name in {SLOW!r} if name in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True, check=True
    )
    assert set(json.loads(done.stdout)) == WHEN_IMPORTED[name]


def test_the_training_room_and_its_gpu_benchmark_need_torch_alone() -> None:
    code = (
        "import json, sys, torch\n"
        "class Bare:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] not in {*sys.stdlib_module_names, *HERE}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "HERE = 'torch', 'digits', 'gpu'\n"
        "sys.meta_path.insert(0, Bare())\n"
        "import gpu\n"
        "print(json.dumps([vars(gpu.ORIGINAL), vars(gpu.FAST)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, check=True
    )
    for recipe in json.loads(done.stdout):
        Train(**recipe)


def test_one_room_of_the_join_and_the_projects_export_alone_import_mlflow() -> None:
    rooms = [
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src").rglob("*.py")
        if re.search(r"^\s*(from|import) mlflow", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert sorted(rooms) == ["digits/export.py", "splice/mlflow_store.py"]
