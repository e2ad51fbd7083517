"""The index that megatron-energon wants beside tar shards, written without its interactive tool.

``.nv-meta`` gets ``.info.json`` and ``.info.yaml`` (samples per shard; newer and older releases
read different ones), ``split.yaml``, ``dataset.yaml``, ``index.sqlite`` (where every sample and
part lies) and ``index.uuid``; each shard gets ``NAME.tar.idx``, the offsets of its samples. All of
it follows from the shards, so equal shards give equal files; the uuid is made from their layout.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.lib.manifest import digest_json
from components.lib.shards.tar import SamplePlace

META_FOLDER = ".nv-meta"
ENERGON_VERSION = "7.4.1"  # the release whose layout this is; older ones read it too
_NAMESPACE = uuid.UUID("6f0d4cf0-9d0c-5a3e-8f4b-3a8f5b0f2f7e")
_SCHEMA = """
CREATE TABLE samples (
    tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, sample_index INTEGER NOT NULL,
    byte_offset INTEGER, byte_size INTEGER);
CREATE TABLE sample_parts (
    tar_file_id INTEGER, sample_index INTEGER, part_name TEXT,
    content_byte_offset INTEGER, content_byte_size INTEGER);
"""
_INDEXES = """
CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq
    ON sample_parts(tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full ON sample_parts(
    tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size);
"""


@dataclass(frozen=True)
class IndexedShard:
    """A shard's file name, what it is for, and where its samples lie."""

    name: str
    split: str
    places: Sequence[SamplePlace]


def shard_index(places: Sequence[SamplePlace]) -> bytes:
    """``NAME.tar.idx``: little-endian 64-bit offsets of all samples and of the end."""
    offsets = [place.offset for place in places]
    if places:
        offsets.append(places[-1].offset + places[-1].bytes)
    return struct.pack(f"<{len(offsets)}Q", *offsets)


def write_energon_index(
    folder: Path,
    shards: Sequence[IndexedShard],
    *,
    fields: Mapping[str, str],
    sample_class: str = "ImageWebdataset",
    validate_on_training: bool = False,
) -> list[Path]:
    """Write ``folder/.nv-meta`` for shards in their order and return its files.

    Args:
        folder: where the shards are, or would be.
        shards: every shard with at least one sample; keys are unique over all of them.
        fields: energon's sample field -> extension of the part it comes from.
        sample_class: class in megatron.energon that makes samples.
        validate_on_training: let the ``val`` split name the training shards, for data that has
            nothing to hold out; loaders refuse an empty split.
    """
    meta = folder / META_FOLDER
    meta.mkdir(parents=True, exist_ok=True)
    counts = {shard.name: len(shard.places) for shard in shards}
    info = {"energon_version": ENERGON_VERSION, "shard_counts": counts}
    train = [shard.name for shard in shards if shard.split == "train"]
    held_out = [shard.name for shard in shards if shard.split == "validation"]
    splits = {
        "split_parts": {
            "train": train,
            "val": train if validate_on_training and not held_out else held_out,
            "test": [],
        },
        "exclude": [],
    }
    dataset = {
        "__module__": "megatron.energon",
        "__class__": sample_class,
        "field_map": dict(sorted(fields.items())),
    }
    # JSON is YAML, so the .yaml files need no YAML writer to be read by one.
    texts = {
        ".info.json": json.dumps(info, indent=2),
        ".info.yaml": json.dumps(info, indent=2),
        "split.yaml": json.dumps(splits, indent=2),
        "dataset.yaml": json.dumps(dataset, indent=2),
        "index.uuid": str(uuid.uuid5(_NAMESPACE, digest_json(_layout(shards)))),
    }
    written = []
    for name, text in sorted(texts.items()):
        (meta / name).write_text(text)
        written.append(meta / name)
    database = meta / "index.sqlite"
    _write_database(database, shards)
    return [*written, database]


def _layout(shards: Sequence[IndexedShard]) -> list[object]:
    return [
        [shard.name, [[place.key, place.offset, place.bytes] for place in shard.places]]
        for shard in shards
    ]


def _write_database(path: Path, shards: Sequence[IndexedShard]) -> None:
    path.unlink(missing_ok=True)
    database = sqlite3.connect(path)
    try:
        database.executescript(_SCHEMA)
        for number, shard in enumerate(shards):
            database.executemany(
                "INSERT INTO samples VALUES (?, ?, ?, ?, ?)",
                (
                    (number, place.key, index, place.offset, place.bytes)
                    for index, place in enumerate(shard.places)
                ),
            )
            database.executemany(
                "INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)",
                (
                    (number, index, part.name, part.offset, part.bytes)
                    for index, place in enumerate(shard.places)
                    for part in place.parts
                ),
            )
        database.executescript(_INDEXES)
        database.commit()
    finally:
        database.close()
