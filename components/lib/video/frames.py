"""Streaming decoding: RGB frames one by one, from any frame number, in constant memory.

Frame numbers count the frames a player shows. Without an index decoding runs from the start;
with a start, a new rate or several clips the packets are indexed first and decoding begins at
the keyframe before the first wanted frame. Every frame is checked against the index: a frame
that the decoder drops or reports as damaged is an error that names it, never a silent shift of
all frames after it. Interlaced frames are deinterlaced (bwdif), one frame out for each in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np

from components.lib.video.container import (
    DECODER_ERRORS,
    Source,
    VideoError,
    open_video,
    reason_of,
    source_name,
)
from components.lib.video.index import FrameIndex, build_index
from components.lib.video.picture import RGB, Painter, Resize

_INTERLACED_ORDERS = range(2, 6)  # FFmpeg's AVFieldOrder: top or bottom field first
_NOT_WORTH_SEEKING = 8  # frames; seeking empties the decoder's pipeline


def iter_frames(
    source: Source,
    *,
    start: int = 0,
    count: int | None = None,
    size: tuple[int, int] | None = None,
    resize: Resize = "crop",
    fps: float | None = None,
    index: FrameIndex | None = None,
    threads: int = 0,
) -> Iterator[RGB]:
    """Yield uint8 RGB frames [H, W, 3], upright, one at a time.

    Args:
        source: a local file, or a seekable binary stream.
        start: number of the first frame, from 0.
        count: how many frames; None for all that follow.
        size: (H, W) of the output, None for the video's own.
        resize: how to reach ``size``, see `components.lib.video.picture`.
        fps: show at this constant rate by repeating or dropping frames; ``start`` and ``count``
            then count frames at that rate. None: every frame as it is.
        index: from `build_index`, to save reading the packets again.
        threads: decoder threads, 0 for all cores.

    Raises:
        VideoError: not a video, fewer than ``start + count`` frames, or a damaged frame.
    """
    if start == 0 and fps is None and index is None:
        yield from _from_the_start(source, count, size, resize, threads)
        return
    index = index or build_index(source)
    wanted = index.at_rate(fps) if fps is not None else np.arange(index.frames)
    stop = len(wanted) if count is None else start + count
    _check_range(source, start, stop, len(wanted))
    with open_video(source, threads) as (container, stream):
        decoder = FrameReader(container, stream, index, source_name(source))
        painter = Painter(size, resize, decoder.pixel_aspect)
        yield from decoder.pictures(wanted[start:stop].tolist(), painter)


def iter_clips(
    source: Source,
    starts: Sequence[int],
    count: int,
    *,
    size: tuple[int, int] | None = None,
    resize: Resize = "crop",
    fps: float | None = None,
    index: FrameIndex | None = None,
    threads: int = 0,
) -> Iterator[tuple[int, RGB]]:
    """Yield (start, uint8 [count, H, W, 3]) for each start, opening and indexing the file once.

    Clips come in ascending order of start, whatever the order of ``starts``. Arguments and errors
    are those of `iter_frames`.
    """
    index = index or build_index(source)
    wanted = index.at_rate(fps) if fps is not None else np.arange(index.frames)
    with open_video(source, threads) as (container, stream):
        decoder = FrameReader(container, stream, index, source_name(source))
        painter = Painter(size, resize, decoder.pixel_aspect)
        for start in sorted(starts):
            _check_range(source, start, start + count, len(wanted))
            numbers = wanted[start : start + count].tolist()
            yield start, _stack(decoder.pictures(numbers, painter), count, decoder.name)


def read_clip(
    source: Source,
    *,
    start: int = 0,
    count: int,
    size: tuple[int, int] | None = None,
    resize: Resize = "crop",
    fps: float | None = None,
    index: FrameIndex | None = None,
    threads: int = 0,
) -> RGB:
    """uint8 [count, H, W, 3]. Arguments and errors are those of `iter_frames`."""
    frames = iter_frames(
        source, start=start, count=count, size=size, resize=resize, fps=fps, index=index,
        threads=threads,
    )  # fmt: skip
    return _stack(frames, count, source_name(source))


def _stack(frames: Iterator[RGB], count: int, name: str) -> RGB:
    clip: RGB | None = None
    for number, frame in enumerate(frames):
        if clip is None:
            clip = np.empty((count, *frame.shape), dtype=np.uint8)
        if frame.shape != clip.shape[1:]:
            raise VideoError(name, f"its frames change size within a clip (at number {number})")
        clip[number] = frame
    return clip if clip is not None else np.empty((0, 0, 0, 3), dtype=np.uint8)


def _check_range(source: Source, start: int, stop: int, frames: int) -> None:
    if start < 0 or stop < start or stop > frames:
        raise VideoError(
            source_name(source), f"frames {start} to {stop} were asked for, it has {frames}"
        )


def _from_the_start(
    source: Source, count: int | None, size: tuple[int, int] | None, resize: Resize, threads: int
) -> Iterator[RGB]:
    name = source_name(source)
    done = 0
    with open_video(source, threads) as (container, stream):
        painter = Painter(size, resize, pixel_aspect(stream))
        for frame in decoded(container, stream, name):
            if count is not None and done == count:
                return
            if frame.is_corrupt:
                raise VideoError(name, f"frame {done} is damaged")
            yield painter.paint(frame)
            done += 1
    if done == 0:
        raise VideoError(name, "its video stream holds no frames that can be decoded")
    if count is not None and done < count:
        raise VideoError(name, f"frames 0 to {count} were asked for, it has {done}")


def pixel_aspect(stream: Any) -> float:
    """Width over height of one stored pixel; 1 where the stream says nothing sensible."""
    aspect = stream.sample_aspect_ratio or 1
    return float(aspect) if 0.1 <= float(aspect) <= 10 else 1.0


def decoded(container: Any, stream: Any, name: str) -> Iterator[Any]:
    """Decoded frames from where the container stands, progressive ones as they are.

    The deinterlacer is put in when the first interlaced frame shows up and stays in; it passes
    progressive frames through.
    """
    graph: _Deinterlacer | None = None
    try:
        for frame in container.decode(stream):
            if graph is None and not frame.interlaced_frame:
                yield frame
                continue
            graph = graph or _Deinterlacer(stream, frame)
            yield from graph.push(frame)
        if graph is not None:
            yield from graph.push(None)
    except DECODER_ERRORS as error:
        raise VideoError(name, f"decoding failed ({reason_of(error)})") from error


class _Deinterlacer:
    def __init__(self, stream: Any, frame: Any) -> None:
        self.graph = av.filter.Graph()
        source = self.graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=stream.time_base,
        )
        deinterlace = self.graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
        sink = self.graph.add("buffersink")
        source.link_to(deinterlace)
        deinterlace.link_to(sink)
        self.graph.configure()

    def push(self, frame: Any | None) -> Iterator[Any]:
        self.graph.push(frame)
        while True:
            try:
                yield self.graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return


class FrameReader:
    """Decoded frames by number. Keeps its place: ascending numbers decode each frame once."""

    def __init__(self, container: Any, stream: Any, index: FrameIndex, name: str) -> None:
        self.container, self.stream, self.index, self.name = container, stream, index, name
        self.pixel_aspect = pixel_aspect(stream)
        self.frames: Iterator[Any] = decoded(container, stream, name)
        # The deinterlacer looks at the frames before; it must have seen them after a seek too.
        self.lead = 2 if stream.codec_context.field_order in _INTERLACED_ORDERS else 0
        self.next_number = 0
        self.last: tuple[int, RGB] | None = None

    def pictures(self, numbers: list[int], painter: Painter) -> Iterator[RGB]:
        """Pictures of these ascending frame numbers; a repeated number repeats its picture."""
        for number in numbers:
            if self.last is None or self.last[0] != number:
                self.last = (number, painter.paint(self.frame(number)))
            yield self.last[1]

    def frame(self, number: int) -> Any:
        """The decoded frame with this number. Raises VideoError when it cannot be had whole."""
        sought = number != self.next_number and self._seek(number)
        frame = self._advance_to(number)
        if frame is None and sought:
            # Not every container lands on the keyframe it was asked for; the start always works.
            self._restart(0)
            frame = self._advance_to(number)
        if frame is None:
            raise VideoError(self.name, f"frame {number} is missing or damaged")
        if frame.is_corrupt:
            raise VideoError(self.name, f"frame {number} is damaged")
        self.next_number = number + 1
        return frame

    def _advance_to(self, number: int) -> Any | None:
        for frame in self.frames:
            here = self._number_of(frame)
            if here is not None and here >= number:
                return frame if here == number else None
        return None

    def _number_of(self, frame: Any) -> int | None:
        """Which frame this is; None for one that is not shown."""
        if not self.index.seekable:
            self.next_number += 1
            return self.next_number - 1
        if frame.pts is None:
            return None
        pts = frame.pts
        if frame.time_base != self.index.time_base:  # the deinterlacer has its own
            pts = round(pts * frame.time_base / self.index.time_base)
        at = int(np.searchsorted(self.index.pts, pts))
        if at < self.index.frames and int(self.index.pts[at]) == pts:
            return at
        return None

    def _seek(self, number: int) -> bool:
        """Stand before ``number``, at the last keyframe shown no later; False to decode on."""
        index = self.index
        if not index.seekable:
            if number < self.next_number:
                self._restart(0)
                return True
            return False
        target = index.pts[max(0, number - self.lead)]
        key = int(np.searchsorted(index.key_pts, target, side="right")) - 1
        shown_at = int(np.searchsorted(index.pts, index.key_pts[key]))
        if self.next_number <= number and shown_at <= self.next_number + _NOT_WORTH_SEEKING:
            return False
        # Containers seek by decoding time; a keyframe's own finds that keyframe.
        self._restart(int(index.key_dts[key]))
        return True

    def _restart(self, offset: int) -> None:
        try:
            self.container.seek(offset, stream=self.stream, backward=True, any_frame=False)
        except DECODER_ERRORS as error:
            raise VideoError(self.name, f"seeking failed ({reason_of(error)})") from error
        self.frames = decoded(self.container, self.stream, self.name)
        self.next_number = 0
