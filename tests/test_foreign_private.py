"""What a library keeps private is used in one place per library, a file named ``*_private.py``.

An upgrade may change private names without a word. So that it has one page to read for each
library, a private name (one underscore in front) may be used only in the file that defines it, and
anywhere in a ``*_private.py``, which says why it is needed and what to look at.

The check reads the source. It sees attributes, imports, `getattr` and the like with a literal name,
and that a foreign module is patched by assignment. It does not see a method that overrides a
private one of a foreign class, a name that is put together at run time, an object that is patched,
or parameters with an underscore in front (which generated API clients have in public).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for part in ("components", "pipelines") for path in (ROOT / part).rglob("*.py"))
BY_NAME = {"getattr", "setattr", "hasattr", "delattr"}
#: Public in spite of their names: documented.
DOCUMENTED = {"os._exit"}
#: Settings that libraries offer to be assigned to.
SETTINGS = ("torch.backends.",)


def private(name: str) -> bool:
    return name.startswith("_") and name != "_" and not name.startswith("__")


def defined(tree: ast.AST) -> set[str]:
    """Names that a file itself defines: functions, classes, variables, its objects' attributes."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("self", "cls")
        ):
            names.add(node.attr)
    return names


def imported(tree: ast.AST) -> set[str]:
    """Names under which a file has foreign modules and what is in them."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names - {"components", "pipelines"}


def uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of each use of a private name that the file does not define, and of patches."""
    known, foreign = defined(tree), imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                target = f"{module}.{alias.name}".lstrip(".")
                if any(private(part) for part in target.split(".")):
                    yield node.lineno, target
        elif isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if private(node.attr) and node.attr not in known and text not in DOCUMENTED:
                yield node.lineno, text
            elif (
                isinstance(node.ctx, ast.Store)
                and text.split(".")[0] in foreign
                and not text.startswith(SETTINGS)
            ):
                yield node.lineno, f"{text} = …"
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in BY_NAME
            and len(node.args) > 1
            and isinstance(name := getattr(node.args[1], "value", None), str)
            and private(name)
            and name not in known
        ):
            yield node.lineno, ast.unparse(node)


def test_private_names_are_used_where_they_are_defined_or_in_a_file_for_them() -> None:
    elsewhere = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in FILES
        if not path.stem.endswith("_private")
        for line, text in uses(ast.parse(path.read_text()))
    ]
    assert elsewhere == []


def test_a_file_for_private_names_uses_some() -> None:
    """Else it is not needed any more."""
    files = [path for path in FILES if path.stem.endswith("_private")]
    assert files
    for path in files:
        tree = ast.parse(path.read_text())
        methods = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert list(uses(tree)) or any(map(private, methods)), path


@pytest.mark.parametrize(
    "source",
    [
        "client._execute('GET')",
        "self._healthz_api.get()",
        "from torch._ops import OpOverload",
        "from flash_attn.cute.interface import _flash_attn_fwd",
        "import torch._dynamo.config",
        "getattr(error, '_code', None)",
        "import kfp.local as local\nlocal.replace = print",
        "group._reduce_scatter_comm = None",
    ],
)
def test_the_check_sees(source: str) -> None:
    assert list(uses(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "class A:\n    def __init__(self): self._x = 1\n    def f(self, other): return other._x",
        "def _helper(): ...\nimport a\na.f(_helper)",
        "value.__class__",
        "import os\nos._exit(1)",
        "import torch\ntorch.backends.cudnn.benchmark = True",
        "client.call(_request_timeout=3)",
    ],
)
def test_the_check_lets_pass(source: str) -> None:
    assert not list(uses(ast.parse(source)))
