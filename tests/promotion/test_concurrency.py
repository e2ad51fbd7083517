"""Promotions and rollbacks at the same time, in separate processes, on a real SeaweedFS."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from components.lib.contract import UserError
from components.lib.registry import PointerMoved, Registry, models_root, rollback
from components.lib.store import ObjectStore
from components.promotion.config import PromotionConfig
from components.promotion.stage import run

ACTORS = 20


class Quiet:
    """A Progress for child processes."""

    def log(self, message: str) -> None:
        """Nothing."""

    def task(self, what: Any, total: Any = None, unit: Any = "") -> Any:
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> Any:
        return None

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Nothing."""


def promote(env: dict[str, str], values: dict[str, Any]) -> int:
    """Pointer number that this promotion was acknowledged with, 0 when it was not promoted."""
    result = run(PromotionConfig(**values), ObjectStore.from_env(env), Quiet())
    summary = result.manifest.summary
    return summary["pointer"]["number"] if summary["decision"] == "promoted" else 0


def roll_back(env: dict[str, str], root: str) -> int:
    """The same of a rollback."""
    try:
        return rollback(Registry(ObjectStore.from_env(env), root, "m"), None, "race").number
    except (PointerMoved, UserError):
        return 0


class Observer(threading.Thread):
    """Reads the pointer all the time and keeps what it saw wrong."""

    def __init__(self, registry: Registry) -> None:
        super().__init__()
        self.registry, self.stop = registry, threading.Event()
        self.seen: list[int] = []
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self.stop.is_set():
            head = self.registry.production()
            if head is None:
                continue
            if self.seen and head.number < self.seen[-1]:
                self.wrong.append(f"state {head.number} after {self.seen[-1]}")
            self.seen.append(head.number)
            uri = self.registry.version_uri(head.version) + "manifest.json"
            if self.registry.store.stat(uri) is None:
                self.wrong.append(f"m@{head.version} is in production and not there")


@pytest.fixture
def pool() -> Any:
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(4, mp_context=context) as workers:
        workers.submit(int).result()  # fork all of them now, before any thread is started
        yield workers


def test_twenty_at_once_never_leave_a_missing_or_older_version(
    world: Any, store: Any, store_env: Any, storage_root: Any, pool: Any
) -> None:
    """Forced promotions of 14 models and 6 rollbacks, four processes at a time.

    Every acknowledged state is there exactly once, in an unbroken chain, and a reader never sees
    the pointer go back in time or point at a version that is not complete.
    """
    registry = Registry(store, models_root(storage_root), "m")
    seed = world.train("seed")
    env = {key: value for key, value in store_env.items() if key.startswith("AWS_")}
    base = {"model_name": "m", "storage_root": storage_root, "force": True, "reason": "race"}
    promote(env, {**base, "training": seed, "evaluation": world.evaluate("seed", seed, [0.5])})
    jobs: list[Any] = []
    for number in range(ACTORS - 6):
        training = world.train(f"r{number}")
        evaluation = world.evaluate(f"r{number}", training, [0.5])
        jobs.append((promote, {**base, "training": training, "evaluation": evaluation}))
    for place in range(6):
        jobs.insert(3 * place, (roll_back, models_root(storage_root)))
    observer = Observer(registry)
    observer.start()
    try:
        futures = [pool.submit(work, env, argument) for work, argument in jobs]
        numbers = [future.result() for future in futures]
    finally:
        observer.stop.set()
        observer.join()
    acknowledged = [number for number in numbers if number]
    states = registry.history()
    assert not observer.wrong
    assert len(acknowledged) == len(set(acknowledged)), "no state is won by two"
    assert sorted([1, *acknowledged]) == [state.number for state in states]
    head = registry.production()
    assert head is not None and head.number == max(acknowledged)
    for before, after in itertools.pairwise(states):
        assert after.replaced == before.version
    assert {state.version for state in states} <= set(registry.versions())
    promoted = sum(work is promote for work, _ in jobs)
    assert promoted == ACTORS - 6 and len(registry.versions()) == 1 + promoted


def test_two_first_promotions_never_both_win(
    world: Any, store: Any, store_env: Any, storage_root: Any, pool: Any
) -> None:
    """Without force the loser meets a production it was not compared with, and is refused."""
    env = {key: value for key, value in store_env.items() if key.startswith("AWS_")}
    jobs = []
    for name in ("one", "two"):
        training = world.train(name)
        evaluation = world.evaluate(name, training, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
        values = {
            "model_name": "m", "storage_root": storage_root,
            "training": training, "evaluation": evaluation,
        }  # fmt: skip
        jobs.append(pool.submit(promote, env, values))
    assert sorted(job.result() for job in jobs) == [0, 1]
    assert len(Registry(store, models_root(storage_root), "m").history()) == 1
