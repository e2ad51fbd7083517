"""The plan of the house holds: who may import whom, how large files and folders are, and that every
file is told to newcomers.

The import rules are contracts of import-linter in pyproject.toml. That each of them can fail is
shown here by planting one violation of each in a copy of the sources.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import house

#: contract -> (file to plant in, what to plant)
VIOLATIONS = {
    "pipelines": ("components/harness/task.py", "import pipelines.catalog"),
    "stages": ("components/promotion/gate.py", "import components.evaluation.config"),
    "library": ("components/lib/contract.py", "import components.lib.manifest"),
    "no-orchestrator": ("components/lib/logs.py", "import kubernetes"),
    "no-circles": ("components/lib/train/settings/config.py", "import components.lib.train.engine"),
}
MOST_LINES, MEDIAN_LINES = 600, 150
MOST_FILES = 14
#: Folders whose files are all of one kind, so that a name is enough to choose one.
ONE_KIND = {"pipelines/commands": 40, "tests/servers": 20}


def lint(root: Path, contract: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("lint-imports"))
    command = [program, "--no-cache", "--contract", contract]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("house")
    for path in house.sources():
        if path.parts[0] != "tests":
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(house.ROOT / path, root / path)
    shutil.copy(house.ROOT / "pyproject.toml", root)
    return root


@pytest.mark.parametrize("contract", VIOLATIONS)
def test_each_contract_fails_on_a_planted_violation(copy: Path, contract: str) -> None:
    name, line = VIOLATIONS[contract]
    whole = (copy / name).read_text()
    kept = lint(copy, contract)
    assert kept.returncode == 0, kept.stdout
    (copy / name).write_text(f"{whole}\n{line}\n")
    try:
        broken = lint(copy, contract)
    finally:
        (copy / name).write_text(whole)
    assert broken.returncode == 1
    assert "BROKEN" in broken.stdout


def test_files_are_small() -> None:
    lines = {path: len((house.ROOT / path).read_text().splitlines()) for path in house.sources()}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}
    assert statistics.median(lines.values()) <= MEDIAN_LINES


def test_folders_can_be_taken_in_at_a_glance() -> None:
    files = Counter(path.parent for path in house.sources() if path.name != "__init__.py")
    limits = {folder: ONE_KIND.get(folder.as_posix(), MOST_FILES) for folder in files}
    assert {folder: count for folder, count in files.items() if count > limits[folder]} == {}


@pytest.mark.parametrize(
    "readme", house.readmes(), ids=lambda path: str(path.relative_to(house.ROOT))
)
def test_a_readme_lists_its_files_as_they_are(readme: Path) -> None:
    """`python -m tests.house` writes the lists anew."""
    assert readme.read_text() == house.written(readme.read_text())


def test_every_file_is_told_somewhere() -> None:
    told = {
        path
        for readme in house.readmes()
        for block in house.BLOCK.finditer(readme.read_text())
        for folder in block["folders"].split()
        for path in house.members(folder)
    }
    folders = {path.parent for path in house.sources() if path.parts[0] != "tests"}
    stages = {folder for folder in folders if (house.ROOT / folder / "component.py").exists()}
    left_out = {
        path
        for path in house.sources()
        if path.parts[0] != "tests" and path.name != "__init__.py" and path not in told
        and not (path.parent in stages and path.name in house.FOUR)
    }  # fmt: skip
    assert left_out == set()


def test_every_stage_has_its_four_files() -> None:
    components = house.ROOT / "components"
    stages = [path.parent for path in components.glob("*/component.py")]
    assert len(stages) >= 8
    for stage in stages:
        for name in ("config.py", "component.py", "stage.py", "README.md"):
            assert (stage / name).is_file(), f"{stage.name} has no {name}"


def test_every_module_says_what_it_is_for() -> None:
    """A sentence that fits a line of a list."""
    silent = {}
    for path in house.sources():
        sentence = house.purpose(path)
        if not 8 <= len(sentence) <= 160:
            silent[str(path)] = sentence
    assert silent == {}
