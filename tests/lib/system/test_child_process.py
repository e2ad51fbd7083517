"""Children end with their parent, see no secrets, and take no more than they may."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from components.lib.system.child_process import ROOT, bound_to_parent, harmless_environment

PARENT = """
import subprocess, sys, time
from components.lib.system.child_process import bound_to_parent
how = sys.argv[1]
if how == "bound":
    command = bound_to_parent(["/bin/sleep", "600"])
else:
    code = (
        "from components.lib.system import child_process as c; import time; "
        f"c.{how}(); time.sleep(600)"
    )
    command = [sys.executable, "-c", code]
child = subprocess.Popen(command)
time.sleep(0.7)
print(child.pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stream:  # noqa: PTH123 - it may vanish meanwhile
        return stream.read().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("how", ["die_with_parent", "end_with_parent", "bound"])
def test_a_child_ends_when_its_parent_is_killed(how: str) -> None:
    command = [sys.executable, "-c", PARENT, how]
    parent = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=harmless_environment()
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    limit = time.monotonic() + 30
    while alive(child) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not alive(child)


def test_what_is_bound_to_another_parent_does_not_start() -> None:
    *command, parent, program = bound_to_parent(["/bin/true"])
    assert int(parent) == os.getpid()
    assert subprocess.run([*command, "1", program], check=False).returncode == 1
    assert subprocess.run([*command, parent, program], check=False).returncode == 0


def test_the_environment_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    environment = harmless_environment()
    assert "hidden" not in environment.values()
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/elsewhere"]
    assert (ROOT / "components" / "lib" / "system" / "child_process.py").is_file()


def test_memory_and_files_are_bounded() -> None:
    code = (
        "from components.lib.system.child_process import bound_resources\n"
        "bound_resources(1 << 30)\n"
        "try:\n    bytearray(2 << 30)\nexcept MemoryError:\n    print('memory', flush=True)\n"
        "import signal, tempfile; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try:\n    f = tempfile.TemporaryFile(); f.write(b'x'); f.flush()\n"
        "except OSError:\n    print('file', flush=True)\n    import os; os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=harmless_environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["memory", "file"], done.stderr
