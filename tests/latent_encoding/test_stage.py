"""What users of latent_encoding rely on: the right frames, encoded right, whatever happens."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from components.latent_encoding import stage
from components.latent_encoding.config import LatentEncodingConfig
from components.lib.contract import UserError
from components.lib.cosmos.model_folder import load_tokenizer
from components.lib.cosmos.tokenizer.config import TokenizerConfig
from components.lib.manifest import FileEntry, Manifest
from components.lib.shards.dataset import Split, largest_latent, open_source
from components.lib.shards.guide import iter_guide_samples
from components.lib.shards.latents import parse_latent, prompt_digest
from components.lib.shards.tar import iter_samples
from components.lib.store import ObjectStore
from components.lib.video.frames import read_clip
from components.lib.video.records import VideoRecord
from tests.conftest import SilentProgress
from tests.latent_encoding.conftest import upload_manifest

Make = Callable[..., LatentEncodingConfig]
Put = Callable[[list[VideoRecord]], str]


def read_samples(manifest: Manifest, store: ObjectStore) -> dict[str, Any]:
    """Key -> (latent, info) over all shards."""
    samples = {}
    for entry in manifest.files:
        if entry.path.endswith(".tar"):
            data = store.get_bytes(manifest.file_uri(entry.path), sha256=entry.sha256)
            for key, parts in iter_samples(io.BytesIO(data)):
                assert key not in samples
                samples[key] = parse_latent(parts)[:2]
    return samples


def stored_shapes(manifest: Manifest, store: ObjectStore, folder: Path) -> set[tuple[int, ...]]:
    """Shapes of the latents, after seeing that all who state them before reading agree."""
    shapes = {tuple(latent.shape) for latent, _ in read_samples(manifest, store).values()}
    assert {tuple(shape["latent_shape"]) for shape in manifest.summary["shapes"]} == shapes
    metas = [e.meta for e in manifest.files if e.path.endswith(".tar")]
    assert {tuple(meta["shape"]) for meta in metas} == shapes
    # Training knows before it reads, so that ranks take samples of one size together.
    source, _ = open_source(manifest.uri, store, cache_dir=folder / "cache", max_bytes=10**8)
    splits: tuple[Split, ...] = ("train", "validation")
    for split in splits:
        for shard, shape in enumerate(source.shapes(split)):
            name, parts = source.read(split, shard, 0)
            assert tuple(parse_latent(parts, name)[0].shape) == shape
    assert {shape for split in splits for shape in source.shapes(split)} == shapes
    return shapes


def test_latents_are_those_of_the_frames_they_name(
    store: ObjectStore,
    clips: dict[str, Path],
    make_record: Callable[..., VideoRecord],
    put_videos: Put,
    make_config: Make,
    tokenizer_folder: Path,
    progress: SilentProgress,
) -> None:
    records = [make_record(clips["bikes"]), make_record(clips["carphone"], split="validation")]
    result = stage.run(make_config(put_videos(records)), store, progress)
    samples = read_samples(result.manifest, store)
    assert len(samples) == 8
    tokenizer = load_tokenizer(tokenizer_folder, dtype=torch.float32)
    by_uri = {record.uri: record for record in records}
    for latent, info in samples.values():
        path = Path(by_uri[info.video].uri.removeprefix("file://"))
        frames = read_clip(path, start=info.start, count=9, size=(64, 96), resize="crop")
        video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        with torch.no_grad():
            expected = tokenizer.normalise(tokenizer.encode(video))[0]
        assert latent.dtype == torch.bfloat16
        assert latent.shape == (16, 2, 8, 12)
        np.testing.assert_allclose(latent.float().numpy(), expected.numpy(), rtol=0.02, atol=0.02)
    assert {info.split for _, info in samples.values()} == {"train", "validation"}
    assert result.manifest.summary["validation"] == "held-out"
    assert result.manifest.summary["latent_shape"] == [16, 2, 8, 12]


def test_no_usable_length_is_an_error_that_names_the_video(
    store: ObjectStore,
    clips: dict[str, Path],
    make_record: Callable[..., VideoRecord],
    put_videos: Put,
    make_config: Make,
    progress: SilentProgress,
) -> None:
    config = make_config(put_videos([make_record(clips["bikes"])]), frames=257)
    with pytest.raises(UserError, match=r"bikes\.mp4.*257 frames \(250\)"):
        stage.run(config, store, progress)


@pytest.fixture
def two_videos(
    clips: dict[str, Path], make_record: Callable[..., VideoRecord]
) -> list[VideoRecord]:
    """One training video and one held-out one."""
    return [make_record(clips["bikes"]), make_record(clips["carphone"], split="validation")]


def digests(manifest: Manifest) -> dict[str, str]:
    return {entry.path: entry.sha256 for entry in manifest.files}


def test_two_runs_write_the_same_bytes_whatever_their_order_and_speed(
    store: ObjectStore,
    storage_root: str,
    two_videos: list[VideoRecord],
    put_videos: Put,
    make_config: Make,
    progress: SilentProgress,
) -> None:
    videos = put_videos(two_videos)
    first = stage.run(make_config(videos, shard_samples=3), store, progress)
    other = make_config(
        put_videos(two_videos[::-1]),
        shard_samples=3,
        storage_root=f"{storage_root}/again",
        decode_workers=3,
        save_every_s=0,
    )
    second = stage.run(other, store, progress)
    assert not second.reused
    assert digests(first.manifest) == digests(second.manifest)
    assert stage.run(make_config(videos, shard_samples=3), store, progress).reused


def test_several_devices_and_parts_write_the_same_bytes(
    store: ObjectStore,
    storage_root: str,
    two_videos: list[VideoRecord],
    put_videos: Put,
    make_config: Make,
    progress: SilentProgress,
) -> None:
    videos = put_videos(two_videos)
    options: dict[str, Any] = {"chunks_per_video": 8, "shard_samples": 3}
    whole = stage.run(make_config(videos, **options), store, progress)
    assert sum(entry.path.endswith(".tar") for entry in whole.manifest.files) >= 6

    options |= {"storage_root": f"{storage_root}/devices"}
    both = stage.run(make_config(videos, device="cpu,cpu", **options), store, progress)
    assert digests(both.manifest) == digests(whole.manifest)
    assert both.metrics["frames_encoded"] == whole.metrics["frames_encoded"]

    options |= {"storage_root": f"{storage_root}/parts"}
    for index in (2, 0, 1):
        part = make_config(videos, part_index=index, part_count=3, **options)
        made = stage.run(part, store, progress)
        assert made.manifest.summary["part"] == index
    joined = stage.run(make_config(videos, **options), store, progress)
    assert joined.metrics["frames_encoded"] == 0  # the parts had done it all
    assert digests(joined.manifest) == digests(whole.manifest)


def test_unusable_videos_are_quarantined_and_the_rest_is_encoded(
    store: ObjectStore,
    clips: dict[str, Path],
    tmp_path: Path,
    two_videos: list[VideoRecord],
    make_record: Callable[..., VideoRecord],
    put_videos: Put,
    make_config: Make,
    progress: SilentProgress,
) -> None:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clips["bikes"].read_bytes()[:100_000])
    good = make_record(clips["bikes"])
    digest = hashlib.sha256(cut.read_bytes()).hexdigest()
    broken = good.model_copy(update={"uri": cut.as_uri(), "sha256": digest})
    gone = good.model_copy(update={"uri": (tmp_path / "gone.mp4").as_uri(), "sha256": "0" * 64})
    short = good.model_copy(update={"uri": "file:///short.mp4", "frames": 3, "sha256": "1" * 64})
    videos = put_videos([*two_videos, broken, gone, short])
    with pytest.raises(UserError, match=r"2 of 5 .*max_bad_fraction 0\.1"):
        stage.run(make_config(videos), store, progress)
    result = stage.run(make_config(videos, max_bad_fraction=0.5), store, progress)
    summary = result.manifest.summary
    reasons = {entry["uri"]: entry["reason"] for entry in summary["quarantined"]}
    assert set(reasons) == {broken.uri, gone.uri}
    assert "gone since discovery" in reasons[gone.uri]
    assert [entry["uri"] for entry in summary["skipped"]] == [short.uri]
    assert "9 frames (3)" in summary["skipped"][0]["reason"]
    assert summary["samples"] == len(read_samples(result.manifest, store)) == 8
    listed = store.get_bytes(result.manifest.file_uri("quarantine.jsonl")).splitlines()
    assert len(listed) == 3


def test_a_run_without_training_samples_fails(
    store: ObjectStore,
    tmp_path: Path,
    two_videos: list[VideoRecord],
    put_videos: Put,
    make_config: Make,
    progress: SilentProgress,
) -> None:
    train, held = two_videos
    train = train.model_copy(update={"uri": (tmp_path / "no.mp4").as_uri()})
    config = make_config(put_videos([train, held]), max_bad_fraction=1.0)
    with pytest.raises(UserError, match=r"training .*no\.mp4"):
        stage.run(config, store, progress)


def test_one_video_validates_on_itself_and_says_so(
    store: ObjectStore,
    two_videos: list[VideoRecord],
    put_videos: Put,
    make_config: Make,
    progress: SilentProgress,
) -> None:
    summary = stage.run(make_config(put_videos(two_videos[:1])), store, progress).manifest.summary
    assert summary["validation"] == "same-video"
    assert summary["splits"] == {"train": 3, "validation": 1}


def test_a_single_clip_trains_and_validates_and_says_so(
    store: ObjectStore,
    clips: dict[str, Path],
    make_record: Callable[..., VideoRecord],
    put_videos: Put,
    make_config: Make,
    progress: SilentProgress,
) -> None:
    videos = put_videos([make_record(clips["bikes"])])
    result = stage.run(make_config(videos, chunks_per_video=1), store, progress)
    assert result.manifest.summary["validation"] == "same-clip"
    (_, (train, seen)), (_, (held_out, held)) = sorted(read_samples(result.manifest, store).items())
    assert torch.equal(train, held_out)
    assert {seen.split, held.split} == {"train", "validation"}


def test_buckets_give_each_video_its_shape_and_length(
    store: ObjectStore,
    two_videos: list[VideoRecord],
    put_videos: Put,
    make_config: Make,
    progress: SilentProgress,
    tmp_path: Path,
) -> None:
    wide, square = two_videos
    square = square.model_copy(update={"frames": 20})
    config = make_config(
        put_videos([wide, square]),
        size_buckets=["64x96", "64x64", "64x160"],
        length_buckets=[9, 25],
        chunks_per_video=2,
    )
    manifest = stage.run(config, store, progress).manifest
    assert stored_shapes(manifest, store, tmp_path) == {(16, 4, 8, 20), (16, 2, 8, 8)}
    assert largest_latent(manifest) == (16, 4, 8, 20)  # what training plans memory for
    assert manifest.summary["latent_shape"] is None


@pytest.mark.parametrize(("frames", "latents"), [(121, 16), (129, 18), (137, 19), (249, 34)])
def test_the_shape_of_a_clip_beyond_one_window_is_that_of_its_latent(
    frames: int,
    latents: int,
    store: ObjectStore,
    clips: dict[str, Path],
    make_record: Callable[..., VideoRecord],
    put_videos: Put,
    make_config: Make,
    progress: SilentProgress,
    tmp_path: Path,
) -> None:
    videos = put_videos([make_record(clips["bikes"])])
    config = make_config(videos, frames=frames, height=16, width=32, chunks_per_video=1)
    manifest = stage.run(config, store, progress).manifest
    shape = (16, latents, 2, 4)
    assert stored_shapes(manifest, store, tmp_path) == {shape}
    assert manifest.summary["latent_shape"] == list(shape)
    assert largest_latent(manifest) == shape


def test_clips_must_fit_the_tokenizer_of_the_checkpoint(
    store: ObjectStore,
    storage_root: str,
    clips: dict[str, Path],
    make_record: Callable[..., VideoRecord],
    put_videos: Put,
    make_config: Make,
    progress: SilentProgress,
) -> None:
    coarse = TokenizerConfig(channels=8, temporal=16, window=17)
    value = {
        "format": "cosmos-pipelines/1",
        "family": "tokenizer",
        "name": "coarse",
        "config": coarse.model_dump(mode="json"),
    }
    files = {"model/config.json": json.dumps(value).encode()}
    checkpoint = upload_manifest(store, f"{storage_root}/coarse/", "checkpoint", files)
    config = make_config(put_videos([make_record(clips["bikes"])]), checkpoint=checkpoint)
    with pytest.raises(UserError, match=r"9 frames .*16k \+ 1 .* 1 or 17"):
        stage.run(config, store, progress)


def test_the_frame_rate_conversion_is_recorded(
    store: ObjectStore,
    two_videos: list[VideoRecord],
    put_videos: Put,
    make_config: Make,
    progress: SilentProgress,
) -> None:
    result = stage.run(make_config(put_videos(two_videos), fps=12.5), store, progress)
    for _, info in read_samples(result.manifest, store).values():
        assert info.fps == 12.5
        assert info.start_frame == int(info.start * info.source_fps / 12.5 + 1e-6)


def test_the_contact_sheet_shows_what_was_selected(
    store: ObjectStore,
    two_videos: list[VideoRecord],
    put_videos: Put,
    make_config: Make,
    progress: SilentProgress,
) -> None:
    config = make_config(put_videos(two_videos), previews=3)
    manifest = stage.run(config, store, progress).manifest
    sheet = Image.open(io.BytesIO(store.get_bytes(manifest.file_uri("contact_sheet.png"))))
    assert sheet.format == "PNG"
    assert sheet.height > 2 * 120
    assert sum(entry.path.startswith("previews/") for entry in manifest.files) == 3
    assert np.asarray(sheet.convert("L")).std() > 20


def fetch(manifest: Manifest, store: ObjectStore, folder: Path) -> Path:
    """Every file of a manifest, on local disk."""
    for entry in manifest.files:
        target = folder / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        store.get_file(manifest.file_uri(entry.path), target, sha256=entry.sha256)
    return folder


def test_webdataset_reads_the_shards(
    store: ObjectStore,
    tmp_path: Path,
    two_videos: list[VideoRecord],
    put_videos: Put,
    make_config: Make,
    progress: SilentProgress,
) -> None:
    import webdataset

    manifest = stage.run(make_config(put_videos(two_videos)), store, progress).manifest
    folder = fetch(manifest, store, tmp_path)
    found = list(webdataset.WebDataset(str(folder / "train-000000.tar"), shardshuffle=False))
    expected = {k: v for k, v in read_samples(manifest, store).items() if v[1].split == "train"}
    assert {sample["__key__"] for sample in found} == set(expected)
    for sample in found:
        latent, info = expected[sample["__key__"]]
        assert torch.equal(load(sample["safetensors"])["latent"], latent)
        assert json.loads(sample["json"])["start_frame"] == info.start_frame


def test_energon_reads_the_shards(
    store: ObjectStore,
    tmp_path: Path,
    two_videos: list[VideoRecord],
    put_videos: Put,
    make_config: Make,
    progress: SilentProgress,
) -> None:
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        SavableDataLoader,
        WorkerConfig,
        get_train_dataset,
        stateless,
    )

    @stateless
    def keep(sample: Mapping[str, object]) -> dict[str, object]:
        return dict(sample)

    class Encoder(DefaultTaskEncoder):
        cookers = [Cooker(keep)]

        def encode_sample(self, sample: dict[str, object]) -> dict[str, object]:
            return sample

        def batch(self, samples: list[dict[str, object]]) -> list[dict[str, object]]:
            return samples

        def encode_batch(self, batch: list[dict[str, object]]) -> list[dict[str, object]]:
            return batch

    manifest = stage.run(make_config(put_videos(two_videos)), store, progress).manifest
    dataset = get_train_dataset(
        fetch(manifest, store, tmp_path),
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=1,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        task_encoder=Encoder(),
        repeat=False,
    )
    expected = {k: v for k, v in read_samples(manifest, store).items() if v[1].split == "train"}
    seen = set()
    for batch in SavableDataLoader(dataset):
        for sample in batch:
            key = sample["__key__"].rsplit("/", 1)[-1]
            latent, info = expected[key]
            assert torch.equal(load(bytes(sample["safetensors"]))["latent"], latent)
            assert sample["json"]["start"] == info.start
            seen.add(key)
    assert seen == set(expected)


def test_guide_layout_holds_the_same_latents_with_their_text(
    store: ObjectStore,
    storage_root: str,
    tmp_path: Path,
    two_videos: list[VideoRecord],
    put_videos: Put,
    make_config: Make,
    progress: SilentProgress,
) -> None:
    videos = put_videos(two_videos)
    with pytest.raises(UserError, match=r"prompt_embedding .*'prompts'"):
        stage.run(make_config(videos, layout="guide"), store, progress)
    embedding = torch.randn(512, 64).bfloat16()
    uri = f"{storage_root}/prompts/"
    name = f"prompts/{prompt_digest(two_videos[0].prompt)}.safetensors"
    info = store.put_bytes(uri + name, save({"embedding": embedding, "length": torch.tensor(7)}))
    entry = FileEntry(path=name, bytes=info.bytes, sha256=info.sha256 or "")
    prompts = Manifest(
        kind="prompt-embeddings",
        stage="t",
        stage_version="1",
        address="t",
        uri=uri,
        files=(entry,),
    )
    store.put_bytes(f"{uri}manifest.json", prompts.model_dump_json().encode())
    config = make_config(videos, layout="guide", prompts=f"{uri}manifest.json")
    manifest = stage.run(config, store, progress).manifest
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
    for file in manifest.files:
        if file.path.startswith(("train/", "validation/")):
            store.get_file(manifest.file_uri(file.path), tmp_path / file.path, sha256=file.sha256)
    in_shards = stage.run(make_config(videos), store, progress)
    # which do not depend on what their prompts mean
    assert stage.run(config.model_copy(update={"layout": "shards"}), store, progress).reused
    shards = read_samples(in_shards.manifest, store)
    by_place = {(i.split, i.video.rsplit("/")[-1], i.start_frame): x for x, i in shards.values()}
    for split in ("train", "validation"):
        samples = list(iter_guide_samples(tmp_path / split))
        assert [sample.index for sample in samples] == [0, 1, 2, 3]
        for sample in samples:
            place = (split, sample.info["video_path"], sample.info["start_frame"])
            assert torch.equal(sample.latent, by_place.pop(place))
            assert torch.equal(sample.embedding, embedding)
            assert torch.equal(sample.mask, torch.ones(512).bfloat16())
    assert not by_place


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 10}, "10 frames .* 9 or 17"),
        ({"width": 100}, "100 x 64 .* 16.* 96 x 64"),
        ({"size_buckets": ["64x100"]}, "100 x 64 "),
    ],
)
def test_impossible_settings_say_what_would_do(
    make_config: Make, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_config("s3://b/manifest.json", **changes)
