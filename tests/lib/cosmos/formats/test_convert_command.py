"""`cosmos-pipelines convert` and `make-checkpoint` as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.lib.cosmos.dit.network import DIT_PRESETS, DiT
from components.lib.cosmos.formats import tiny
from components.lib.cosmos.model_folder import save_model_folder
from components.lib.manifest import FileEntry, InputRef, Manifest
from components.lib.store import ObjectStore

DIT = DIT_PRESETS["tiny"].model_copy(update={"layers": 1})


def cosmos(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("cosmos-pipelines")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env or dict(os.environ))


def put(
    store: ObjectStore,
    uri: str,
    kind: str,
    files: dict[str, bytes],
    summary: dict[str, object],
    inputs: dict[str, InputRef],
) -> Manifest:
    entries = []
    for path, data in files.items():
        info = store.put_bytes(uri + path, data)
        entries.append(FileEntry(path=path, bytes=len(data), sha256=str(info.sha256)))
    manifest = Manifest.model_validate(
        {
            "kind": kind,
            "stage": "training" if kind == "training-run" else "x",
            "stage_version": "1",
            "address": "abc",
            "uri": uri,
            "files": entries,
            "summary": summary,
            "inputs": inputs,
            "config": {"factory": "tiny_diffusion"} if kind == "training-run" else {},
        }
    )
    store.put_bytes(uri + "manifest.json", manifest.model_dump_json().encode())
    return manifest


def test_a_training_run_is_exported_with_a_card_that_says_what_it_saw(
    store: ObjectStore, store_env: dict[str, str], storage_root: str, tmp_path: Path
) -> None:
    data = put(store, f"{storage_root}/data/", "latent-dataset", {}, {"samples": 42}, {})
    save_model_folder(tmp_path / "m", "dit", "night", DIT, DiT(DIT).state_dict())
    files = {f"model/{path.name}": path.read_bytes() for path in (tmp_path / "m").iterdir()}
    inputs = {
        "data": InputRef(uri=data.uri + "manifest.json", content=data.content),
        "checkpoint": InputRef(uri=f"{storage_root}/gone/manifest.json", content="0" * 64),
    }
    uri = f"{storage_root}/run/"
    put(store, uri, "training-run", files, {"steps": 7}, inputs)
    out = tmp_path / "out"
    done = cosmos("convert", f"{uri}manifest.json", str(out), "--to", "diffusers", env=store_env)
    assert done.returncode == 0, done.stderr
    assert (out / "diffusion_pytorch_model.safetensors").is_file()
    assert json.loads((out / "config.json").read_text())["num_layers"] == 1
    card = (out / "README.md").read_text()
    for fact in ("trained by the run `abc`", "steps: 7", "samples: 42", data.content, data.uri):
        assert fact in card
    assert "setting factory: tiny_diffusion" in card
    assert "(no longer there), content `0000" in card


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere", "out"], "There is no file or folder nowhere"),
        (["{tiny}", "out", "--to", "onnx"], "There is no form 'onnx'"),
        (["{tiny}", "out", "--dtype", "int4"], "There is no dtype 'int4'"),
        (["hf://nvidia/x", "out"], "is neither a path nor a manifest.json"),
    ],
)
def test_mistakes_are_one_sentence(
    checkpoints: Path, tmp_path: Path, arguments: list[str], told: str
) -> None:
    place = str(checkpoints / tiny.DIT_FOLDER)
    words = [
        word.replace("{tiny}", place).replace("out", str(tmp_path / "out")) for word in arguments
    ]
    done = cosmos("convert", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
