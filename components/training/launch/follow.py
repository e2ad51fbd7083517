"""Follow rank 0: its lines go into the step's log as they appear, and its progress is read.

One thread reads the log stream of the pod that runs rank 0. Streams drop (load balancers cut them,
the kubelet rotates logs, containers restart); each new one asks for lines since the last seen
timestamp and skips those already shown, so that nothing is shown twice and nothing is left out.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from components.lib.logs import LINE_MARK
from components.lib.training_progress import TrainingProgress, parse_progress
from components.training.launch.interface import Backend
from components.training.launch.kube import ApiError, Cluster

_KEPT = 200
_CLOCK = re.compile(r"^\d\d:\d\d:\d\d ")


class LogFollower:
    """Streams the log of rank 0's pod to ``show``, whichever pod that is at the moment."""

    def __init__(
        self,
        cluster: Cluster,
        backend: Backend,
        show: Callable[[str], None],
        pause_s: float = 1.0,
    ) -> None:
        self.cluster, self.backend, self.show, self.pause_s = cluster, backend, show, pause_s
        self.tail: deque[str] = deque(maxlen=_KEPT)
        self.progress: TrainingProgress | None = None
        self._uid = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def attend(self, pods: Sequence[Mapping[str, Any]]) -> None:
        """Follow the pod of rank 0 among ``pods`` once it has started."""
        for pod in pods:
            phase = (pod.get("status") or {}).get("phase")
            uid = str(pod["metadata"].get("uid", ""))
            if self.backend.node_index(pod) or phase in (None, "Pending") or uid == self._uid:
                continue
            self.finish(timeout_s=2)
            self._uid, self._stop = uid, threading.Event()
            self._thread = threading.Thread(
                target=self._read, args=(pod["metadata"]["name"], self._stop), daemon=True
            )
            self._thread.start()

    def finish(self, timeout_s: float = 10.0) -> None:
        """Read what is left and stop."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _read(self, pod: str, stop: threading.Event) -> None:
        from urllib3.exceptions import HTTPError

        seen = ("", 0)
        while True:
            last_round = stop.is_set()
            try:
                since = f"{seen[0]}Z" if seen[0] else None
                for line in self.cluster.follow_log(pod, self.backend.container, since):
                    stamp, _, text = line.partition(" ")
                    if moment(stamp) > seen:
                        seen = moment(stamp)
                        self._take(text)
            except (ApiError, HTTPError, OSError):
                # Gone, not started or dropped: the loop that polls the pods knows which it is.
                stop.wait(self.pause_s)
            if last_round:
                return
            stop.wait(self.pause_s)

    def _take(self, text: str) -> None:
        # The ranks' own lines carry a mark and a clock; this step's log adds its own.
        text = _CLOCK.sub("", text.rstrip().rpartition(LINE_MARK)[2])
        if progress := parse_progress(text):
            self.progress, text = progress, progress.words()
        if text:
            self.tail.append(text)
            self.show(text)


def moment(stamp: str) -> tuple[str, int]:
    """A sortable form of 2026-01-31T10:00:00.12Z: Kubernetes leaves out trailing zeros."""
    seconds, _, fraction = stamp.rstrip("Z").partition(".")
    digits = re.match(r"\d*", fraction)
    return seconds[:19], int((digits[0] if digits else "").ljust(9, "0")[:9] or 0)
