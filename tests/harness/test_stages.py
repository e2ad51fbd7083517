"""A folder with a config.py is a stage; nothing else has to say so."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import components
from components.harness.overrides import check_overrides, make_config
from components.harness.stages import (
    stage_config,
    stage_named,
    stage_names,
    stage_run,
    stages_in_order,
)
from components.lib.contract import UserError
from components.lib.progress import LineProgress
from components.lib.store import ObjectStore
from pipelines.stage_list import stage_list

CONFIG = """
from components.lib.contract import StageConfig, manifest_input
from components.lib.resources import Resources
from components.lib.stage import StageSpec

SPEC = StageSpec(name="colour_grading", version="1", kind="graded-videos")
RESOURCES = Resources(cpu="2", memory="4Gi")

class CONFIG(StageConfig):
    videos: str = manifest_input("Videos of video_discovery.", kinds=("videos",))
    embeddings: str = manifest_input("Of prompt_embedding.", kinds=("prompt-embeddings",))
    warmth: int = 3
"""
STAGE = '''"""Grade the colours of ``videos``.

How is not for this test to say.
"""
from components.colour_grading.config import SPEC
from components.lib.stage import execute

def run(config, store, progress):
    def work(inputs, output):
        output.put_bytes("warmth", str(config.warmth).encode())
    return execute(SPEC, config, store, progress, work)
'''


@pytest.fixture
def new_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder beside the stages that there are."""
    folder = tmp_path / "colour_grading"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "config.py").write_text(CONFIG)
    (folder / "stage.py").write_text(STAGE)
    monkeypatch.setattr(components, "__path__", [*components.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield folder
    for name in [name for name in sys.modules if name.startswith("components.colour_grading")]:
        del sys.modules[name]
    vars(components).pop("colour_grading", None)


def test_a_new_folder_is_a_stage_at_its_place_in_a_run(new_stage: Path) -> None:
    order = stages_in_order()
    assert set(order) == set(stage_names()) and "colour_grading" in order
    assert order.index("prompt_embedding") < order.index("colour_grading")
    assert order.index("colour_grading") < order.index("evaluation")  # a round earlier
    assert "* [colour_grading](components/colour_grading/README.md): Grade the colours of `vid" in (
        stage_list()
    )


def test_a_new_stage_has_overrides_and_runs(
    new_stage: Path, store: ObjectStore, storage_root: str, tmp_path: Path
) -> None:
    check_overrides(["colour_grading.warmth=4"])
    with pytest.raises(UserError, match="Did you mean 'warmth'"):
        check_overrides(["colour_grading.warmht=4"])
    with pytest.raises(UserError, match="Did you mean 'colour_grading'"):
        stage_config("color_grading")
    values = {"storage_root": storage_root, "videos": "", "embeddings": ""}
    config = make_config("colour_grading", values, ["colour_grading.warmth=4"])
    manifest = stage_run("colour_grading")(config, store, LineProgress()).manifest
    assert (manifest.kind, manifest.config) == ("graded-videos", {"warmth": 4})


def test_a_stage_whose_input_nobody_makes_comes_last(new_stage: Path) -> None:
    text = CONFIG.replace('"prompt-embeddings"', '"what-nobody-makes"')
    (new_stage / "config.py").write_text(text)
    assert stages_in_order()[-1] == "colour_grading"


@pytest.mark.parametrize("name", stage_names())
def test_every_stage_is_whole(name: str) -> None:
    stage = stage_named(name)
    assert stage.spec.name == name
    folder = Path(components.__file__).parent / name
    assert all((folder / file).is_file() for file in ("stage.py", "component.py", "README.md"))
    made = {stage_named(other).spec.kind for other in stage_names()}
    for field, kinds in stage.config.input_kinds().items():
        assert kinds and made.issuperset(kinds), field


def test_an_unknown_stage_gets_the_list_in_the_order_of_a_run() -> None:
    with pytest.raises(UserError, match=r"There are: checkpoint_fetch, video.*promotion"):
        stage_named("zzz")


@pytest.mark.parametrize(
    "lines",
    [
        "from components.harness.stages import stage_names\nassert len(stage_names()) >= 8",
        "import sys; sys.argv = ['cosmos-pipelines', '--help']\nfrom pipelines.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code",
        "import sys; sys.argv = ['cosmos-pipelines', 'stage', '--help']\n"
        "from pipelines.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code",
    ],
    ids=["names", "help", "help of stage"],
)
def test_names_and_help_import_no_stage(lines: str) -> None:
    script = (
        f"{lines}\nimport sys\n"
        f"print([m for m in sys.modules if m.split('.')[1:2] and m.split('.')[0] == 'components'"
        f" and m.split('.')[1] in {stage_names()!r}], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"
