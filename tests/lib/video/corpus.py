"""Awkward videos, made with PyAV, each with what a reader should find in it.

Every maker writes one file and is named after what is odd about it. Pictures are a moving
gradient, so that a frame out of place or turned the wrong way is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

RGB = npt.NDArray[np.uint8]
HEIGHT, WIDTH = 96, 128


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> RGB:
    """Frame ``number``: brightness grows to the right, red marks the top left, and eight blocks
    along the bottom are the bits of the number."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[...] = np.linspace(40, 120, width, dtype=np.uint8)[None, :, None]
    image[: height // 4, : width // 4] = (220, 30, 30)
    for bit, block in enumerate(_blocks(height, width)):
        image[block] = 210 if number >> bit & 1 else 25
    return image


def number_of(image: RGB) -> int:
    """The frame number that `picture` has put into an upright image."""
    height, width = image.shape[:2]
    bits = [image[block][2:-2, 2:-2].mean() > 115 for block in _blocks(height, width)]
    return sum(1 << bit for bit, is_set in enumerate(bits) if is_set)


def _blocks(height: int, width: int) -> list[tuple[slice, slice]]:
    step = width // 8
    return [
        (slice(height * 2 // 3, height), slice(bit * step, (bit + 1) * step)) for bit in range(8)
    ]


def write(
    path: Path,
    pictures: Iterable[RGB],
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: int = 25,
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    rotation: int = 0,
    gop: int | None = None,
    interlaced: bool = False,
    container: str | None = None,
    muxer: dict[str, str] | None = None,
) -> Path:
    """Encode pictures; ``times`` are presentation times in units of ``time_base``."""
    with av.open(str(path), "w", format=container, container_options=muxer or {}) as output:
        stream: Any = None
        for number, image in enumerate(pictures):
            if stream is None:
                stream = output.add_stream(codec, rate=rate)
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = pixels
                stream.codec_context.options = dict(options or {})
                if gop:
                    stream.codec_context.gop_size = gop
                if interlaced:
                    stream.codec_context.flags |= int(av.codec.context.Flags.interlaced_dct) | int(
                        av.codec.context.Flags.interlaced_me
                    )
                if time_base:
                    stream.codec_context.time_base = time_base
                if rotation:
                    stream.set_display_rotation(rotation)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(format=pixels)
            frame.pts = number if times is None else times[number]
            if time_base:
                frame.time_base = time_base
            output.mux(stream.encode(frame))
        if stream is not None:
            output.mux(stream.encode(None))
    return path


def pictures(count: int, height: int = HEIGHT, width: int = WIDTH) -> list[RGB]:
    """The first ``count`` pictures."""
    return [picture(number, height, width) for number in range(count)]


def plain(path: Path) -> Path:
    return write(path, pictures(40), options={"crf": "10"}, gop=10)


def truncated(path: Path) -> Path:
    """Cut in the middle: the index at the end of the file is gone."""
    data = plain(path).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def truncated_faststart(path: Path) -> Path:
    """Cut in the middle with the index at the front: it promises frames that are not there."""
    write(path, pictures(40), options={"crf": "1"}, gop=10, muxer={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    return path


def zero_bytes(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def text(path: Path) -> Path:
    path.write_text("This is not a video.\n" * 50)
    return path


def playlist(path: Path) -> Path:
    """A playlist that would make a trusting decoder open another file."""
    other = plain(path.with_name("other-" + path.name))
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n")
    return path


def audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), "fltp", "mono")
        frame.sample_rate = 48000
        for number in range(20):
            frame.pts = number * 1024
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def zero_frames(path: Path) -> Path:
    """A video stream with no frame in it."""
    with av.open(str(path), "w", container_options={"movflags": "empty_moov"}) as output:
        stream: Any = output.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.open()
        output.start_encoding()
    return path


def grey(path: Path) -> Path:
    return write(path, pictures(12), codec="ffv1", pixels="gray", container="matroska")


def rgba(path: Path) -> Path:
    return write(path, pictures(12), codec="png", pixels="rgba", container="mov")


VARIABLE_TIMES = [0, 40, 80, 160, 200, 400, 420, 440, 480, 880, 920, 1000]


def variable_rate(path: Path) -> Path:
    times, base = VARIABLE_TIMES, Fraction(1, 1000)
    return write(path, pictures(len(times)), times=times, time_base=base, rate=1000)


def rotated_90(path: Path) -> Path:
    """Stored on its side; upright it is WIDTH x HEIGHT turned a quarter clockwise back."""
    stored = [np.rot90(image, 1) for image in pictures(12)]
    return write(path, stored, rotation=-90, options={"crf": "5"})


def rotated_180(path: Path) -> Path:
    return write(
        path, [np.rot90(image, 2) for image in pictures(12)], rotation=180, options={"crf": "5"}
    )


def rotated_270(path: Path) -> Path:
    stored = [np.rot90(image, 3) for image in pictures(12)]
    return write(path, stored, rotation=90, options={"crf": "5"})


def odd_size(path: Path) -> Path:
    return write(path, pictures(12, 97, 131), pixels="yuv444p", options={"crf": "5"})


def ten_bit(path: Path) -> Path:
    options = {"x265-params": "log-level=none", "crf": "5"}
    return write(path, pictures(12), codec="libx265", pixels="yuv420p10le", options=options)


def interlaced(path: Path) -> Path:
    options = {"x264-params": "tff=1", "crf": "5"}
    return write(path, pictures(24), options=options, interlaced=True)


def edit_list(path: Path) -> Path:
    """Forty frames are stored, an edit list shows the 25 from number 15 on."""
    source = plain(path.with_name("whole-" + path.name))
    with av.open(str(source)) as container, av.open(str(path), "w") as output:
        stream = container.streams.video[0]
        copy = output.add_stream_from_template(stream)
        start = 15 * int(Fraction(1, 25) / stream.time_base)
        for packet in container.demux(stream):
            if packet.size:
                packet.pts -= start
                packet.dts -= start
                packet.stream = copy
                output.mux(packet)
    return path


def wrong_extension(path: Path) -> Path:
    """Matroska named .mp4."""
    return write(path, pictures(12), container="matroska")


def one_frame(path: Path) -> Path:
    return write(path, pictures(1))


def frames_120(path: Path) -> Path:
    return write(path, pictures(120), gop=30)


def wide_pixels(path: Path) -> Path:
    """Pixels twice as wide as high."""
    options = {"x264-params": "sar=2/1", "crf": "5"}
    return write(path, pictures(12), options=options)


def no_time_stamps(path: Path) -> Path:
    """AVI with B-frames: packets carry no presentation times."""
    return write(path, pictures(30), codec="mpeg4", container="avi", options={"bf": "2", "q": "2"})


def transport_stream(path: Path) -> Path:
    return write(path, pictures(40), container="mpegts", gop=10, options={"crf": "10"})


def open_gop(path: Path) -> Path:
    options = {"x264-params": "open-gop=1:bframes=3:keyint=12:min-keyint=12", "crf": "10"}
    return write(path, pictures(60), options=options)


def damaged_middle(path: Path) -> Path:
    """The packet of frame 15 is overwritten; everything around it is whole."""
    plain(path)
    with av.open(str(path)) as container:
        packet = next(p for number, p in enumerate(container.demux(video=0)) if number == 15)
        where, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[where + 5 : where + size] = b"\xff" * (size - 5)
    path.write_bytes(bytes(data))
    return path


Maker = Callable[[Path], Path]
USABLE: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (
        plain, grey, rgba, variable_rate, rotated_90, rotated_180, rotated_270, odd_size, ten_bit,
        interlaced, edit_list, wrong_extension, one_frame, frames_120, wide_pixels, no_time_stamps,
        transport_stream, open_gop,
    )
}  # fmt: skip
UNUSABLE: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (
        truncated, truncated_faststart, zero_bytes, text, playlist, audio_only, zero_frames,
    )
}  # fmt: skip
