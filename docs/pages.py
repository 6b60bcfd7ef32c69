"""The site of `make docs`: its pages beside those of docs/, their order, and where links lead."""

import hashlib
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
FIRST = (
    *("make-it-yours", "use", "recipes", "sweeps", "reference"),
    *("guarantees", "team", "scale", "splice"),
)
BESIDE = {  # files of the repository that are pages or pictures of the site, by the name there
    "README.md": "index.md",
    "SECURITY.md": "SECURITY.md",
    "benchmarks/RESULTS.md": "RESULTS.md",
    "benchmarks/NOTES.md": "NOTES.md",
}
DIAGRAM = re.compile(r"```mermaid\n(.*?)```", re.DOTALL)
BOLD = re.compile(r"<b>(.*?)</b>")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
LINK = re.compile(r"\[([^\]\n]*)\]\(([^)\s#]+)(#[^)\s]*)?(?: \"[^\"]*\")?\)")
SOURCE = re.compile(r"(src(?:set)?=\")([^\":]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages in their order: those known here first, then what else lies in docs/."""
    there = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))
    names = [name for name in FIRST if name in there]
    names += [name for name in there if name not in FIRST]
    pages: list[Any] = [{"Start": "index.md"}, *(f"{name}.md" for name in names)]
    config.nav = [*pages, {"Benchmarks": ["RESULTS.md", "NOTES.md"]}, "SECURITY.md"]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files beside docs/."""
    for path, name in BESIDE.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_others: Any) -> str:
    """Let links lead to pages of the site, of other files let the name remain; show diagrams."""
    here = {name: path for path, name in BESIDE.items()}.get(page.file.src_uri)
    folder = (ROOT / here).parent if here else ROOT / "docs"

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        if "://" in target:
            return found[0]
        place = _place(folder / target)
        return text if place is None else f"[{text}]({place}{anchor})"

    def source(found: re.Match[str]) -> str:
        return found[1] + (_place(folder / found[2]) or found[2])

    def diagram(found: re.Match[str]) -> str:
        said = f"Diagram of {', '.join(BOLD.findall(found[1]))}"
        names = [(scheme, name_of(found[1], scheme)) for scheme in ("light", "dark")]
        return "\n".join(f"![{said}](images/{name}#only-{scheme})" for scheme, name in names)

    parts = CODE.split(markdown)
    parts[::2] = [SOURCE.sub(source, LINK.sub(link, part)) for part in parts[::2]]
    return "".join(DIAGRAM.sub(diagram, part) for part in parts)


def name_of(diagram: str, scheme: str) -> str:
    """The picture of a diagram, named by what it shows: `docs/diagrams.py` draws it.

    Args:
        diagram: in Mermaid's words.
        scheme: light or dark.
    """
    return f"diagram-{hashlib.md5(diagram.encode()).hexdigest()[:8]}-{scheme}.webp"


def _place(path: Path) -> str | None:
    """Where the site has a file of the repository, if it has."""
    name = path.resolve().relative_to(ROOT).as_posix()
    return BESIDE.get(name) or (name.removeprefix("docs/") if name.startswith("docs/") else None)
