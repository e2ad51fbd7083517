"""Names against diffusers' own modules and against each other."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLCosmos, CosmosTransformer3DModel

from components.lib.contract import Frozen, UserError
from components.lib.cosmos.dit.config import DIT_PRESETS
from components.lib.cosmos.formats import names
from components.lib.cosmos.formats.diffusers_folder import (
    COUNTER,
    dit_to_diffusers_config,
    tokenizer_to_diffusers_config,
)
from components.lib.cosmos.formats.importing import expected_shapes
from components.lib.cosmos.formats.jit.networks import autoencoder_shapes
from components.lib.cosmos.tokenizer.config import TOKENIZER_PRESETS
from components.lib.cosmos.tokenizer.network import default_statistics


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("preset", ["7B", "14B", "7B-V2W", "14B-V2W", "tiny"])
def test_every_dit_parameter_has_its_place_in_diffusers(preset: str) -> None:
    config = DIT_PRESETS[preset]
    with torch.device("meta"):
        theirs = shapes_of(CosmosTransformer3DModel(**dit_to_diffusers_config(config)))
    ours = expected_shapes(config)
    ours.pop(COUNTER)
    assert {names.dit_to_diffusers(name): shape for name, shape in ours.items()} == theirs
    assert {names.dit_from_diffusers(name): shape for name, shape in theirs.items()} == ours


@pytest.mark.parametrize("preset", ["CV8x8x8", "tiny-cv"])
def test_every_tokenizer_parameter_has_its_place_in_diffusers(preset: str) -> None:
    config = TOKENIZER_PRESETS[preset]
    values = tokenizer_to_diffusers_config(config, *default_statistics(config))
    with torch.device("meta"):
        theirs = shapes_of(AutoencoderKLCosmos(**values))
    ours = expected_shapes(config)
    assert {names.tokenizer_to_diffusers(name): shape for name, shape in ours.items()} == theirs
    assert {names.tokenizer_from_diffusers(name): shape for name, shape in theirs.items()} == ours


@pytest.mark.parametrize("preset", list(TOKENIZER_PRESETS))
def test_archives_bear_the_names_of_the_training_network(preset: str) -> None:
    config = TOKENIZER_PRESETS[preset]
    assert autoencoder_shapes(config) == expected_shapes(config)


@pytest.mark.parametrize(
    "name",
    [
        "logvar.0.freqs",
        "pos_embedder.seq",
        "blocks.block0.blocks.0.block.attn.to_q.1._extra_state",
        "encoder.patcher3d.wavelets",
        "decoder.unpatcher3d.patch_size_buffer",
    ],
)
def test_entries_that_are_no_parameters_are_left_out(name: str) -> None:
    assert names.is_ignorable(name)


@pytest.mark.parametrize("config", [*DIT_PRESETS.values(), *TOKENIZER_PRESETS.values()])
def test_no_parameter_is_left_out(config: Frozen) -> None:
    shapes = expected_shapes(config)
    assert [name for name in shapes if names.is_ignorable(name)] in ([], [COUNTER])


def test_a_gap_between_blocks_is_named() -> None:
    with pytest.raises(UserError, match=r"blocks\.block1\.\*"):
        names.dit_layers(["blocks.block0.x", "blocks.block2.x"])
