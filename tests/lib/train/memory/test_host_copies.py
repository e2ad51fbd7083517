"""Host copies stay what they were while training changes the weights."""

from __future__ import annotations

from unittest import mock

import torch
from hypothesis import given
from hypothesis import strategies as st

from components.lib.train.memory import host_copies as staging
from components.lib.train.memory.host_copies import HostCopies, touch


def test_copies_do_not_follow_the_weights_and_buffers_are_used_again() -> None:
    copies = HostCopies(torch.device("cpu"))
    weight = torch.arange(6.0).reshape(2, 3)
    copies.begin()
    first = copies.copy_out("w", weight)
    copies.end()
    copies.fence()
    weight.add_(1)
    copies.wait()
    assert torch.equal(first, torch.arange(6.0).reshape(2, 3))
    address = first.data_ptr()
    copies.begin()
    second = copies.copy_out("w", weight)
    copies.end()
    assert second.data_ptr() == address
    assert torch.equal(second, weight)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=3), st.integers(1, 64))
def test_all_of_a_buffer_is_touched(shape: list[int], part: int) -> None:
    tensor = torch.ones(shape)
    with mock.patch.object(staging, "SMALLEST_PART", part):
        touch(tensor)
    assert not tensor.any()


def test_a_tensor_of_another_shape_gets_a_new_buffer() -> None:
    copies = HostCopies(torch.device("cpu"))
    small = copies.copy_out("w", torch.ones(2))
    large = copies.copy_out("w", torch.ones(3, dtype=torch.float64))
    assert (large.shape, large.dtype) == ((3,), torch.float64)
    assert small.shape == (2,)
