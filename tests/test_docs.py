"""What the pages say of this repository: links lead somewhere, promises to their tests."""

import re
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
