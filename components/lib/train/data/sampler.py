"""In which order samples are visited, as a pure function of a seed and a running sample number.

Sample number n (counted over the whole run, over all ranks) always means the same sample and the
same random draws, however the numbers are dealt to ranks, micro-batches and accumulation. So every
parallel layout sees the same data, no rank sees another's sample, and the exact position of a run
is one integer.

Each epoch shuffles the shards and then mixes the samples within windows of a few shards: a full
shuffle would need every shard in the local cache at once; a window needs only its own. Epochs
follow each other without a gap, so the last samples of an epoch are never dropped.

Ranks wait for the one with the largest clip. So samples of one size follow each other in runs of
2^k, each of which begins at a multiple of its length: the samples that 1, 2, 4 … ranks take at once
are of one size, whatever the layout. What is left of a size at the end of an epoch makes shorter
runs. The trade-off: a step sees fewer sizes, and a few samples wait for others of their size to
come, beyond their window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache

import numpy as np


class Sampler:
    """Maps a running sample number to (shard, index in the shard)."""

    def __init__(
        self,
        counts: Sequence[int],
        *,
        seed: int,
        window: int,
        shuffle: bool,
        sizes: Sequence[Hashable] = (),
        run: int = 0,
    ) -> None:
        """``counts`` are samples per shard; ``window`` shards are mixed with each other.

        ``sizes``: of each shard's samples; none where they are alike. ``run``: most samples of one
        size in a row, a power of two; 0 mixes sizes freely, as ``shuffle=False`` leaves them.
        """
        if sum(counts) == 0:
            raise ValueError("an order needs at least one sample")
        if run & (run - 1):
            raise ValueError(f"runs are of 1, 2, 4 … samples, not {run}")
        kinds = {size: kind for kind, size in enumerate(dict.fromkeys(sizes))}
        self.kinds = np.array([kinds[size] for size in sizes])
        self.run = run if len(kinds) > 1 else 0
        self.counts = tuple(counts)
        self.total = sum(counts)
        self.seed, self.window, self.shuffle = seed, window, shuffle
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def at(self, number: int) -> tuple[int, int]:
        """(shard, index) of running sample ``number``."""
        epoch, position = divmod(number, self.total)
        shard, index = self._epoch(epoch)[position]
        return int(shard), int(index)

    def _make_epoch(self, epoch: int) -> np.ndarray:
        shards = np.arange(len(self.counts))
        if not self.shuffle:
            return self._pairs(shards)
        windows = self._windows(shards, epoch)
        return np.concatenate(list(self._runs(windows, epoch) if self.run else windows))

    def _windows(self, shards: np.ndarray, epoch: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(seed_of("order", self.seed, epoch))
        rng.shuffle(shards)
        for start in range(0, len(shards), self.window):
            pairs = self._pairs(shards[start : start + self.window])
            rng.shuffle(pairs)
            yield pairs

    def _runs(self, windows: Iterator[np.ndarray], epoch: int) -> Iterator[np.ndarray]:
        """The samples of the windows in runs of one size, each at a multiple of its length."""
        rng = np.random.default_rng(seed_of("runs", self.seed, epoch))
        queues = [np.empty((0, 2), dtype=np.int64) for _ in range(self.kinds.max() + 1)]
        number, end = epoch * self.total, (epoch + 1) * self.total
        while number < end:
            length = min(number & -number or self.run, self.run)
            while max(map(len, queues)) < length:
                pairs = next(windows, None)
                if pairs is None:
                    length //= 2
                    continue
                kinds = self.kinds[pairs[:, 0]]
                queues = [
                    np.concatenate([queue, pairs[kinds == kind]])
                    for kind, queue in enumerate(queues)
                ]
            # As often as there are samples that wait: what is frequent comes frequently.
            odds = np.array([len(queue) * (len(queue) >= length) for queue in queues])
            kind = int(rng.choice(len(queues), p=odds / odds.sum()))
            yield queues[kind][:length]
            queues[kind] = queues[kind][length:]
            number += length

    def _pairs(self, shards: np.ndarray) -> np.ndarray:
        """[N, 2] of (shard, index) for all samples of these shards."""
        return np.array(
            [(shard, index) for shard in shards for index in range(self.counts[shard])],
            dtype=np.int64,
        ).reshape(-1, 2)


def numbers_of(
    consumed: int, *, micro_batch: int, data_parallel: int, rank: int, micro_step: int
) -> list[int]:
    """Running sample numbers of one micro-batch of one data-parallel rank.

    ``consumed`` samples were used before this optimizer step; ``micro_step`` counts micro-batches
    within it.
    """
    start = consumed + micro_step * micro_batch * data_parallel + rank * micro_batch
    return list(range(start, start + micro_batch))


def seed_of(*parts: object) -> int:
    """A 63-bit seed that depends on every part, the same on every machine."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
