"""The README's list of stages: name, link and the first line of what each says of itself.

`cosmos-pipelines compile` writes it between two marks and ``--check`` compares it, so a new stage
is listed without an edit. The lines are from the docstrings of the stages' ``stage.py``, read as
text: importing them would import what they work with.
"""

from __future__ import annotations

import ast
from pathlib import Path

import components
from components.harness.stages import stages_in_order
from components.lib.contract import UserError

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- stages: written by `make compile` -->\n", "<!-- end of stages -->\n"


def stage_list() -> str:
    """One line of Markdown for each stage, in the order of a run."""
    return "".join(
        f"* [{name}](components/{name}/README.md): {_first_line(name)}\n"
        for name in stages_in_order()
    )


def with_stage_list(text: str) -> str:
    """The README with the list as it should be. Raises UserError when it has no place for it."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{README} lacks the lines {BEGIN.strip()} and {END.strip()}. Add them.")
    return f"{before}{BEGIN}{stage_list()}{END}{after}"


def _first_line(name: str) -> str:
    folders = [Path(root) / name for root in components.__path__]
    source = next(folder / "stage.py" for folder in folders if folder.is_dir())
    about = ast.get_docstring(ast.parse(source.read_text())) or ""
    return about.partition("\n")[0].replace("``", "`")
