"""Build our images on a local base, for the tests that run them.

COSMOS_TEST_BASE names the base (Debian with Python 3.11), which is made from this machine's own
Debian mirror when it is not there; COSMOS_TEST_WHEELS a folder of wheels that pip may use besides
its index, for example a CPU build of torch.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from components.lib.store.embedded import free_ports

ROOT = Path(__file__).parents[2]
BASE = os.environ.get("COSMOS_TEST_BASE", "local/python:bookworm")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
WHEELS = os.environ.get("COSMOS_TEST_WHEELS") or os.environ.get("PIP_FIND_LINKS")


def ensure_base() -> None:
    """Make the base image with mmdebstrap unless Docker has it: no registry is needed.

    The machine's CA bundle goes in, so that pip trusts the same mirrors in a build as outside.
    """
    found = subprocess.run(["docker", "image", "inspect", BASE], capture_output=True, check=False)
    if found.returncode == 0:
        return
    codename = re.search(r"VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text())
    assert codename, "the base can be made on Debian only; set COSMOS_TEST_BASE"
    suites = {codename[1], f"{codename[1]}-updates", f"{codename[1]}-security"}
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    targets = {tuple(line.split()) for line in listed if len(line.split()) == 3}
    sources = sorted(
        f"deb {uri} {suite} main" for uri, suite, part in targets
        if suite in suites and part == "main"
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sources").write_text("\n".join(sources) + "\n")
        packages = "python3,python3-venv,ca-certificates"
        steps: list[list[str | Path]] = [
            ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}",
             codename[1], folder / "base.tar", folder / "sources"],
            ["docker", "import", folder / "base.tar", f"{BASE}-bare"],
            ["docker", "build", "-q", "-t", BASE, folder / "context"],
        ]  # fmt: skip
        (folder / "context").mkdir()
        bundle = Path("/etc/ssl/certs/ca-certificates.crt")
        (folder / "context" / "ca.crt").write_bytes(bundle.read_bytes())
        (folder / "context" / "Dockerfile").write_text(
            f"FROM {BASE}-bare\nCOPY ca.crt {bundle}\nENV PIP_CERT={bundle} LANG=C.UTF-8\n"
        )
        for step in steps:
            env = {**os.environ, "DOCKER_BUILDKIT": "0"}
            done = subprocess.run(step, capture_output=True, text=True, check=False, env=env)
            assert done.returncode == 0, done.stderr[-2000:]


def build(name: str, tag: str) -> str:
    """Build image ``name`` as ``tag``; returns what images/build printed about its size."""
    (line,) = build_all({name: tag})
    return line


def build_all(tags: Mapping[str, str]) -> Iterator[str]:
    """Build each image as its tag, two at a time: pip, which takes most of it, uses one core.

    Yields what images/build printed about the size of each, in the order given.
    """
    ensure_base()
    with served(WHEELS) as links, ThreadPoolExecutor(2) as pool:
        yield from pool.map(lambda name: _build(name, tags[name], links), tags)


def _build(name: str, tag: str, links: str | None) -> str:
    # Without a folder of wheels torch's own index gives a CPU build; PyPI's has 3 GB of CUDA.
    index = "" if links else CPU_INDEX
    arguments = f"--network host --build-arg BASE={BASE} --build-arg PIP_EXTRA_INDEX_URL={index}"
    if name == "preprocess":
        arguments += " --build-arg COMPILER= --build-arg KERNELS="
    if links:
        arguments += f" --build-arg PIP_FIND_LINKS={links}"
    env = {**os.environ, "TAG": tag, "BUILD_ARGS": arguments, "DOCKER_BUILDKIT": "0"}
    done = subprocess.run(
        [ROOT / "images" / "build", name], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


@contextmanager
def served(folder: str | None) -> Iterator[str | None]:
    """A folder over HTTP on loopback; its address, or None without a folder.

    The port does not change from build to build, because it is part of Docker's cache key.
    """
    if folder is None or not Path(folder).is_dir():
        yield None
        return
    port = 18977 if _free(18977) else free_ports(1)[0]
    child = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}/"
        for _ in range(100):
            try:
                urllib.request.urlopen(address, timeout=1).close()
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield address
    finally:
        child.terminate()
        child.wait()


def _free(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def run(image: str, *command: str, env: Mapping[str, str] | None = None) -> str:
    """Output of a command in a container as a cluster starts it: read-only root, /tmp writable."""
    variables = [part for key, value in (env or {}).items() for part in ("-e", f"{key}={value}")]
    done = subprocess.run(
        ["docker", "run", "--rm", "--read-only", "--tmpfs", "/tmp:exec", "--cap-drop", "ALL",
         "--security-opt", "no-new-privileges", "--network", "host", *variables, image, *command],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
