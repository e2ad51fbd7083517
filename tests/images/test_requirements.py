"""Each image has what its stages import, and nothing that no lock pins."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = ("data", "preprocess", "train")
# Needs of a listed package, which come with it.
CARRIED = {
    "certifi": "minio",
    "urllib3": "minio",
    "httpx": "huggingface_hub",
    "httpx2": "huggingface_hub",
}

# Used where they are installed: with an error that says so, or in place of something slower.
OPTIONAL = {"numcodecs", "flash_attn"}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required(image: str) -> set[str]:
    text = (ROOT / "images" / image / "requirements.in").read_text()
    lines = [line.split("[")[0] for line in text.splitlines() if line and line[0] != "#"]
    return {normalised(line) for line in lines}


def stages(image: str) -> list[str]:
    """The stages whose component.py names the image."""
    constant = f"images.{image.upper()},"
    return [
        path.parent.name
        for path in (ROOT / "components").glob("*/component.py")
        if constant in path.read_text()
    ]


def source(module: str) -> Path | None:
    path = ROOT / Path(*module.split("."))
    for candidate in (path / "__init__.py", path.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def foreign_imports(starts: list[str]) -> dict[str, str]:
    """Top-level package -> one of our modules that imports it, over everything reachable."""
    waiting, seen, foreign = list(starts), set(), {}
    while waiting:
        module = waiting.pop()
        path = source(module)
        if module in seen or path is None:
            continue
        seen.add(module)
        for name in imports(path):
            top = name.split(".")[0]
            if top == "components":
                waiting.append(name)
            elif top not in sys.stdlib_module_names:
                foreign[top] = module
    return foreign


def stage_modules(stage: str) -> list[str]:
    folder = ROOT / "components" / stage
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in folder.rglob("*.py")
        if path.name not in ("component.py", "__init__.py")
    ]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_holds_what_its_stages_import(image: str) -> None:
    starts = ["components.harness.task"]
    for stage in stages(image):
        starts += stage_modules(stage)
    if image == "train":
        starts += ["components.lib.train.__main__"]
    assert len(starts) > 1
    providers = importlib.metadata.packages_distributions()
    have = required(image)
    missing = {}
    for top, module in foreign_imports(starts).items():
        names = {normalised(name) for name in providers.get(top, [top])}
        if top in CARRIED:
            names.add(normalised(CARRIED[top]))
        if top not in OPTIONAL and not names & have:
            missing[top] = module
    assert missing == {}


def test_data_files_are_installed_with_the_code() -> None:
    """What an image installs is the package's modules and the data files of these suffixes."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["*"]
    data = [path for path in (ROOT / "components").rglob("*") if path.suffix in (".j2", ".css")]
    assert any(path.suffix == ".j2" for path in data)
    assert [path.name for path in data if not any(path.match(p) for p in patterns)] == []


@pytest.mark.parametrize("image", IMAGES)
def test_everything_is_pinned_by_the_lock(image: str) -> None:
    lock = (ROOT / "requirements" / "lock.txt").read_text().splitlines()
    pinned = {normalised(line.split("==")[0]) for line in lock if "==" in line}
    assert required(image) <= pinned


def test_the_kernels_are_pinned_and_none_is_of_the_lock() -> None:
    """They are installed without dependencies, so nothing else may decide on versions."""
    lines = (ROOT / "requirements" / "kernels.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin) for pin in pins)
    lock = (ROOT / "requirements" / "lock.txt").read_text().splitlines()
    locked = {normalised(line.split("==")[0]) for line in lock if "==" in line}
    assert not {pin.split("==")[0] for pin in pins} & locked


@pytest.mark.parametrize("image", IMAGES)
def test_a_dockerfile_pins_its_base_and_drops_root(image: str) -> None:
    text = (ROOT / "images" / image / "Dockerfile").read_text()
    assert re.search(r"^ARG BASE=\S+@sha256:[0-9a-f]{64}$", text, re.M)
    froms = re.findall(r"^FROM (\S+)", text, re.M)
    assert froms == ["${BASE}", "packages", "${BASE}"]
    assert "USER 10001:10001" in text.split("FROM ${BASE}")[-1]
    assert "lock.txt" in text
    assert "# syntax=" not in text  # it would need a registry


def test_the_finder_follows_imports(tmp_path: Path) -> None:
    """An oracle that finds nothing proves nothing."""
    found = foreign_imports(["components.lib.store.client"])
    assert found["minio"].startswith("components.lib.store.")
    assert "pathlib" not in found


def test_images_are_named_by_the_version() -> None:
    from components import images

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for image in IMAGES:
        name = getattr(images, image.upper())
        assert name == f"cosmos-pipelines/{image}-python:{project['version']}"
    named = {
        match[0]
        for path in (ROOT / "manifests").rglob("*.yaml")
        for match in re.finditer(r"cosmos-pipelines/[a-z]+-python:[^\s\"]+", path.read_text())
    }
    assert named
    assert named <= {images.DATA, images.PREPROCESS, images.TRAIN}
