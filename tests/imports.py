"""Which of this project's files a script imports, directly or not, wherever in it the import is."""

import ast
from pathlib import Path


def imported_files(script: Path, source: Path) -> set[Path]:
    """The script, every module below `source` that it imports, and the C files beside them."""
    reached: set[Path] = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        reached.update(path.parent.glob("*.c"))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name in sorted(_names(tree)):
            waiting += _files(name, source)
    return reached


def _names(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _files(module: str, source: Path) -> list[Path]:
    """The module's own file and the packages around it."""
    parts = module.split(".")
    found = []
    for end in range(1, len(parts) + 1):
        base = source.joinpath(*parts[:end])
        found += [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.exists()]
    return found
