"""What a node fetches of a checkpoint: what its ranks need, once, and never half of it.

Two processes save a checkpoint; two others load copies of it in turn, whole and damaged.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from components.lib.train.checkpoint.shard_files import INDEX

SCRIPT = Path(__file__).with_name("restore_ranks.py")
SAVED = [f"shard-{rank:05d}-{number:05d}.safetensors" for rank in (0, 1) for number in (1, 2, 3)]


def whole(run: Path) -> None:
    """Nothing is damaged."""


def without_a_shard(run: Path) -> None:
    [shard] = run.rglob(SAVED[4])
    shard.unlink()


def other_bytes(name: str) -> Callable[[Path], None]:
    """The last byte of a file becomes another one."""

    def damage(run: Path) -> None:
        [shard] = run.rglob(name)
        shard.write_bytes(shard.read_bytes()[:-1] + b"?")

    return damage


def without_the_first_shard(run: Path) -> None:
    [shard] = run.rglob(SAVED[0])
    shard.unlink()


def without_an_index(run: Path) -> None:
    """As runs left their checkpoints before there was one."""
    [index] = run.rglob(INDEX)
    index.unlink()
    [manifest] = (run / "run").rglob("manifest.json")
    content = json.loads(manifest.read_text())
    content["files"] = [entry for entry in content["files"] if entry["path"] != INDEX]
    manifest.write_text(json.dumps(content))


class Load(NamedTuple):
    """What is done to a checkpoint before ranks load it, and how they are laid out."""

    damage: Callable[[Path], None] = whole
    world: int = 2
    dim: int = 0
    per_node: int = 1
    refusing: int = -1


LOADS = {
    "same layout": Load(),
    "other layout": Load(dim=1),
    "alone": Load(world=1),
    "one node": Load(dim=1, per_node=2),
    "missing": Load(without_a_shard),
    "other bytes": Load(other_bytes(SAVED[4])),
    "index": Load(other_bytes(INDEX)),
    # the missing shard is found by the other rank in the same moment
    "refused": Load(without_the_first_shard, refusing=1),
    "no index": Load(without_an_index),
}


def order(folder: Path, what: str, load: Load) -> dict[str, Any]:
    """What `restore_ranks.py` reads."""
    return {
        "what": what,
        "run": str(folder / "run"),
        "rendezvous": str(folder / f"rendezvous-{what}"),
        **{"world": load.world, "dim": load.dim},
        **{"per_node": load.per_node, "refusing": load.refusing},
    }


def run_ranks(path: Path, orders: list[dict[str, Any]]) -> None:
    """Two ranks that carry out the orders, which are written to ``path``."""
    path.write_text(json.dumps(orders))
    commands = [[sys.executable, str(SCRIPT), str(path), str(rank)] for rank in (0, 1)]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    said = [child.communicate(timeout=240)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], "\n".join(said)[-3000:]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each rank reports of each of LOADS."""
    root = tmp_path_factory.mktemp("restore")
    saved = root / "saved"
    saved.mkdir()
    run_ranks(root / "save.json", [order(saved, "save", Load())])
    folders = {name: root / name for name in LOADS}
    for name, load in LOADS.items():
        shutil.copytree(saved, folders[name])
        load.damage(folders[name])
    run_ranks(
        root / "load.json", [order(folders[name], "load", load) for name, load in LOADS.items()]
    )
    return {
        name: [
            json.loads((folders[name] / f"rank-{rank}.json").read_text())
            for rank in range(load.world)
        ]
        for name, load in LOADS.items()
    }


def test_a_node_fetches_its_own_part_of_a_layout_that_stayed(reports: dict[str, Any]) -> None:
    first, second = reports["same layout"]
    assert first == {"right": True, "fetched": SAVED[:3]}
    assert second == {"right": True, "fetched": SAVED[3:]}


def test_another_layout_gets_all_that_it_needs(reports: dict[str, Any]) -> None:
    """Each rank then needs a column of every file."""
    for report in reports["other layout"]:
        assert report == {"right": True, "fetched": SAVED}
    [alone] = reports["alone"]
    assert alone == {"right": True, "fetched": SAVED}


def test_ranks_of_a_node_share_the_work(reports: dict[str, Any]) -> None:
    first, second = reports["one node"]
    assert first["right"] and second["right"]
    assert len(first["fetched"]) == len(second["fetched"]) == 3
    assert sorted(first["fetched"] + second["fetched"]) == SAVED


@pytest.mark.parametrize(
    ("what", "name"), [("missing", SAVED[4]), ("other bytes", SAVED[4]), ("index", INDEX)]
)
def test_all_ranks_refuse_what_one_of_them_finds_damaged(
    what: str, name: str, reports: dict[str, Any]
) -> None:
    first, second = reports[what]
    assert first["damaged"] == second["damaged"]
    assert name in first["damaged"]


def test_a_store_that_refuses_is_no_damage(reports: dict[str, Any]) -> None:
    """An earlier checkpoint is for damage only: what cannot be fetched now may be tomorrow."""
    for report in reports["refused"]:
        assert report["stopped"] == "The store refused."


def test_a_checkpoint_without_an_index_is_read_whole(reports: dict[str, Any]) -> None:
    for report in reports["no index"]:
        assert report["right"] and report["fetched"] == SAVED
