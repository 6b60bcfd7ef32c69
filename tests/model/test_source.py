"""A model is asked by any of its names, from MLflow's copy or from DVC's cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from conftest import Project
from digits import serve, source
from digits.data import dataset
from digits.errors import DataError, UserError
from splice.files import md5


@pytest.fixture
def here(finished: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A finished project, as the one that this process belongs to."""
    monkeypatch.setattr(source, "ROOT", finished.root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PATH", finished.env["PATH"])
    return finished


def test_alias_version_run_and_hash_name_the_model_that_lies_in_models(here: Project) -> None:
    images = dataset.read(here.root / "data/processed/test.safetensors").images[:50]
    expected = source.of(str(here.model))
    assert source.of(str(here.model.parent)).description == expected.description
    hash_ = md5(here.model)
    run = here.store().run_of_model(hash_)
    assert run is not None
    run_id, name = run.info.run_id, str(run.info.run_name)
    for what in ("challenger", "1", run_id, run_id[:8], name, hash_, hash_[:8]):
        found = source.of(what)
        assert run_id in found.said, what
        assert found.description == expected.description, what
        answers = found.log_probabilities(images)
        np.testing.assert_allclose(answers, expected.log_probabilities(images), rtol=0, atol=1e-4)
    for what, said in (
        ("champion", "has no champion; `splice promote` makes one"),
        ("9", "9 is no alias or version of mnist-net, no run and no model's hash"),
        ("0" * 32, "no run and no model's hash; `splice ui` shows what there is"),
        ("champoin", r"champoin is no alias .*; did you mean champion\?"),
    ):
        with pytest.raises(UserError, match=said):
            source.of(what)


def test_a_model_that_mlflow_does_not_have_comes_from_dvcs_cache_by_its_hash(
    here: Project, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hash_, there = md5(here.model), source.of(str(here.model))
    here.model.unlink()
    with pytest.raises(DataError, match=r"net\.safetensors"):
        source.of(str(here.model))
    blank = np.zeros((1, 1, 28, 28), np.uint8)
    for store in (shutil.copy(empty_store, tmp_path / "other.db"), tmp_path / "none.db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
        found = source.of(hash_)
        assert found.said == f"model {hash_}"
        assert np.array_equal(found.log_probabilities(blank), there.log_probabilities(blank))
    monkeypatch.setattr(serve, "ROOT", here.root)
    monkeypatch.setenv(serve.SERVED, "")
    assert hash_[2:] in serve._choose(hash_)
    assert not (tmp_path / "none.db").exists()
