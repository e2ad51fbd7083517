"""bf16 copies in the place of the parameters of a model held whole, against a plain loop."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from components.lib.train.parallel.replicated import keep_whole


class Net(nn.Module):
    """Two layers, one of them frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)
        self.second.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.encode(x))

    def encode(self, x: Tensor) -> Tensor:
        return self.first(x.to(self.first.weight.dtype)).tanh()


def batches() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(3, 6) for _ in range(2)]


def test_gradients_are_those_of_bf16_passes_added_up_in_fp32() -> None:
    net, plain = Net(), Net()
    keep_whole(net, torch.bfloat16)
    names = dict(net.named_parameters())
    for batch in batches():
        net(batch).float().square().mean().backward()
    wanted = {name: torch.zeros_like(p) for name, p in plain.named_parameters() if p.requires_grad}
    for batch in batches():
        low = copy.deepcopy(plain).bfloat16()
        low(batch).float().square().mean().backward()
        for name, total in wanted.items():
            grad = low.get_parameter(name).grad
            assert grad is not None
            total += grad.float()
    for name, parameter in names.items():
        assert net.get_parameter(name) is parameter
        assert parameter.dtype is torch.float32
        if name in wanted:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=0, atol=0)
        else:
            assert parameter.grad is None


def test_a_pass_sees_what_the_optimizer_wrote() -> None:
    net = Net()
    keep_whole(net, torch.bfloat16, methods=("encode",))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = net(batches()[0]).float().square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_without_gradients_and_in_other_methods_parameters_come_back_too() -> None:
    net = Net()
    keep_whole(net, torch.bfloat16, methods=("encode",))
    with torch.no_grad():
        assert net(batches()[0]).dtype is torch.bfloat16
    assert net.encode(batches()[0]).dtype is torch.bfloat16
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    with pytest.raises(RuntimeError, match="shapes"):
        net(torch.zeros(3, 7))
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_full_precision_is_left_alone() -> None:
    net = Net()
    keep_whole(net, None)
    assert net(batches()[0]).dtype is torch.float32
