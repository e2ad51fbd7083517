"""Frame index: which frames a video shows, in display order, found without decoding.

One pass over the packets gives the time stamp of every frame. Packets that an edit list hides
are left out. With it a frame number means the same frame however one gets there (decoding from
the start, or seeking), and frame rates are measured instead of believed. The cost is one read of
the file, which discovery pays anyway for the checksum.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from components.lib.video.container import (
    DECODER_ERRORS,
    Source,
    VideoError,
    open_video,
    reason_of,
    source_name,
)

Int64 = npt.NDArray[np.int64]
_NEGLIGIBLE_JITTER_S = 0.0015  # a millisecond time base rounds 1/30 s to 33 or 34 ms


@dataclass(frozen=True)
class FrameIndex:
    """``pts`` [frames] int64, ascending, in units of ``time_base`` seconds.

    ``key_pts`` and ``key_dts`` [keyframes] say where decoding can start. ``seekable`` is False
    when time stamps are missing or repeat; frames can then only be counted from the start.
    ``last_duration`` is that of the last frame in the same units, 0 when unknown.
    """

    pts: Int64
    key_pts: Int64
    key_dts: Int64
    time_base: Fraction
    last_duration: int
    seekable: bool
    nominal_fps: float

    @property
    def frames(self) -> int:
        """Frames shown."""
        return len(self.pts)

    @property
    def step(self) -> float:
        """Median time between frames in seconds, 0 for fewer than two frames."""
        if self.frames < 2 or not self.seekable:
            return 0.0
        return float(np.median(np.diff(self.pts))) * float(self.time_base)

    @property
    def duration(self) -> float:
        """Seconds from the first frame's start to the last one's end."""
        if not self.seekable:
            return self.frames / self.nominal_fps if self.nominal_fps else 0.0
        last = self.last_duration * float(self.time_base)
        if last <= 0:
            last = self.step or (1 / self.nominal_fps if self.nominal_fps else 0.0)
        return float(self.pts[-1] - self.pts[0]) * float(self.time_base) + last

    @property
    def fps(self) -> float:
        """Mean frames per second as shown."""
        if not self.variable_rate and self.nominal_fps and self._nominal_fits():
            return self.nominal_fps
        return self.frames / self.duration if self.duration > 0 else self.nominal_fps

    @property
    def variable_rate(self) -> bool:
        """Whether frames are shown for unequal times, beyond rounding of the time stamps."""
        if self.frames < 3 or not self.seekable:
            return False
        gaps = np.diff(self.pts) * float(self.time_base)
        return bool(np.ptp(gaps) > 2 * max(_NEGLIGIBLE_JITTER_S, float(self.time_base)))

    def _nominal_fits(self) -> bool:
        measured = self.frames / self.duration if self.duration > 0 else 0.0
        return abs(measured - self.nominal_fps) <= 0.01 * self.nominal_fps

    def at_rate(self, fps: float) -> Int64:
        """Frame numbers that show this video at a constant ``fps``: frames repeat or are dropped,
        each output instant shows the frame that was on screen then. int64 [outputs]."""
        if not self.seekable or fps <= 0:
            raise ValueError("resampling needs time stamps and a positive rate")
        times = (self.pts - self.pts[0]) * float(self.time_base)
        instants = np.arange(max(1, int(self.duration * fps + 1e-6))) / fps
        return np.maximum(np.searchsorted(times, instants + 1e-6, side="right") - 1, 0)


def build_index(source: Source) -> FrameIndex:
    """Read all packets of ``source`` once. Raises VideoError when it shows no frame."""
    with open_video(source, threads=1) as (container, stream):
        return index_stream(container, stream, source_name(source))


def index_stream(container: Any, stream: Any, name: str) -> FrameIndex:
    """The index of an opened stream; the container is left at its end."""
    pts: list[int] = []
    keys: list[tuple[int, int]] = []
    complete, last, seen = True, (-(1 << 63), 0), 0
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if packet.is_corrupt:
                break
            seen += 1
            if packet.pts is None:
                complete = False
                pts.append(len(pts))
                continue
            if packet.is_keyframe:
                keys.append((packet.pts, packet.dts if packet.dts is not None else packet.pts))
            if not packet.is_discard:
                pts.append(packet.pts)
                last = max(last, (packet.pts, packet.duration or 0))
        # Containers with a whole index know how many packets there should be; others know fewer
        # than there are.
        promised = len(stream.index_entries)
    except DECODER_ERRORS as error:
        raise VideoError(
            name, f"reading stopped after {len(pts)} frames ({reason_of(error)})"
        ) from error
    if seen < promised:
        raise VideoError(name, f"it is cut off: {seen} of {promised} frames can be read")
    if not pts:
        raise VideoError(name, "its video stream holds no frames")
    rate = stream.average_rate or stream.guessed_rate or 0
    ordered = np.array(sorted(pts), dtype=np.int64)
    keys.sort()
    unique = bool((np.diff(ordered) > 0).all())
    starts_whole = bool(keys) and keys[0][0] <= int(ordered[0])
    return FrameIndex(
        pts=ordered,
        key_pts=np.array([key[0] for key in keys], dtype=np.int64),
        key_dts=np.array([key[1] for key in keys], dtype=np.int64),
        time_base=Fraction(stream.time_base or 1),
        last_duration=last[1],
        seekable=complete and unique and starts_whole,
        nominal_fps=float(rate) if 0 < float(rate) <= 1000 else 0.0,
    )
