"""Overrides say what they change, and a wrong one is refused before anything runs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.harness.overrides import (
    STAGES,
    check_overrides,
    make_config,
    parse_value,
    stage_config,
    stage_overrides,
)
from components.lib.contract import UserError


def test_stage_and_trainer_overrides_reach_their_stage() -> None:
    overrides = [
        "latent_encoding.chunks_per_video=20",
        "trainer.max_steps=7",
        "optim.config.lr=1e-6",
    ]
    assert stage_overrides("latent_encoding", overrides) == {"chunks_per_video": 20}
    assert stage_overrides("training", overrides) == {"overrides": overrides[1:]}
    assert stage_overrides("tar_sharding", overrides) == {}


def test_entries_of_a_mapping_are_set_one_by_one() -> None:
    overrides = [
        "training.job.queue=training",
        "training.job.node_selector={gpu: h100}",
        "training.job.active_deadline_seconds=3600",
    ]
    check_overrides(overrides)
    assert stage_overrides("training", overrides) == {
        "job": {
            "queue": "training",
            "node_selector": {"gpu": "h100"},
            "active_deadline_seconds": 3600,
        }
    }


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.job.quue=x", ["training", "'job'", "quue", "not permitted"]),
        ("training.job.memory=64 GB", ["'job'", "'64 GB' is not a quantity"]),
        ("training.job={restart_policy: Sometimes}", ["restart_policy", "OnFailure"]),
        ("training.job.name=mine", ["name and command are the stage's own"]),
        ("latent_encodng.frames=1", ["latent_encodng", "Did you mean 'latent_encoding'"]),
        (
            "latent_encoding.chunks_per_vido=2",
            ["chunks_per_vido", "Did you mean 'chunks_per_video'"],
        ),
        ("frames=33", ["frames=33", "stage.field=value"]),
        ("training.nproc", ["training.nproc", "stage.field=value"]),
        ("latent_encoding.frames=many", ["latent_encoding", "'frames'", "valid integer", "'many'"]),
        ("evaluation.seed=[1]", ["evaluation", "'seed'"]),
        ("trainer.max_step=5", ["trainer.max_step'", "Did you mean 'trainer.max_steps'"]),
        ("trainer.max_steps=soon", ["trainer.max_steps=soon", "valid integer"]),
        ("data.task_encoder.crop_heigth=64", ["Did you mean 'data.task_encoder.crop_height'"]),
        ("model.lora.rnk=4", ["Did you mean 'model.lora.rank'"]),
        ("optim.zzzz=1", ["'optim.zzzz'", "The nearest is 'optim."]),
    ],
)
def test_wrong_override_is_refused_with_the_nearest_word(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        check_overrides([override])
    for word in words:
        assert word in str(caught.value)


def test_settings_that_only_one_family_has_or_that_belong_together_are_taken() -> None:
    check_overrides(["model.lora.rank=4", "trainer.max_steps=7", "tar_sharding.clip_frames=33"])
    check_overrides(
        ["data.task_encoder.resize_height=96", "data.task_encoder.resize_width=160", "log.name=x"]
    )
    with pytest.raises(UserError, match="together"):
        check_overrides(["data.task_encoder.resize_height=96"])


def test_value_of_the_wrong_type_names_the_field() -> None:
    with pytest.raises(UserError, match="latent_encoding, field 'frames'"):
        make_config(
            "latent_encoding", {"videos": "v", "checkpoint": "c"}, ["latent_encoding.frames=many"]
        )


@given(st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_and_booleans_survive(value: object) -> None:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    assert parse_value(text) == value


def test_exponent_without_a_dot_is_a_number() -> None:
    assert parse_value("1e-4") == pytest.approx(1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_every_field_of_every_stage_is_described(stage: str) -> None:
    undescribed = [
        name for name, info in stage_config(stage).model_fields.items() if not info.description
    ]
    assert undescribed == []
