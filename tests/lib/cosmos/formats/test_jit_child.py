"""TorchScript archives are code: what the process that opens them can see and do."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import torch

from components.lib.contract import UserError
from components.lib.cosmos.formats import tiny
from components.lib.cosmos.formats.jit import importing

SPY = """
import json, os, resource, socket, sys
sys.argv[1:]
exec(open({child!r}).read().split("def main")[0])
confine(int(sys.argv[3]), int(sys.argv[4]))
try:
    socket.create_connection(("127.0.0.1", {port}), timeout=2).close()
    network = True
except OSError:
    network = False
seen = {{
    "environment": dict(os.environ),
    "network": network,
    "file_size": resource.getrlimit(resource.RLIMIT_FSIZE)[0],
    "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
    "isolated": sys.flags.isolated,
}}
open({report!r}, "w").write(json.dumps(seen))
"""


def test_the_child_sees_no_credentials_and_is_limited(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json
    import socket

    secrets = {"HF_TOKEN": "hf_secret", "AWS_SECRET_ACCESS_KEY": "s3cret", "WANDB_API_KEY": "w"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = Path(importing.__file__).with_name("child.py")
        spy = tmp_path / "spy.py"
        text = SPY.format(
            child=str(child), port=server.getsockname()[1], report=str(tmp_path / "seen.json")
        )
        spy.write_text(text)
        monkeypatch.setattr(importing, "_CHILD", spy)
        with pytest.raises(UserError, match="gave no weights"):
            importing.read_archive(checkpoints / tiny.CV_FOLDER / "encoder.jit")
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert not set(secrets) & set(seen["environment"])
    assert not any(
        value in json.dumps(seen["environment"]) for value in secrets.values() if len(value) > 1
    )
    assert seen["core"] == 0
    assert seen["file_size"] < 200 * 1024**2
    assert seen["isolated"] == 1
    if os.geteuid() == 0:  # an ordinary user may be denied a network namespace
        assert seen["network"] is False


def test_an_archive_that_never_ends_is_stopped(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = tmp_path / "endless.py"
    endless.write_text("import time\ntime.sleep(3600)\n")
    monkeypatch.setattr(importing, "_CHILD", endless)
    with pytest.raises(UserError, match="took longer than 3 s and was stopped"):
        importing.read_archive(checkpoints / tiny.CV_FOLDER / "encoder.jit", timeout_s=3)
    left = psutil.Process().children(recursive=True)
    assert not [child for child in left if str(endless) in child.cmdline()]


def test_the_state_dict_comes_out_bit_for_bit(checkpoints: Path) -> None:
    path = checkpoints / tiny.DV_FOLDER / "encoder.jit"
    wanted = torch.jit.load(path).state_dict()
    got = importing.read_archive(path)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
