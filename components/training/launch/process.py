"""The `process` launcher: torchrun on this machine, its lines in the step's log as they come.

A rank that dies ends the whole run, and the error carries its last lines. SIGTERM is passed on and
the ranks get ``grace_seconds`` to write a checkpoint. If this process is killed outright, the
kernel kills torchrun, and the ranks die with it (they ask for that themselves).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from types import FrameType
from typing import Any

from components.lib.contract import Progress, ProgressTask, UserError
from components.lib.logs import LINE_MARK
from components.lib.run_files import EXIT_RESUME
from components.lib.training_progress import PROGRESS_VARIABLE, parse_progress
from components.training.launch.interface import LaunchRequest

_KEPT = 400
_PR_SET_PDEATHSIG = 1
_CLOCK = re.compile(r"^\d\d:\d\d:\d\d ")
_ERROR = "error: "
_RANK = re.compile(r"^\[\w+\]:")
_EXCEPTION = re.compile(r"^[\w.]*(Error|Exception)\b.*")
# What torchrun and libraries print around a failure and what says nothing about it.
_NOISE = re.compile(
    r"torch/distributed|elastic|ChildFailedError|^[=\-]{5,}|^\s*$|error_file|Root Cause|"
    r"UserWarning|warnings\.warn|exitcode|^\s*(rank|host|time|traceback)\s*:|^\[[A-Z]\d|\[W\d"
)


class Terminated(SystemExit):
    """The step was told to stop; the ranks wrote a checkpoint first. Exit code 75: start again."""

    def __init__(self) -> None:
        super().__init__(EXIT_RESUME)


def launch(request: LaunchRequest, progress: Progress) -> None:
    """Run the request's command under torchrun on this machine until it ends.

    Raises UserError with the reason and the last lines when a rank failed, and `Terminated` after
    SIGTERM.
    """
    process = subprocess.Popen(
        torchrun_command(request),
        env={
            **os.environ,
            "OMP_NUM_THREADS": _threads(request),
            PROGRESS_VARIABLE: "1",
            **request.env,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        bufsize=1,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
    )
    tail: deque[str] = deque(maxlen=_KEPT)
    with _forward_sigterm(process) as terminated:
        try:
            _follow(process, tail, progress)
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        if terminated:
            raise Terminated
    if code:
        raise UserError(explain(code, list(tail)))


def torchrun_command(request: LaunchRequest) -> list[str]:
    """The command line."""
    if request.nodes > 1:
        raise UserError(
            f"The process launcher runs on one machine, not on {request.nodes} nodes. "
            "Use launcher=pytorchjob or launcher=trainjob."
        )
    return [
        sys.executable,
        *("-m", "torch.distributed.run"),
        "--standalone",
        f"--nproc-per-node={request.ranks_per_node}",
        f"--shutdown-timeout={max(request.grace_seconds, 1)}",
        *request.command,
    ]


def explain(code: int, tail: list[str]) -> str:
    """One message from an exit code and the last lines: our own error line if there is one."""
    for line in reversed(tail):
        if line.startswith(_ERROR):
            return f"Training failed: {line.removeprefix(_ERROR)}"
    raised = [line for line in tail if _EXCEPTION.match(_RANK.sub("", line))]
    told = [line for line in tail if not _NOISE.search(line)]
    lines = "\n  ".join(raised[:1] + told[-12:]) or "it printed nothing"
    killed = " (a rank was killed; was memory short?)" if any("-9" in line for line in tail) else ""
    return f"Training failed with exit code {code}{killed}. Its last lines:\n  {lines}"


def _follow(process: subprocess.Popen[str], tail: deque[str], progress: Progress) -> None:
    assert process.stdout is not None
    done = 0
    with contextlib.ExitStack() as stack:
        task: ProgressTask | None = None
        for raw in process.stdout:
            line = raw.rstrip()
            ours = LINE_MARK in line
            text = _CLOCK.sub("", line.split(LINE_MARK, 1)[1]) if ours else line
            at = parse_progress(text) if ours else None
            tail.append(at.words() if at else text)
            if not ours:
                continue
            if at is None or at.max_steps is None:
                progress.log(text)
                continue
            if task is None:
                done = at.step - 1
                left = at.max_steps - done
                task = stack.enter_context(progress.task("training", left, "steps"))
            task.advance(at.step - done, at.words())
            done = at.step


@contextlib.contextmanager
def _forward_sigterm(process: subprocess.Popen[str]) -> Iterator[list[int]]:
    """Pass SIGTERM on to torchrun while the context is open; yields the signals received."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        process.terminate()

    try:
        before: Any = signal.signal(signal.SIGTERM, forward)
    except ValueError:
        # Not the main thread: the caller's process decides about signals.
        yield received
        return
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def _threads(request: LaunchRequest) -> str:
    """CPU threads of each rank: the cores, shared out."""
    return os.environ.get("OMP_NUM_THREADS") or str(
        max(1, (os.cpu_count() or 1) // request.ranks_per_node)
    )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
