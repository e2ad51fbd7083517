"""The channels-last form of a tokenizer computes the same function and gradient."""

import copy

import pytest
import torch

from components.lib.cosmos.tokenizer.channels_last import FlatCausalConv3d, use_channels_last
from components.lib.cosmos.tokenizer.network import TOKENIZER_PRESETS, CosmosTokenizer


@pytest.mark.parametrize("preset", ["tiny-cv", "tiny-dv"])
@pytest.mark.parametrize("shape", [(2, 3, 9, 32, 48), (1, 3, 1, 32, 32)])
def test_same_reconstruction_and_gradients(preset: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = CosmosTokenizer(TOKENIZER_PRESETS[preset])
    flat = copy.deepcopy(plain)
    use_channels_last(flat)
    assert any(isinstance(module, FlatCausalConv3d) for module in flat.modules())
    video = torch.rand(shape) * 2 - 1
    expected, got = plain.reconstruct(video), flat.reconstruct(video)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    expected.square().mean().backward()
    got.square().mean().backward()
    for (name, one), other in zip(plain.named_parameters(), flat.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, atol=1e-5, rtol=1e-3, msg=name)


def test_names_of_the_weights_stay(preset: str = "tiny-cv") -> None:
    plain = CosmosTokenizer(TOKENIZER_PRESETS[preset])
    flat = copy.deepcopy(plain)
    use_channels_last(flat)
    assert list(flat.state_dict()) == list(plain.state_dict())
