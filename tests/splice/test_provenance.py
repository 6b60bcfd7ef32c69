"""From a run to commit, experiment, data and model file, and from each of them to the run."""

from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.entities import Run

from conftest import Project
from delivered import commands
from foreign import Foreign
from splice import outbox, provenance
from splice.config import Config
from splice.files import md5
from splice.join import DIFF, Join


def run_of_model(project: Project) -> Run:
    found = project.store().run_of_model(md5(project.model))
    assert found is not None
    return found


def test_a_run_names_commit_branch_data_and_model_and_each_quoted_command_brings_its_file(
    finished: Project, tmp_path: Path
) -> None:
    run = run_of_model(finished)
    tags = run.data.tags
    assert tags["git.commit"] == finished.git("rev-parse", "HEAD~1") in tags["mlflow.note.content"]
    assert tags["git.branch"] == "main"
    assert tags["git.dirty"] == "false"
    for split in ("train", "validation", "test"):
        file = finished.root / "data" / "processed" / f"{split}.safetensors"
        assert tags[f"dvc.data.{split}"] == md5(file)
    assert tags["dvc.model"] == md5(finished.model)

    quoted = commands(run)
    assert set(quoted) == {
        "data/processed/train.safetensors",
        "data/processed/validation.safetensors",
        "models/net.safetensors",
    }
    for path in ("data/processed/train.safetensors", "models/net.safetensors"):
        target = tmp_path / Path(path).name
        finished.run("sh", "-c", f"{quoted[path]} --out {target}")
        assert md5(target) == md5(finished.root / path)


def test_an_experiment_is_brought_from_its_checkout_and_once_pushed_from_its_origin(
    foreign: Foreign, tmp_path: Path
) -> None:
    origin, remote, elsewhere = (tmp_path / name for name in ("origin.git", "remote", "elsewhere"))
    elsewhere.mkdir()
    foreign.dvc("remote", "add", "--default", "there", str(remote))
    foreign.commit("A remote")
    foreign.git("clone", "--quiet", "--bare", ".", str(origin))
    foreign.git("remote", "add", "origin", origin.as_uri())
    foreign.dvc("exp", "run", "--queue", "--name", "new", "-S", "fit.seed=12")
    foreign.dvc("exp", "run", "--run-all")
    foreign.splice("sync", "--wait", "60")

    (run,) = (run for run in foreign.runs() if run.info.run_name == "new")
    (command,) = (line for path, line in commands(run).items() if path == "model/plane.npz")
    foreign.run("sh", "-c", f"{command} --out {elsewhere / 'here'}")
    there = command.replace("dvc get . ", f"dvc get {origin.as_uri()} ")
    note = run.data.tags["mlflow.note.content"]
    assert f"(`dvc exp push origin new`): the same with `{origin.as_uri()}` instead of `.`" in note
    away = replace(foreign, root=elsewhere)
    assert "unknown Git revision 'new'" in away.run("sh", "-c", there, check=False).stdout
    foreign.dvc("exp", "push", "origin", "new")
    away.run("sh", "-c", there)
    for file in ("here", "plane.npz"):
        assert md5(elsewhere / file) == run.data.tags["dvc.model"]


def test_find_leads_from_a_file_a_hash_and_any_commit_to_the_run(finished: Project) -> None:
    run = run_of_model(finished)
    trained_at, committed_at = finished.git("rev-parse", "HEAD~1", "HEAD").split()
    for what in (str(finished.model), md5(finished.model), trained_at, committed_at[:10], "main"):
        found = finished.splice("find", what).stdout
        assert run.info.run_id in found
        assert "test/accuracy" in found
    done = finished.splice("find", "no-such-thing", check=False)
    assert done.returncode == 1
    assert "no run of no-such-thing in sqlite:" in done.stdout
    assert "it is no file, commit or experiment here" in done.stdout


def test_a_project_in_a_folder_of_its_repository_is_found_by_its_own_lock(
    tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    project = Project(tmp_path / "project", clean_environment)
    project.root.mkdir()
    (project.root / "dvc.lock").write_text("    - path: net\n      hash: md5\n      md5: abc123\n")
    Project(tmp_path, clean_environment).git("init", "--quiet")
    at = project.commit()
    assert provenance.hash_at(project.root, "HEAD", "net") == (at, "abc123")
    command = f"dvc get . net --rev {at[:12]}"
    assert command in provenance.how_to_get(
        project.root, provenance.commit(project.root, []), {"model": ("net", "abc123")}
    )


def test_a_dirty_tree_is_recorded_with_its_difference(finished: Project, tmp_path: Path) -> None:
    finished.params({"train.seed": 42, "train.epochs": 1})
    script = finished.root / "src" / "train.py"
    script.write_text(script.read_text() + "# a change\n")
    finished.stage("train")
    finished.stage("evaluate")
    run = run_of_model(finished)
    assert run.data.tags["git.dirty"] == "true"
    assert "uncommitted changes" in run.data.tags["mlflow.note.content"]
    client = finished.store().client
    path = client.download_artifacts(run.info.run_id, "source/uncommitted.diff.txt", str(tmp_path))
    difference = Path(path).read_text()
    assert "+# a change" in difference
    assert "+  seed: 42" in difference


def test_git_apply_of_the_recorded_difference_gives_the_very_files_whatever_git_is_set_to(
    tmp_path: Path, clean_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Project(tmp_path / "repository", clean_environment)
    project = Project(repository.root / "project", clean_environment)
    (project.root / "src").mkdir(parents=True)
    (project.root / "pyproject.toml").write_text('[tool.splice]\nmodel = "net"\n')
    before = {
        "open": b"a\nb",
        "blank": b"a\n\n",
        "latin": b"caf\xe9\r\n",
        "binary": bytes(range(256)),
    }
    after = {"open": b"a\nc", "blank": b"c\n\n\n \n", "latin": b"th\xe9\r\n", "binary": b"\0" * 99}
    for name, content in before.items():
        (project.root / name).write_bytes(content)
    repository.git("init", "--quiet")
    at = repository.commit()
    for name, content in after.items():
        (project.root / name).write_bytes(content)
    after["src/new.py"] = b"\0"
    (project.root / "src" / "new.py").write_bytes(b"\0")
    settings = tmp_path / "gitconfig"
    settings.write_text("[diff]\nnoprefix\ncontext = 0\nrelative\n[color]\nui = always\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))

    config = Config.read(project.root)
    with Join(config).training(params={}, data={}):
        pass
    (entry,) = outbox.entries(config.box)
    clone = Project(tmp_path / "clone", clean_environment)
    repository.git("clone", "--quiet", "--shared", ".", str(clone.root))
    clone.git("checkout", "--quiet", "--detach", at)
    clone.git("apply", str(entry / outbox.FILES / DIFF))
    assert {name: (clone.root / "project" / name).read_bytes() for name in after} == after


def test_new_files_of_the_code_are_in_the_difference_and_others_are_not(bare: Project) -> None:
    (bare.root / "src" / "digits" / "wider.py").write_text("WIDTH = 7\n")
    (bare.root / "passwords.txt").write_text("hunter22\n")
    before = bare.git("status", "--porcelain")
    at = provenance.commit(bare.root, ["src"])
    assert at.dirty == "true"
    assert "+WIDTH = 7" in at.diff
    assert "hunter22" not in at.diff
    assert bare.git("status", "--porcelain") == before


def test_a_difference_beyond_all_measure_is_cut_and_says_so(
    bare: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "LONGEST_DIFF", 300)
    (bare.root / "src" / "table.py").write_text("ROW = 1\n" * 1000)
    diff = provenance.commit(bare.root, ["src"]).diff
    assert "... cut off:" in diff.splitlines()[-1]
    assert len(diff) < 400


def test_without_git_everything_is_unknown(tmp_path: Path) -> None:
    at = provenance.commit(tmp_path, ["src"])
    assert (at.id, at.branch, at.dirty) == ("unknown", "unknown", "unknown")
    assert "dvc get . a.bin" in provenance.how_to_get(tmp_path, at, {"model": ("a.bin", "0" * 32)})


def test_the_name_of_a_run_is_the_experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "full-moon")
    assert provenance.run_name(Path(), "0123456789abcdef") == "full-moon"


def test_else_it_says_what_differs_from_the_commits_parameters(bare: Project) -> None:
    assert provenance.run_name(bare.root, "0123456789abcdef") == "train-01234567"
    bare.params({"train.seed": 7, "train.learning_rate": 0.02})
    assert provenance.run_name(bare.root, "0123456789abcdef") == "seed=7 learning_rate=0.02"
    many = ("epochs", "batch_size", "log_every", "shift", "weight_decay", "momentum")
    bare.params({f"train.{name}": 0.5 for name in many})
    assert provenance.run_name(bare.root, "0123456789abcdef") == "train-01234567"
    (bare.root / "params.yaml").write_text("][")
    assert provenance.run_name(bare.root, "0123456789abcdef") == "train-01234567"


def test_the_remotes_credentials_are_in_no_description(bare: Project) -> None:
    bare.git("remote", "add", "origin", "https://someone:hunter22@example.org/digits.git")
    at = provenance.commit(bare.root, ["src"])
    text = provenance.how_to_get(bare.root, at, {"model": ("models/net.safetensors", "0" * 32)})
    assert "https://example.org/digits.git" in text
    assert "hunter22" not in text


@pytest.mark.parametrize(
    ("origin", "page"),
    [
        ("https://github.com/me/digits.git", "https://github.com/me/digits/commit/"),
        (
            "https://someone:hunter22@example.org:8443/digits/",
            "https://example.org:8443/digits/commit/",
        ),
        ("git@github.com:me/digits.git", "https://github.com/me/digits/commit/"),
        ("ssh://git@gitlab.com:2222/a/b/digits.git", "https://gitlab.com/a/b/digits/commit/"),
        ("https://bitbucket.org/me/digits", "https://bitbucket.org/me/digits/commits/"),
        ("/srv/git/digits.git", ""),
        ("file:///srv/git/digits.git", ""),
        ("../digits", ""),
    ],
)
def test_a_commit_links_to_the_page_that_its_host_has_of_it(
    origin: str, page: str, bare: Project
) -> None:
    bare.git("remote", "add", "origin", origin)
    at = provenance.commit(bare.root, ["src"])
    tags = provenance.tags(bare.root, at)
    assert tags.get("git.commit.page", "") == (page and page + at.id)
    said = f"Commit [`{at.id}`]({page}{at.id}) on `" if page else f"Commit `{at.id}` on `"
    assert said in provenance.how_to_get(bare.root, at, {})
