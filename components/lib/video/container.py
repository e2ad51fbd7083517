"""Opening a video file that nobody vouches for.

Only demuxers of real video containers are allowed, and only the local file protocol: a playlist
renamed to .mp4 must not make the decoder open other files or the network. Names are passed as
``file:`` URLs, so a name such as ``concat:a|b`` is a name and nothing else.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import av

from components.lib.contract import UserError

Source = Path | BinaryIO

CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2",
    "matroska,webm",
    "avi",
    "mpegts",
    "mpeg",
    "flv",
    "asf",
    "ogg",
)
_SUFFIXES = "mp4 m4v mov mkv webm avi ts mts m2ts mpg mpeg flv wmv ogv 3gp"
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split(" "))
MAX_PIXELS = 1 << 27  # 16384 x 8192; a header that claims more is an attack on memory
_OPTIONS = {
    "format_whitelist": ",".join(CONTAINERS),
    "protocol_whitelist": "file",
}


class VideoError(UserError):
    """A video that cannot be used. ``reason`` is the sentence without the file's name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


def named(data: bytes, name: str) -> io.BytesIO:
    """``data`` as a file whose name errors give."""
    stream = io.BytesIO(data)
    stream.name = name
    return stream


def source_name(source: Source) -> str:
    """How to name a source in a message."""
    return str(source) if isinstance(source, Path) else str(getattr(source, "name", "the stream"))


def reason_of(error: BaseException) -> str:
    """A decoder's error as the end of a sentence."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).strip().rstrip(".")


# What the decoder raises on hostile input: FFmpeg's own errors, and Python's for values (sizes,
# time bases, text) that no real file has.
DECODER_ERRORS: tuple[type[Exception], ...] = (
    av.error.FFmpegError,
    ValueError,
    OverflowError,
    ZeroDivisionError,
    IndexError,
    MemoryError,
)


@contextmanager
def open_video(source: Source, threads: int = 0) -> Iterator[tuple[Any, Any]]:
    """Open ``source`` and give (container, video stream), ready to decode with ``threads`` (0: all
    cores). The picture stream with the most pixels is taken; cover art is not video.

    Raises VideoError when the file is no video container or holds no video.
    """
    name = source_name(source)
    if isinstance(source, Path):
        if not source.is_file():
            raise VideoError(name, "there is no such file")
        if source.stat().st_size == 0:
            raise VideoError(name, "the file is empty (zero bytes)")
    else:
        source.seek(0)
    target: Any = f"file:{source.absolute()}" if isinstance(source, Path) else source
    try:
        container = av.open(
            target,
            mode="r",
            container_options=_OPTIONS,
            metadata_errors="replace",
            buffer_size=1 << 20,
        )
    except DECODER_ERRORS as error:
        raise VideoError(
            name, f"it is not a readable video file or is cut off ({reason_of(error)})"
        ) from error
    try:
        stream = _video_stream(container, name)
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        yield container, stream
    finally:
        container.close()


def _video_stream(container: Any, name: str) -> Any:
    attached = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & attached]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        content = f"only {', '.join(kinds)}" if kinds else "nothing"
        raise VideoError(name, f"it holds no video stream ({content})")
    stream = max(streams, key=lambda s: (s.codec_context or 0) and s.width * s.height)
    if stream.codec_context is None:
        raise VideoError(name, "its video codec is unknown to the decoder")
    if stream.width * stream.height > MAX_PIXELS:
        raise VideoError(name, f"it claims {stream.width} x {stream.height} pixels per frame")
    return stream
