"""Which objects count as new, and when a batch of them is ready."""

from __future__ import annotations

import pytest

from components.lib.contract import UserError
from components.lib.store import ObjectStore
from components.lib.store.watch import BucketWatch


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def watch(store: ObjectStore, root: str, clock: Clock, prefix: str = "in") -> BucketWatch:
    return BucketWatch(
        store, f"{root}/{prefix}", f"{root}/triggers/t.json", (".mp4", ".mov"),
        settle_s=10, max_wait_s=100, clock=clock,
    )  # fmt: skip


def test_a_batch_is_ready_when_nothing_was_added_for_a_while(
    store: ObjectStore, storage_root: str, clock: Clock
) -> None:
    watched = watch(store, storage_root, clock)
    assert watched.look() == 0
    store.put_bytes(f"{storage_root}/in/a.mp4", b"a")
    store.put_bytes(f"{storage_root}/in/a.json", b"{}")
    store.put_bytes(f"{storage_root}/in/.hidden.mp4", b"h")
    store.put_bytes(f"{storage_root}/in-other/b.mp4", b"b")
    assert watched.look() == 0
    clock.now = 9
    store.put_bytes(f"{storage_root}/in/b.MOV", b"b")
    assert watched.look() == 0
    clock.now = 18
    assert watched.look() == 0
    clock.now = 19
    assert watched.look() == 2
    watched.take("run-1")
    assert watched.look() == 0
    clock.now = 1000
    assert watched.look() == 0


def test_a_steady_stream_does_not_wait_for_ever(
    store: ObjectStore, storage_root: str, clock: Clock
) -> None:
    watched = watch(store, storage_root, clock)
    ready = []
    for number in range(15):
        clock.now = 8 * number
        store.put_bytes(f"{storage_root}/in/{number}.mp4", b"x%d" % number)
        ready.append(watched.look())
    assert ready[:13] == [0] * 13  # 96 s: not yet
    assert ready[13:] == [14, 15]


def test_a_poller_that_starts_again_remembers(
    store: ObjectStore, storage_root: str, clock: Clock
) -> None:
    store.put_bytes(f"{storage_root}/in/a.mp4", b"a")
    first = watch(store, storage_root, clock)
    first.look()
    clock.now = 10
    assert first.look() == 1
    first.take("run-7")

    second = watch(store, storage_root, clock)
    assert second.run == "run-7"
    assert second.look() == 0
    store.delete(f"{storage_root}/in/a.mp4")  # a deletion starts nothing
    clock.now = 30
    assert second.look() == 0
    store.put_bytes(f"{storage_root}/in/a.mp4", b"another content")
    second.look()
    clock.now = 40
    assert second.look() == 1


def test_a_memory_of_another_prefix_or_none_at_all_is_named(
    store: ObjectStore, storage_root: str, clock: Clock
) -> None:
    first = watch(store, storage_root, clock)
    first.look()
    first.take("run")
    with pytest.raises(UserError, match=r"/t\.json .*/in/.*/out/"):
        watch(store, storage_root, clock, "out").look()
    store.put_bytes(f"{storage_root}/triggers/t.json", b"[]")
    with pytest.raises(UserError, match=r"t\.json is no trigger's state"):
        watch(store, storage_root, clock).look()
