"""What the pages say of this repository: links lead somewhere, promises to their tests."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import HERE

PAGES = [HERE / "README.md", HERE / "SECURITY.md", *sorted((HERE / "docs").glob("*.md"))]
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?(?: \"([^\"]*)\")?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_every_promise_to_its_test(page: Path) -> None:
    for target, title in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        file = page.parent / target
        assert file.exists(), target
        if title.startswith("test_"):
            assert f"def {title}(" in file.read_text(encoding="utf-8"), title


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[2:] if f"docs/{page.name}" not in readme] == []


def test_the_readme_is_read_in_one_go() -> None:
    assert len((HERE / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_site_is_built_whole_and_asks_no_other_host(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir"]
    done = subprocess.run([*build, tmp_path], cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {page.stem: page.read_text(encoding="utf-8") for page in tmp_path.glob("*.html")}
    assert {page.stem for page in PAGES[1:]} | {"index", "RESULTS"} <= set(pages)
    for name, page in pages.items():
        fetched = re.findall(
            r"<(?:script|img|link|source)[^>]*?(?:src|srcset|href)=\"?([^\">\s]+)", page
        )
        assert [address for address in fetched if "//" in address] == [], name
        for address in fetched:
            assert (tmp_path / address.partition("#")[0].lstrip("/")).exists(), (name, address)
    for name in ("index", "splice"):
        assert re.findall(r"images/diagram-\w+-(light|dark)\.webp#only-\1", pages[name])
        assert "flowchart" not in pages[name]
