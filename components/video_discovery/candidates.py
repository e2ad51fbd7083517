"""Which listed files are videos, and which files beside them describe them.

``clip.txt`` and ``clip.json`` describe ``clip.mp4``. In an ordered listing these are close
together: all names that agree up to their first dot follow each other. So a video meets its
sidecars within one such run and the rest of the listing is never held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from components.lib.video.container import VIDEO_SUFFIXES
from components.video_discovery.entries import Entry
from components.video_discovery.sources import SIDECAR_SUFFIXES


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file taken for a video, and the keys of its sidecars."""

    entry: Entry
    sidecars: tuple[str, ...]


@dataclass
class Ignored:
    """Counts files that are neither videos nor sidecars."""

    files: int = 0


def candidates(
    entries: Iterable[Entry], ignored: Ignored, *, any_suffix: bool = False
) -> Iterator[Candidate]:
    """Videos of a listing, in its order. ``any_suffix`` takes all but sidecars."""
    for _, run in groupby(entries, key=lambda entry: _until_first_dot(entry.key)):
        group = list(run)
        sidecars: dict[str, list[str]] = {}
        for entry in group:
            stem, suffix = _split(entry.key)
            if suffix in SIDECAR_SUFFIXES:
                sidecars.setdefault(stem, []).append(entry.key)
        for entry in group:
            stem, suffix = _split(entry.key)
            if suffix in SIDECAR_SUFFIXES:
                continue
            if suffix in VIDEO_SUFFIXES or any_suffix:
                yield Candidate(entry, tuple(sidecars.get(stem, ())))
            else:
                ignored.files += 1


def _until_first_dot(key: str) -> str:
    folder, _, base = key.rpartition("/")
    return f"{folder}/{base.split('.', 1)[0]}"


def _split(key: str) -> tuple[str, str]:
    folder, _, base = key.rpartition("/")
    stem, dot, suffix = base.rpartition(".")
    return (f"{folder}/{stem}", f".{suffix.lower()}") if dot else (key, "")
