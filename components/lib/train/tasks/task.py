"""What the engine needs to know about a network and its loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from components.lib.contract import Frozen
from components.lib.cosmos.dit.attention import AttentionBackend
from components.lib.train.data.batches import Batch
from components.lib.train.memory.recompute import MemoryPlan


class Work(Frozen):
    """How much one sample is: units for the throughput and forward FLOPs for the utilisation."""

    unit: str
    amount: float
    forward_flops: float


class TrainingTask(Protocol):
    """A network, its data and its loss."""

    model: nn.Module
    name: str
    #: The kernel of the network's attention, named as by `lib.cosmos.dit.attention.choose`.
    attention: AttentionBackend

    def units(self) -> list[nn.Module]:
        """The modules that FSDP gathers one at a time, inner ones first."""

    def shard_dim(self, name: str) -> int | None:
        """The dimension on which tensor parallelism splits this parameter, or None."""

    def partial_names(self) -> set[str]:
        """Parameters whose gradients must be summed over the tensor-parallel group."""

    def extra_names(self) -> tuple[str, ...]:
        """Tensors of a model folder that are not weights."""

    def after_sharding(self, extras: Mapping[str, torch.Tensor]) -> None:
        """Whatever must happen once the parameters are sharded and loaded."""

    def train_counts(self) -> list[int]:
        """Samples of each training shard."""

    def train_shapes(self) -> list[tuple[int, ...]]:
        """Shape of the samples of each training shard, as far as batches show it."""

    def make_batch(self, samples: list[tuple[int, int, int]]) -> Batch:
        """Host tensors for (running number, shard, index) triples."""

    def prepare(self, batch: Batch, passes: int) -> MemoryPlan:
        """Once, before the first of ``passes`` a step: what depends on the size of a batch.

        Returns what each unit keeps and what is offloaded to the host.
        """

    def loss(self, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The scalar to minimise and named scalars to log, means over the micro-batch."""

    def validation(self, folder: Path, step: int) -> dict[str, float]:
        """Held-out metrics, the same on every rank; always has ``loss``. May write pictures."""

    def work(self, batch: Batch) -> Work:
        """The size of one micro-batch."""

    def export(self, folder: Path, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Write a canonical model folder from full weights."""

    def describe(self) -> dict[str, Any]:
        """Facts for the settings file and the manifest."""
