"""Tar shards: what is written is read back, by us and by tarfile; hostile ones are refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.lib.contract import UserError
from components.lib.shards.tar import ShardWriter, iter_samples, scan_shard

keys = st.from_regex(r"[a-zA-Z0-9_ü-][a-zA-Z0-9_ü -]{0,12}(/[a-z0-9]{1,5})?", fullmatch=True)
parts = st.dictionaries(
    st.sampled_from(["mp4", "json", "txt", "info.json", "safetensors"]),
    st.binary(max_size=1600),
    min_size=1,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    samples=st.lists(st.tuples(keys, parts), min_size=1, max_size=12, unique_by=lambda s: s[0]),
    max_bytes=st.integers(1000, 20_000),
    max_samples=st.integers(1, 5),
)
def test_samples_come_back_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    samples: list[tuple[str, dict[str, bytes]]],
    max_bytes: int,
    max_samples: int,
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, max_bytes=max_bytes, max_samples=max_samples) as writer:
        for key, content in samples:
            writer.write(key, content)
    read = []
    for number, shard in enumerate(writer.shards):
        assert shard.path.name == f"{number:06d}.tar"
        assert shard.bytes == shard.path.stat().st_size
        data = shard.path.read_bytes()
        found = list(iter_samples(io.BytesIO(data)))
        assert shard.samples == len(found) <= max_samples
        assert scan_shard(io.BytesIO(data)) == list(shard.places)
        for (key, content), place in zip(found, shard.places, strict=True):
            assert key == place.key
            for part in place.parts:
                assert data[part.offset : part.offset + part.bytes] == content[part.name]
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert [m.name for m in archive] == [
                f"{key}.{ext}" for key, content in found for ext in sorted(content)
            ]
        read += found
    assert read == samples


def test_a_shard_is_full_before_it_is_too_large(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, max_bytes=100_000)
    for number in range(20):
        writer.write(str(number), {"bin": bytes(9_000)})
    writer.write("large", {"bin": bytes(300_000)})
    writer.write("after", {"bin": b"x"})
    sizes = [shard.bytes for shard in writer.close()]
    assert all(size <= 102_400 for size in sizes[:2])
    assert sorted(sizes)[-1] > 300_000
    assert [shard.samples for shard in writer.shards][-2:] == [1, 1]


def test_file_content_is_copied_and_equal_samples_give_equal_shards(tmp_path: Path) -> None:
    source = tmp_path / "big.bin"
    source.write_bytes(bytes(range(256)) * 40_000 + b"odd")
    shards = []
    for name in ("a", "b"):
        with ShardWriter(tmp_path / name) as writer:
            writer.write("0", {"mp4": source, "json": b"{}"})
            writer.write("1", {"mp4": source})
        shards.append(writer.shards[0].path.read_bytes())
    assert shards[0] == shards[1]
    assert [parts["mp4"] for _, parts in iter_samples(io.BytesIO(shards[0]))] == [
        source.read_bytes()
    ] * 2


@pytest.mark.parametrize(
    "key", ["", ".", "a.b", "../x", "a/../b", "/abs", "a\\b", "a\nb", "a/", "a//b"]
)
def test_keys_that_readers_would_mangle_are_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError), ShardWriter(tmp_path) as writer:
        writer.write(key, {"txt": b""})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ext", ["", ".txt", "a/b", "a b", "../x", "x."])
def test_extensions_that_readers_would_mangle_are_refused(ext: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError), ShardWriter(tmp_path) as writer:
        writer.write("0", {ext: b""})


def test_nothing_unfinished_has_a_shards_name(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path)
    writer.write("0", {"txt": b"x"})
    assert not list(tmp_path.glob("[0-9]*"))
    with pytest.raises(RuntimeError), writer:
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def member(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"x") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        info.size = len(content) if kind == tarfile.REGTYPE else 0
        archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        member("../../etc/x.txt"),
        member("/etc/x.txt"),
        member("a/../b.txt"),
        member("noextension"),
        member(".hidden"),
        member("link.txt", tarfile.SYMTYPE),
        member("hard.txt", tarfile.LNKTYPE),
        member("device.txt", tarfile.CHRTYPE),
        member("pipe.txt", tarfile.FIFOTYPE),
        b"no tar at all" * 100,
    ],
)
def test_hostile_shards_are_refused(data: bytes) -> None:
    with pytest.raises(UserError):
        list(iter_samples(io.BytesIO(data)))
    with pytest.raises(UserError):
        scan_shard(io.BytesIO(data))


def test_a_part_larger_than_allowed_is_not_read() -> None:
    with pytest.raises(UserError, match=r"'a\.bin' .* 5000 bytes.* 100"):
        list(iter_samples(io.BytesIO(member("a.bin", content=bytes(5000))), max_part_bytes=100))


def test_a_shard_cut_off_is_noticed(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        for number in range(3):
            writer.write(str(number), {"bin": bytes(3000)})
    data = writer.shards[0].path.read_bytes()
    for keep in (600, 3000, 5000, 9000):
        with pytest.raises(UserError):
            list(iter_samples(io.BytesIO(data[:keep])))
