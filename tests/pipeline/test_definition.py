"""The pipeline's definition: deps are imports, params are what matters, slow imports stay out."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import Project
from digits.params import Train, load
from imports import imported_files

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("download", "preprocess", "train", "evaluate")
SLOW = ("torch", "torchvision", "mlflow", "matplotlib", "mlxtend", "pandas", "scipy")
PLUMBING = (
    *("digits/errors.py", "digits/params.py", "digits/paths.py", "digits/stage.py"),
    "splice/",
)
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
def test_every_module_that_a_stage_imports_is_among_its_deps_or_plumbing(name: str) -> None:
    deps = {ROOT / dep for dep in stages()[name]["deps"]}
    imported = imported_files(ROOT / "src" / f"{name}.py", ROOT / "src")
    decides = {path for path in imported if not is_plumbing(path)}
    assert {path for path in decides if not deps & {path, *path.parents}} == set()
    code = {dep for dep in deps if ROOT / "src" in dep.parents}
    assert {
        dep for dep in code if not any(dep in {path, *path.parents} for path in decides)
    } == set()
    assert {dep for dep in code if is_plumbing(dep)} == set()


def is_plumbing(path: Path) -> bool:
    names = path.relative_to(ROOT / "src").as_posix()
    return names.startswith(PLUMBING) or path.name == "__init__.py"


CHANGES = {
    **dict.fromkeys(("digits/errors.py", "digits/params.py", "digits/paths.py"), ()),
    **dict.fromkeys(("digits/stage.py", "digits/cli.py", "digits/model/export.py"), ()),
    **dict.fromkeys(("splice/outbox.py", "splice/files.py", "splice/mlflow_store.py"), ()),
    "digits/data/catalog.py": ("download",),
    "digits/data/split.py": ("preprocess",),
    "digits/model/net.py": ("train", "evaluate"),
    "digits/training/cpu_kernels/kernels.c": ("train", "evaluate"),
    "digits/evaluation/plots.py": ("evaluate",),
}


def test_a_change_runs_those_stages_again_whose_bytes_it_may_decide(finished: Project) -> None:
    for name, expected in CHANGES.items():
        path = finished.root / "src" / name
        before = path.read_bytes()
        path.write_bytes(before + (b"// other\n" if name.endswith(".c") else b"# other\n"))
        status = json.loads(finished.dvc("status", "--json").stdout.splitlines()[-1])
        assert tuple(status) == expected, name
        path.write_bytes(before)


def test_a_tagged_release_of_the_model_is_brought_by_its_name_from_anywhere(
    finished: Project, tmp_path: Path
) -> None:
    finished.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    finished.dvc("push", "models/net.safetensors")
    finished.commit("A remote")
    finished.git("tag", "--annotate", "mnist-net@v1.0.0", "--message", "First release")
    brought = tmp_path / "brought.safetensors"
    repository = str(finished.root)
    finished.dvc("artifacts", "get", repository, "mnist-net", "--out", str(brought))
    assert brought.read_bytes() == finished.model.read_bytes()


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_its_own_section_of_the_parameters_alone(name: str) -> None:
    own_images = ["folder"] if name == "preprocess" else []
    assert stages()[name]["params"] == [*own_images, name]


def test_every_parameter_is_explained_in_the_reference() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    params = load(ROOT / "params.yaml")
    names = [
        f"`{section}.{key}`"
        for section in params.__dataclass_fields__
        for key in params.section(section)
    ]
    assert [name for name in names if name not in reference] == []


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


def test_windows_is_refused_in_one_line() -> None:
    code = "import runpy, sys; sys.platform = 'win32'; runpy.run_path('src/train.py', {}, 'train')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Windows is not supported: use Linux, macOS or WSL")
    assert done.stderr.count("\n") == 1


def test_the_training_room_and_its_gpu_benchmark_need_torch_alone() -> None:
    code = (
        "import json, sys, torch\n"
        "class Bare:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] not in {*sys.stdlib_module_names, *HERE}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "HERE = 'torch', 'digits', 'splice', 'gpu'\n"
        "sys.meta_path.insert(0, Bare())\n"
        "import gpu\n"
        "print(json.dumps([vars(gpu.ORIGINAL), vars(gpu.FAST), vars(gpu.DEFAULT)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, check=True
    )
    *_, default = [Train(**recipe) for recipe in json.loads(done.stdout)]
    assert default == replace(load(ROOT / "params.yaml").train, device="cuda")


def test_one_room_of_the_join_and_what_exports_and_serves_alone_import_mlflow() -> None:
    rooms = [
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src").rglob("*.py")
        if re.search(r"^\s*(from|import) mlflow", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    expected = ["digits/model/export.py", "digits/serve.py", "splice/mlflow_store.py"]
    assert sorted(rooms) == expected
