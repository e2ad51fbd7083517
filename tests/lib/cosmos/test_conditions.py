"""What a model is shown, as one value."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from components.lib.cosmos.conditions import Conditions, leading_frames, over_latent

WHOLE = Conditions(
    text=torch.ones(2, 3, 4),
    fps=torch.tensor([24.0, 30.0]),
    padding_mask=torch.zeros(2, 1, 8, 8),
    shown_frames=torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
)


def test_a_batch_gives_its_inputs_and_nothing_else() -> None:
    batch = {"latent": torch.zeros(2), "sigma": torch.zeros(2), "text": WHOLE.text}
    conditions = Conditions.of_batch(batch)
    assert conditions.text is WHOLE.text
    assert conditions.fps is conditions.padding_mask is conditions.shown_frames is None


def test_a_change_reaches_every_input_that_is_there() -> None:
    halves = WHOLE.map(lambda tensor: tensor[:1])
    assert all(len(getattr(halves, name)) == 1 for name in Conditions.names())
    assert Conditions(WHOLE.text).map(torch.clone).fps is None
    meta = WHOLE.to("meta")
    assert all(getattr(meta, name).is_meta for name in Conditions.names())


def test_guidance_changes_the_text_alone() -> None:
    without, negative = WHOLE.with_text(None), WHOLE.with_text(torch.full((2, 3, 4), 5.0))
    assert not without.text.any() and bool((negative.text == 5).all())
    for other in (without, negative):
        assert other.fps is WHOLE.fps and other.shown_frames is WHOLE.shown_frames
    with pytest.raises(dataclasses.FrozenInstanceError):
        WHOLE.text = without.text  # type: ignore[misc]


def test_frames_are_spread_over_a_latent() -> None:
    shown = leading_frames(torch.tensor([0, 3, 9]), 4)
    assert shown.tolist() == [[0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    mask = over_latent(shown, torch.zeros(3, 16, 4, 2, 5))
    assert mask.shape == (3, 1, 4, 2, 5)
    assert torch.equal(mask[:, 0, :, 1, 3], shown)
