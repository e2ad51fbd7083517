"""Environment variables have one name each, in one module."""

from __future__ import annotations

import ast
from pathlib import Path

from components.lib import environment

ROOT = Path(__file__).parents[2]
VARIABLES = {value for name, value in vars(environment).items() if name.isupper()}


def literals(path: Path) -> set[str]:
    """Strings of a module that are a variable's name, docstrings left out."""
    return {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        and node.value.startswith("COSMOS_") and node.value.isupper()
    }  # fmt: skip


def test_no_other_module_writes_a_variable_s_name() -> None:
    paths = [path for top in ("components", "pipelines") for path in (ROOT / top).rglob("*.py")]
    written = {path.name: names for path in paths if (names := literals(path))}
    assert written == {"environment.py": VARIABLES}
    assert len(VARIABLES) >= 8


def test_each_is_told_in_the_readme() -> None:
    text = (ROOT / "components" / "lib" / "README.md").read_text()
    assert {name for name in VARIABLES if name not in text} == set()
