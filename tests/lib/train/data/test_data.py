"""Order, cache, sources and loader: no sample lost, none seen twice, position exact."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.lib.contract import UserError
from components.lib.cosmos.diffusion.edm import validation_sigmas
from components.lib.shards.cache import ShardCache, ShardRef
from components.lib.shards.dataset import open_source
from components.lib.shards.latents import parse_latent
from components.lib.store import ObjectStore
from components.lib.train.data.clips import ClipReader
from components.lib.train.data.loader import Loader
from components.lib.train.data.noise import SampleNoise
from components.lib.train.data.sampler import Sampler, numbers_of
from components.lib.train.settings.config import DiffusionModel, TaskEncoder

COUNTS = st.lists(st.integers(0, 7), min_size=1, max_size=9).filter(lambda counts: sum(counts) > 0)


@given(COUNTS, st.integers(0, 99), st.integers(1, 4), st.booleans())
def test_every_epoch_visits_every_sample_once(
    counts: list[int], seed: int, window: int, shuffle: bool
) -> None:
    order = Sampler(counts, seed=seed, window=window, shuffle=shuffle)
    everything = [(shard, i) for shard, count in enumerate(counts) for i in range(count)]
    for epoch in range(3):
        start = epoch * order.total
        assert sorted(order.at(n) for n in range(start, start + order.total)) == everything


@given(COUNTS, st.integers(0, 99), st.integers(1, 3))
def test_only_the_shards_of_one_window_are_needed_at_a_time(
    counts: list[int], seed: int, window: int
) -> None:
    order = Sampler(counts, seed=seed, window=window, shuffle=True)
    shards = [order.at(n)[0] for n in range(order.total)]
    spans = {s: (shards.index(s), len(shards) - shards[::-1].index(s)) for s in set(shards)}
    for position in range(order.total):
        assert sum(first <= position < last for first, last in spans.values()) <= window


def test_shuffling_depends_on_seed_and_epoch() -> None:
    def epoch(seed: int, number: int) -> list[tuple[int, int]]:
        order = Sampler([20, 20], seed=seed, window=2, shuffle=True)
        return [order.at(n) for n in range(40 * number, 40 * number + 40)]

    assert epoch(1, 0) == epoch(1, 0)
    assert len({tuple(epoch(1, 0)), tuple(epoch(2, 0)), tuple(epoch(1, 1))}) == 3


SIZES = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(["small", "long", "wide"])),
    min_size=1,
    max_size=20,
).filter(lambda shards: sum(count for count, _ in shards) > 0)


@given(SIZES, st.integers(0, 99), st.integers(1, 4), st.sampled_from([1, 2, 8, 64]))
def test_samples_of_one_size_follow_each_other(
    shards: list[tuple[int, str]], seed: int, window: int, run: int
) -> None:
    counts, sizes = [count for count, _ in shards], [size for _, size in shards]
    order = Sampler(counts, seed=seed, window=window, shuffle=True, sizes=sizes, run=run)
    everything = [(shard, i) for shard, count in enumerate(counts) for i in range(count)]
    for epoch in range(3):
        visited = [order.at(n) for n in range(epoch * order.total, (epoch + 1) * order.total)]
        assert sorted(visited) == everything, "every sample once"
    # However many ranks take them (the numbers are aligned, whatever the length of an epoch) only
    # what is left over at the ends of the epochs is mixed: less than ranks samples of each size.
    taken = [sizes[order.at(n)[0]] for n in range(3 * order.total)]
    for ranks in (2, 8, 64):
        if ranks <= run:
            steps = [set(taken[n : n + ranks]) for n in range(0, len(taken), ranks)]
            assert sum(len(step) > 1 for step in steps) <= 3 * (len(set(sizes)) + 1)


@given(COUNTS, st.integers(0, 99), st.integers(1, 4))
def test_data_of_one_size_keeps_its_order(counts: list[int], seed: int, window: int) -> None:
    plain = Sampler(counts, seed=seed, window=window, shuffle=True)
    alike = Sampler(
        counts, seed=seed, window=window, shuffle=True, sizes=["one"] * len(counts), run=8
    )
    assert [plain.at(n) for n in range(2 * plain.total)] == [
        alike.at(n) for n in range(2 * plain.total)
    ]


def test_frequent_sizes_come_frequently_and_not_one_after_the_other() -> None:
    shards = [(64, "short")] * 30 + [(64, "long")] * 10
    order = Sampler(
        [count for count, _ in shards],
        seed=1,
        window=8,
        shuffle=True,
        sizes=[size for _, size in shards],
        run=64,
    )
    runs = [shards[order.at(n)[0]][1] for n in range(0, order.total, 64)]
    assert runs.count("short") == 30
    for part in (runs[:20], runs[20:]):
        assert 2 <= part.count("long") <= 8


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 50))
def test_ranks_and_micro_batches_share_out_one_global_batch(
    micro: int, ranks: int, steps: int, consumed: int
) -> None:
    dealt = [
        number
        for step in range(steps)
        for rank in range(ranks)
        for number in numbers_of(
            consumed, micro_batch=micro, data_parallel=ranks, rank=rank, micro_step=step
        )
    ]
    assert sorted(dealt) == list(range(consumed, consumed + micro * ranks * steps))


def test_draws_are_the_sample_s_own() -> None:
    shape = torch.Size((16, 2, 4, 4))
    one, again, other = (SampleNoise(n, 1, DiffusionModel(), shape) for n in (5, 5, 6))
    assert torch.equal(one.noise, again.noise) and one.sigma == again.sigma
    assert not torch.equal(one.noise, other.noise) and one.sigma != other.sigma


def test_draws_have_the_published_distribution() -> None:
    draws = [SampleNoise(n, 1, DiffusionModel(), torch.Size((1,))) for n in range(4000)]
    logs = torch.stack([draw.sigma for draw in draws]).log()
    assert logs.mean().item() == pytest.approx(0.0, abs=0.06)
    assert logs.std().item() == pytest.approx(1.0, abs=0.05)
    kept = np.mean([draw.keep_text for draw in draws])
    assert kept == pytest.approx(0.8, abs=0.03)
    assert {draw.condition_frames for draw in draws} == {1, 2, 3, 4}


def test_the_validation_grid_stands_for_the_training_distribution() -> None:
    grid = validation_sigmas(4).float().log()
    quantiles = torch.distributions.Normal(0, 1).icdf(torch.tensor([0.125, 0.375, 0.625, 0.875]))
    torch.testing.assert_close(grid, quantiles.float(), rtol=1e-5, atol=1e-5)


def test_the_cache_stays_within_its_bound(
    store: ObjectStore, storage_root: str, tmp_path: Path
) -> None:
    refs = []
    for number in range(6):
        info = store.put_bytes(f"{storage_root}/{number}.tar", bytes([number]) * 1000)
        refs.append(ShardRef(name=f"{number}.tar", uri=info.uri, samples=1, sha256=info.sha256))
    cache = ShardCache(tmp_path, 2500, store)
    for ref in refs * 2:
        assert cache.path(ref).read_bytes() == bytes([int(ref.name[0])]) * 1000
        assert cache.bytes_held() <= 3500
        time.sleep(0.002)


def test_a_shard_that_is_not_what_the_manifest_says_is_refused(
    store: ObjectStore, storage_root: str, tmp_path: Path
) -> None:
    info = store.put_bytes(f"{storage_root}/x.tar", b"other bytes")
    ref = ShardRef(name="x.tar", uri=info.uri, samples=1, sha256="0" * 64)
    with pytest.raises(UserError):
        ShardCache(tmp_path / "cache", 10**6, store).path(ref)
    assert not list((tmp_path / "cache").glob("*.tar"))


def test_a_folder_of_the_guide_is_read(tmp_path: Path) -> None:
    from components.lib.shards.guide import guide_parts
    from components.lib.train.tasks.diffusion import _guide_sample

    latent, text = torch.randn(16, 2, 4, 4), torch.randn(512, 32)
    from components.lib.shards.latents import ClipInfo

    info = ClipInfo(
        video="v",
        video_sha256="",
        prompt="p",
        prompt_sha256="",
        start=0,
        start_frame=0,
        num_frames=9,
        fps=30.0,
        source_fps=30.0,
        height=32,
        width=32,
        clip_height=32,
        clip_width=32,
        resize="crop",
    )
    for number in (0, 1, 10):
        value = latent.repeat(1, 1 + (number == 1), 1, 1) + number
        for name, data in guide_parts(number, value, text, info).items():
            (tmp_path / name).write_bytes(data)
    source, manifest = open_source(
        str(tmp_path), None, cache_dir=tmp_path / "cache", max_bytes=10**6
    )
    assert manifest is None
    assert source.counts("train") == [3] and source.counts("validation") == []
    assert source.biggest("train") == (0, 1) and source.biggest("validation") is None
    sample = _guide_sample(*source.read("train", 0, 2))
    torch.testing.assert_close(sample["latent"], (latent + 10).bfloat16())
    assert sample["fps"].item() == 30.0


def test_the_biggest_sample_of_a_folder_is_found(sized_folder: Path, tmp_path: Path) -> None:
    """Nobody else says for which size training needs memory."""
    source, _ = open_source(str(sized_folder), None, cache_dir=tmp_path, max_bytes=10**6)
    sizes = {
        (shard, index): parse_latent(source.read("train", shard, index)[1])[0].numel()
        for shard, count in enumerate(source.counts("train"))
        for index in range(count)
    }
    place = source.biggest("train")
    assert place is not None and sizes[place] == max(sizes.values()) > min(sizes.values())


def test_an_empty_data_path_is_explained(tmp_path: Path) -> None:
    for path, told in (("", "data.path is empty"), (str(tmp_path), "neither")):
        with pytest.raises(UserError, match=told):
            open_source(path, None, cache_dir=tmp_path / "cache", max_bytes=1)


def test_batches_come_in_order_and_errors_surface() -> None:
    def make(numbers: list[int]) -> list[int]:
        time.sleep(0.01 * (3 - numbers[0] % 3))
        if numbers == [7]:
            raise UserError("sample 7 is bad")
        return numbers

    loader = Loader(make, iter([n] for n in range(100)), workers=3, prefetch=5)
    assert [loader.next() for _ in range(7)] == [[n] for n in range(7)]
    with pytest.raises(UserError, match="sample 7"):
        loader.next()
    loader.close()


def clip_of(path: Path, seed: int = 0, **settings: object) -> torch.Tensor:
    encoder = TaskEncoder.model_validate({"temporal_crop": 9, "crop_height": 64, **settings})
    return ClipReader(encoder, 2**26).clip(path.name, path.read_bytes(), seed)


def test_clips_are_cut_from_real_video(clips: dict[str, Path]) -> None:
    resized = {"resize_height": 96, "resize_width": 160}
    clip = clip_of(clips["bikes"], 3, **resized)
    assert clip.shape == (3, 9, 64, 64) and clip.dtype == torch.uint8
    assert torch.equal(clip, clip_of(clips["bikes"], 3, **resized))
    assert not torch.equal(clip, clip_of(clips["bikes"], 4, **resized))
    reversed_clip = clip_of(clips["bikes"], 3, time_reverse=1.0, **resized)
    assert torch.equal(clip.flip(1), reversed_clip)
    assert torch.equal(clip.flip(3), clip_of(clips["bikes"], 3, horizontal_flip=1.0, **resized))


def test_the_guides_corner_crop_is_available(clips: dict[str, Path]) -> None:
    from components.lib.video.frames import read_clip

    clip = clip_of(clips["bikes"], 3, position="corner")
    frames = read_clip(clips["bikes"], count=9)[:, :64, :64]
    assert np.array_equal(clip.numpy(), frames.transpose(3, 0, 1, 2))


def test_videos_that_do_not_fit_the_crop_are_named(clips: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"bikes.*640x272"):
        clip_of(clips["bikes"], crop_height=512)
    with pytest.raises(UserError, match=r"bikes.*frames"):
        clip_of(clips["bikes"], temporal_crop=1001)
