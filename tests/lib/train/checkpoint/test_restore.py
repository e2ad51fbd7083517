"""What a node fetches of a checkpoint: what its ranks need, once, and never half of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from components.lib.train.checkpoint.shard_files import INDEX

SCRIPT = Path(__file__).with_name("restore_ranks.py")
SAVED = [f"shard-{rank:05d}-{number:05d}.safetensors" for rank in (0, 1) for number in (1, 2, 3)]


def ranks(
    folder: Path, what: str, world: int, *, dim: int = 0, per_node: int = 1, refusing: int = -1
) -> Any:
    """The reports of so many ranks."""
    folder.mkdir(exist_ok=True)
    order = {"what": what, "world": world, "dim": dim, "per_node": per_node, "refusing": refusing}
    path = folder / "order.json"
    rendezvous = str(folder / f"rendezvous-{uuid4().hex}")
    path.write_text(json.dumps({**order, "run": str(folder / "run"), "rendezvous": rendezvous}))
    commands = [[sys.executable, str(SCRIPT), str(path), str(rank)] for rank in range(world)]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    said = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0] * world, "\n".join(said)[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(world)]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that left a checkpoint of three files each."""
    folder = tmp_path_factory.mktemp("restore") / "saved"
    ranks(folder, "save", 2)
    return folder


@pytest.fixture
def saved(original: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(original, tmp_path / "saved"))


def test_a_node_fetches_its_own_part_of_a_layout_that_stayed(saved: Path) -> None:
    first, second = ranks(saved, "load", 2)
    assert first == {"right": True, "fetched": SAVED[:3]}
    assert second == {"right": True, "fetched": SAVED[3:]}


def test_another_layout_gets_all_that_it_needs(saved: Path) -> None:
    """Each rank then needs a column of every file."""
    for report in ranks(saved, "load", 2, dim=1):
        assert report == {"right": True, "fetched": SAVED}
    [alone] = ranks(saved, "load", 1)
    assert alone == {"right": True, "fetched": SAVED}


def test_ranks_of_a_node_share_the_work(saved: Path) -> None:
    first, second = ranks(saved, "load", 2, dim=1, per_node=2)
    assert first["right"] and second["right"]
    assert len(first["fetched"]) == len(second["fetched"]) == 3
    assert sorted(first["fetched"] + second["fetched"]) == SAVED


@pytest.mark.parametrize("what", ["missing", "other bytes", "index"])
def test_all_ranks_refuse_what_one_of_them_finds_damaged(what: str, saved: Path) -> None:
    [shard] = saved.rglob(INDEX if what == "index" else SAVED[4])
    if what == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    first, second = ranks(saved, "load", 2)
    assert first["damaged"] == second["damaged"]
    assert shard.name in first["damaged"]


def test_a_store_that_refuses_is_no_damage(saved: Path) -> None:
    """An earlier checkpoint is for damage only: what cannot be fetched now may be tomorrow."""
    [shard] = saved.rglob(SAVED[0])
    shard.unlink()  # which the other rank finds in the same moment
    for report in ranks(saved, "load", 2, refusing=1):
        assert report["stopped"] == "The store refused."


def test_a_checkpoint_without_an_index_is_read_whole(saved: Path) -> None:
    """As runs left them before there was one."""
    [index] = saved.rglob(INDEX)
    index.unlink()
    [manifest] = (saved / "run").rglob("manifest.json")
    content = json.loads(manifest.read_text())
    content["files"] = [entry for entry in content["files"] if entry["path"] != INDEX]
    manifest.write_text(json.dumps(content))
    for report in ranks(saved, "load", 2):
        assert report["right"] and report["fetched"] == SAVED
