"""The embedded store starts, stops, excludes a second user, and survives being killed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from components.lib.store import ObjectStore, StoreError
from components.lib.store.embedded import EmbeddedStore, free_ports

# Starts the store of a workspace and writes objects until it is killed. Each name goes into the
# journal only after the store has acknowledged the object.
WRITER = """
import os, random, sys
from pathlib import Path
from components.lib.store.embedded import EmbeddedStore

workspace, journal, seed = Path(sys.argv[1]), open(sys.argv[2], "a"), int(sys.argv[3])
with EmbeddedStore(workspace) as server:
    store = server.client()
    print(server.pid, flush=True)
    for number in range(10**6):
        data = random.Random(number).randbytes(number * 997 % 300_000)
        info = store.put_bytes(f"s3://cosmos/{seed}/{number}", data)
        journal.write(f"{info.uri} {info.sha256}\\n")
        journal.flush()
"""


def gone(pid: int, within_s: float = 10.0) -> bool:
    """True once no such process runs (a zombie counts as gone)."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def start_writer(workspace: Path, journal: Path, seed: int) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(workspace), str(journal), str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return process, int(line)


@pytest.fixture
def quick_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that nobody starts again need not drain their queue of deletions."""
    monkeypatch.setattr("components.lib.store.embedded.STOP_S", 0.2)


@pytest.mark.usefixtures("quick_stop")
@pytest.mark.parametrize("victim", ["owner", "server", "both"])
def test_nothing_acknowledged_is_lost_when_killed(tmp_path: Path, victim: str) -> None:
    journal = tmp_path / "journal"
    generator = random.Random(victim)
    for seed in range(2):
        process, server = start_writer(tmp_path / "workspace", journal, seed)
        try:
            time.sleep(generator.uniform(0.3, 1.0))
            for pid in {"owner": [process.pid], "server": [server], "both": [server, process.pid]}[
                victim
            ]:
                os.kill(pid, signal.SIGKILL)
            assert gone(server), "the server must not outlive its owner"
        finally:
            process.kill()
            process.communicate()
    acknowledged = [line.split() for line in journal.read_text().splitlines()]
    assert len(acknowledged) >= 10
    with EmbeddedStore(tmp_path / "workspace") as server_again:
        store = server_again.client()
        for uri, digest in acknowledged:
            assert hashlib.sha256(store.get_bytes(uri)).hexdigest() == digest
        listed = {info.uri for info in store.list("s3://cosmos/")}
        assert listed >= {uri for uri, _ in acknowledged}
        for uri in listed:
            store.get_bytes(uri)
        store.put_bytes("s3://cosmos/after", b"still writable")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_owner_takes_the_server_with_it(tmp_path: Path, number: int) -> None:
    process, server = start_writer(tmp_path / "workspace", tmp_path / "journal", 0)
    process.send_signal(number)
    try:
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert gone(server, within_s=0.2 if number == signal.SIGINT else 10)


def test_contents_and_credentials_outlive_a_restart(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path, buckets=["mine"]) as server:
        keys = (server.env["AWS_ACCESS_KEY_ID"], server.env["AWS_SECRET_ACCESS_KEY"])
        ObjectStore.from_env(server.env).put_bytes("s3://mine/x", b"kept")
        assert list(server.client().list("s3://mine/")) != []
        pid = server.pid
        assert pid is not None
    assert gone(pid, within_s=0.1)
    assert server.env == {} and server.pid is None
    assert stat.S_IMODE((tmp_path / "store" / "s3.json").stat().st_mode) == 0o600
    with EmbeddedStore(tmp_path, buckets=["mine"]) as server:
        assert keys == (server.env["AWS_ACCESS_KEY_ID"], server.env["AWS_SECRET_ACCESS_KEY"])
        assert server.client().get_bytes("s3://mine/x") == b"kept"


def test_a_second_user_is_told_who_holds_the_workspace(
    embedded_store: EmbeddedStore, tmp_path: Path
) -> None:
    workspace = embedded_store.folder.parent
    with pytest.raises(StoreError, match=f"{workspace} .*process {os.getpid()}"):
        EmbeddedStore(workspace).start()
    assert embedded_store.client().stat("s3://cosmos/none") is None


@pytest.mark.usefixtures("quick_stop")
def test_an_exception_inside_stops_the_server_and_frees_the_workspace(tmp_path: Path) -> None:
    pids = []
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), EmbeddedStore(tmp_path) as server:
            pids.append(server.pid)
            raise ZeroDivisionError
    assert all(pid is not None and gone(pid, 0.1) for pid in pids)


@pytest.mark.usefixtures("quick_stop")
def test_a_server_started_by_a_thread_that_ended_goes_on(tmp_path: Path) -> None:
    server = EmbeddedStore(tmp_path)
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    try:
        time.sleep(0.3)
        server.client().put_bytes("s3://cosmos/x", b"x")
    finally:
        server.stop()


def test_only_loopback_listens_and_telemetry_is_off(embedded_store: EmbeddedStore) -> None:
    pid = embedded_store.pid
    sockets = {
        str(entry.readlink())[8:-1]
        for entry in Path(f"/proc/{pid}/fd").iterdir()
        if entry.is_symlink() and str(entry.readlink()).startswith("socket:[")
    }
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                listening.append(fields[1].split(":")[0])
    assert len(listening) >= 8, "four services with two ports each"
    assert set(listening) == {"0100007F"}, "127.0.0.1 in the kernel's byte order"
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    assert "-master.telemetry=false" in command


def test_ports_come_with_free_partners() -> None:
    import socket

    ports = free_ports(4)
    assert len(set(ports)) == 4
    for port in ports:
        for number in (port, port + 10_000):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", number))


def test_a_typo_in_a_bucket_name_creates_no_bucket(embedded_store: EmbeddedStore) -> None:
    with pytest.raises(StoreError, match="bucket 'cosmso' does not exist"):
        embedded_store.client().put_bytes("s3://cosmso/x", b"x")


def test_parts_of_uploads_that_were_killed_are_dropped(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as server:
        session = server.client().session
        upload = session.start_upload("s3://cosmos/x", {})
        body = b"x" * 100_000
        digest = hashlib.sha256(body).hexdigest()
        query = {"partNumber": "1", "uploadId": upload}
        session.put("s3://cosmos/x", body, digest, {}, query)
        assert len(session.client.unfinished_uploads("cosmos")) == 1
    with EmbeddedStore(tmp_path) as server:
        client = server.client().session.client
        assert client.unfinished_uploads("cosmos") == []
        assert server.client().stat("s3://cosmos/x") is None


def test_a_disk_that_is_full_is_said_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.lib.store.embedded.LEAST_FREE", 2**60)
    with pytest.raises(StoreError, match=r"Only [\d.]+ GiB are free at"):
        EmbeddedStore(tmp_path).start()


@pytest.mark.usefixtures("quick_stop")
def test_a_key_that_may_only_read(tmp_path: Path) -> None:
    pair = {"accessKey": "OWNER", "secretKey": "owner-secret"}
    reader = {"accessKey": "READER", "secretKey": "reader-secret"}
    identities = [
        {"name": "owner", "credentials": [pair], "actions": ["Admin", "Read", "Write", "List"]},
        {"name": "reader", "credentials": [reader], "actions": ["Read", "List"]},
    ]
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "s3.json").write_text(json.dumps({"identities": identities}))
    with EmbeddedStore(tmp_path) as server:
        server.client().put_bytes("s3://cosmos/x", b"x")
        limited = server.client().with_settings(access_key="READER", secret_key="reader-secret")
        assert limited.get_bytes("s3://cosmos/x") == b"x"
        for call in (
            lambda: limited.put_bytes("s3://cosmos/y", b"y"),
            lambda: limited.delete("s3://cosmos/x"),
        ):
            with pytest.raises(StoreError, match=r"'READER' .*s3://cosmos/"):
                call()
        assert server.client().get_bytes("s3://cosmos/x") == b"x"
