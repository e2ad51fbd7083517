"""The lists of files in the READMEs, made from the first sentence of each module's docstring.

A list stands between the comments ``<!-- files FOLDER … -->`` and ``<!-- end of files -->``; each
word is a folder from the top of the repository, and ``FOLDER/**`` takes what lies below it as well.
``python -m tests.house`` writes the lists anew (`make compile` does), the tests of the house fail
when one is not as it would be written. So a file says once what it is for, in itself.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- files (?P<folders>[^>]+?) -->\n).*?(<!-- end of files -->)", re.S)
#: Files whose work is the same in every folder, told once in components/README.md.
FOUR = ("config.py", "component.py", "stage.py", "__init__.py")


def sources() -> list[Path]:
    """Every Python file of the product and its tests, relative to the top."""
    tops = ("components", "pipelines", "tests")
    return sorted(path.relative_to(ROOT) for top in tops for path in (ROOT / top).rglob("*.py"))


def readmes() -> list[Path]:
    """Every README that holds a list."""
    places = (ROOT, *(ROOT / top for top in ("components", "pipelines", "tests")))
    found = {
        path for place in places for path in place.rglob("README.md") if ".venv" not in path.parts
    }
    return sorted(path for path in found if BLOCK.search(path.read_text()))


def purpose(path: Path) -> str:
    """The first sentence of a module's docstring, on one line and without its full stop."""
    docstring = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
    sentence = " ".join(docstring.split("\n\n")[0].split())
    end = re.search(r"\.(?= [A-Z]|$)", sentence)
    return (sentence[: end.start()] if end else sentence).replace("``", "`")


def members(folder: str) -> Iterator[Path]:
    """The files that a list of ``folder`` names."""
    deep = folder.endswith("/**")
    top = ROOT / folder.removesuffix("/**")
    for path in sorted(top.rglob("*.py") if deep else top.glob("*.py")):
        stage = (path.parent / "config.py").exists() and path.parent.parent.name == "components"
        if path.name != "__init__.py" and not (stage and path.name in FOUR):
            yield path.relative_to(ROOT)


def listing(folders: str) -> str:
    """The lines of one list: a heading for each folder where there are several, a line a file."""
    lines: list[str] = []
    for folder in folders.split():
        paths = list(members(folder))
        groups: dict[Path, list[Path]] = {}
        for path in paths:
            groups.setdefault(path.parent, []).append(path)
        for place in sorted(groups):
            if len(groups) > 1 or len(folders.split()) > 1:
                about = (
                    purpose(place / "__init__.py")
                    if (ROOT / place / "__init__.py").exists()
                    else ""
                )
                lines += ["", f"**{place}/** {about}".rstrip(), ""]
            lines += [f"* `{path.name}`: {purpose(path)}" for path in groups[place]]
    return "\n".join(lines).strip("\n") + "\n"


def written(text: str) -> str:
    """A README's text with its lists as they should be."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{listing(match['folders'])}\n{match[3]}", text)


def main() -> None:
    """Write every list anew."""
    for path in readmes():
        path.write_text(written(path.read_text()))


if __name__ == "__main__":
    main()
