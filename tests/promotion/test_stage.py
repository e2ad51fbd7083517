"""Promotion: what gets into production, what is recorded, and that repeating it changes nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from components.lib.contract import UserError
from components.lib.lineage import models_that_used, parse_lineage
from components.lib.manifest import load_manifest
from components.lib.registry import Registry, models_root, rollback
from components.lib.video.ledger import processed
from components.promotion import version as version_module
from components.promotion.config import PromotionConfig
from components.promotion.stage import run

BETTER = (0.9, 1.8, 2.7, 3.6, 4.5, 5.4)
BEST = (0.8, 1.6, 2.4, 3.2, 4.0, 4.8)
WORSE = (1.1, 2.2, 3.3, 4.4, 5.5, 6.6)


@pytest.fixture
def registry(store: Any, storage_root: Any) -> Registry:
    return Registry(store, models_root(storage_root), "m")


@pytest.fixture
def promote(world: Any, store: Any, storage_root: Any, progress: Any) -> Any:
    def go(training: Any, evaluation: Any, **more: Any) -> Any:
        config = PromotionConfig(
            training=training, evaluation=evaluation, model_name="m",
            storage_root=storage_root, **more,
        )  # fmt: skip
        return run(config, store, progress)

    return go


@pytest.fixture
def first(world: Any, promote: Any) -> Any:
    training = world.train("one")
    evaluation = world.evaluate("one", training, BETTER)
    return training, evaluation, promote(training, evaluation)


def challenge(
    world: Any, registry: Any, name: Any, losses: Any, production_losses: Any = BETTER
) -> Any:
    """A run evaluated against what is in production."""
    head = registry.production()
    uri = registry.version_uri(head.version) + "manifest.json"
    training = world.train(name, start=uri)
    return training, world.evaluate(name, training, losses, production=(uri, production_losses))


def test_first_version_is_complete(first: Any, registry: Any, store: Any) -> None:
    _, _, result = first
    assert result.metrics["promoted"] == 1
    head = registry.production()
    assert (head.number, head.version, head.replaced) == (1, 1, 0)
    manifest = registry.load(1)
    assert manifest.kind == "checkpoint"
    weights = store.get_bytes(
        manifest.file_uri("model/model.safetensors"),
        sha256=manifest.entry("model/model.safetensors").sha256,
    )
    assert weights == b"one"
    card = store.get_bytes(manifest.file_uri("model_card.md")).decode()
    assert card.startswith("# m@1\n") and "passed, first version" in card
    json.loads(store.get_bytes(manifest.file_uri("metrics.json")))
    lineage = parse_lineage(store.get_bytes(manifest.file_uri("lineage.json")), "")
    assert [(v.uri, v.split) for v in lineage.videos] == [
        ("s3://fleet/a/one.mp4", "train"),
        ("s3://fleet/b/two.mp4", "validation"),
    ]
    assert [step.stage for step in lineage.steps].index("videos") == 1


def test_the_same_promotion_again_is_a_no_op_that_says_so(
    first: Any, promote: Any, registry: Any, progress: Any
) -> None:
    training, evaluation, result = first
    again = promote(training, evaluation)
    assert again.reused and again.manifest == result.manifest
    assert "m@1 is in production: already promoted." in progress.lines
    assert len(registry.history()) == 1 and registry.versions() == [1]


def test_better_replaces_and_worse_does_not(
    first: Any, world: Any, promote: Any, registry: Any
) -> None:
    refused = promote(*challenge(world, registry, "worse", WORSE))
    assert refused.metrics["promoted"] == 0
    assert refused.manifest.summary["decision"] == "refused"
    assert registry.production().version == 1 and registry.versions() == [1]
    promoted = promote(*challenge(world, registry, "best", BEST))
    assert promoted.manifest.summary["production"] == "m@2"
    assert registry.production().replaced == 1


def test_force_is_recorded_with_its_reason(
    first: Any, world: Any, promote: Any, registry: Any
) -> None:
    with pytest.raises(ValidationError, match="needs a reason"):
        promote("s3://x/y", "s3://x/z", force=True)
    promote(*challenge(world, registry, "worse", WORSE), force=True, reason="demo on Friday")
    head = registry.production()
    assert (head.version, head.forced, head.reason) == (2, True, "demo on Friday")


def test_a_rolled_back_model_does_not_come_back_by_itself(
    first: Any, world: Any, promote: Any, registry: Any
) -> None:
    runs = challenge(world, registry, "best", BEST)
    promote(*runs)
    pointer = rollback(registry, None, "bad at night")
    assert (pointer.number, pointer.version, pointer.replaced) == (3, 1, 2)
    again = promote(*runs)
    assert again.manifest.summary["decision"] == "refused"
    assert "rolled back" in again.manifest.summary["rules"][-1]["sentence"]
    promote(*runs, force=True, reason="night fixed")
    assert registry.production().version == 2, "the same weights keep their number"


def test_rollback_goes_to_the_version_before_and_not_to_and_fro(
    first: Any, world: Any, promote: Any, registry: Any
) -> None:
    promote(*challenge(world, registry, "two", BEST))
    third = tuple(0.9 * value for value in BEST)
    promote(*challenge(world, registry, "three", third, production_losses=BEST))
    assert rollback(registry, None, "x").version == 2
    assert rollback(registry, None, "x").version == 1
    with pytest.raises(UserError, match="first in production"):
        rollback(registry, None, "x")
    with pytest.raises(UserError, match="no m@9"):
        rollback(registry, 9, "x")
    assert rollback(registry, 3, "x").version == 3


def test_interrupted_while_copying_goes_on_with_the_same_number(
    world: Any, promote: Any, registry: Any, monkeypatch: Any
) -> None:
    training = world.train("one")
    evaluation = world.evaluate("one", training, BETTER)
    with monkeypatch.context() as patch:
        patch.setattr(version_module, "model_card", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            promote(training, evaluation)
    assert registry.production() is None and registry.versions() == []
    promote(training, evaluation)
    assert registry.production().version == 1


def test_interrupted_after_the_pointer_moved_finds_itself(
    first: Any, promote: Any, registry: Any, store: Any
) -> None:
    training, evaluation, result = first
    store.delete(result.manifest_uri)
    again = promote(training, evaluation)
    assert not again.reused and again.manifest.summary["decision"] == "promoted"
    assert len(registry.history()) == 1


def test_an_evaluation_of_other_weights_is_an_error(world: Any, promote: Any) -> None:
    evaluation = world.evaluate("one", world.train("one"), BETTER)
    with pytest.raises(UserError, match="Evaluate this training run"):
        promote(world.train("two"), evaluation)


def test_lineage_is_inherited_and_found_by_video(
    first: Any, world: Any, promote: Any, registry: Any, store: Any, storage_root: Any
) -> None:
    promote(*challenge(world, registry, "best", BEST))
    held = parse_lineage(store.get_bytes(registry.version_uri(2) + "lineage.json"), "")
    assert {step.via for step in held.steps} == {"", "m@1"}
    root = models_root(storage_root)
    for wanted in ("s3://fleet/a/one.mp4", "a" * 64, "b" * 64):
        assert [name for name, _ in models_that_used(store, root, wanted)] == ["m@1", "m@2"]
    assert models_that_used(store, root, "s3://fleet/c/bad.mp4") == []


def test_lineage_survives_deletion_of_the_runs(
    first: Any, world: Any, promote: Any, registry: Any, store: Any
) -> None:
    training, _, _ = first
    store.delete(load_manifest(training, store).uri + "model/model.safetensors")
    for uri in (world.videos, world.data):
        store.delete(uri)
    held = parse_lineage(store.get_bytes(registry.version_uri(1) + "lineage.json"), "")
    assert len(held.videos) == 2
    assert store.get_bytes(registry.version_uri(1) + "model/model.safetensors") == b"one"


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "../x", "a b"])
def test_names_that_cannot_be_folders_are_refused(
    world: Any, store: Any, storage_root: Any, progress: Any, name: Any
) -> None:
    training = world.train("one")
    evaluation = world.evaluate("one", training, BETTER)
    config = PromotionConfig(
        training=training, evaluation=evaluation, model_name=name, storage_root=storage_root
    )
    with pytest.raises(UserError, match="cannot be the name"):
        run(config, store, progress)


def test_the_gates_rules_are_set_like_any_option(
    first: Any, world: Any, promote: Any, registry: Any
) -> None:
    runs = challenge(world, registry, "best", BEST)
    strict = promote(*runs, min_improvement=0.5)
    assert strict.manifest.summary["decision"] == "refused"
    assert "needed more than 0.5" in strict.manifest.summary["rules"][0]["sentence"]
    assert promote(*runs).manifest.summary["decision"] == "promoted"


def test_the_ledger_takes_the_videos_of_a_promoted_model_and_no_others(
    world: Any, promote: Any, registry: Any, store: Any, storage_root: Any, progress: Any
) -> None:
    entered = {"videos": world.videos, "ledger": "m"}
    training = world.train("one")
    promote(training, world.evaluate("one", training, WORSE), **entered)
    assert processed(store, storage_root, "m").videos == {}
    assert "The model was refused, so its videos stay new." in progress.lines

    result = promote(training, world.evaluate("better", training, BETTER), **entered)
    held = processed(store, storage_root, "m").videos
    assert held == {b"\xaa" * 32: "train", b"\xbb" * 32: "validation"}
    (uri,) = [info.uri for info in store.list(f"{storage_root}/ledger/")]
    assert result.manifest.summary["ledger"] == uri == f"{storage_root}/ledger/m/m-one.txt"

    challenger, judged = challenge(world, registry, "two", WORSE)
    promote(challenger, judged, **entered, enter_refused=True)
    assert len(list(store.list(f"{storage_root}/ledger/"))) == 2


def test_a_promotion_killed_before_the_ledger_enters_it_when_started_again(
    world: Any, promote: Any, registry: Any, store: Any, storage_root: Any, monkeypatch: Any
) -> None:
    training = world.train("one")
    evaluation = world.evaluate("one", training, BETTER)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("components.promotion.stage.commit_run", dies)
        with pytest.raises(KeyboardInterrupt):
            promote(training, evaluation, videos=world.videos, ledger="m")
    assert registry.production().version == 1
    assert processed(store, storage_root, "m").videos == {}
    promote(training, evaluation, videos=world.videos, ledger="m")
    assert len(processed(store, storage_root, "m").videos) == 2
    assert len(registry.history()) == 1


def test_a_ledger_without_videos_is_a_mistake(world: Any, promote: Any) -> None:
    training = world.train("one")
    with pytest.raises(ValidationError, match="a ledger needs the videos"):
        promote(training, world.evaluate("one", training, BETTER), ledger="m")
