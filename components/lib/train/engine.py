"""The framework-free core: one optimizer step, and everything that must survive a restart.

A step takes one global batch of running sample numbers, accumulates its micro-batches, sums the
partial gradients over tensor parallelism, clips by the true global norm, and applies AdamW to the
fp32 shards. State that is not a pure function of the step counter (weights, moments, moving
average, running mean of the loss) is what a checkpoint holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from components.lib.contract import UserError
from components.lib.train.data.batches import Batch, shared_batch
from components.lib.train.data.loader import Loader
from components.lib.train.data.sampler import Sampler, numbers_of
from components.lib.train.loss_guard import LossGuard
from components.lib.train.memory.host_copies import HostCopies
from components.lib.train.memory.optimizer_offload import OptimizerOffload
from components.lib.train.parallel.gradients import (
    average_over_replicas,
    clip,
    complete_partial_gradients,
    global_norm,
)
from components.lib.train.parallel.layout import ParallelLayout, global_view, local_part
from components.lib.train.schedule import learning_rate
from components.lib.train.settings.config import TrainConfig
from components.lib.train.tasks.task import TrainingTask

# Dense bf16 peak of one device, FLOP/s, by a part of its name.
PEAKS = {"H100": 989e12, "H200": 989e12, "H800": 989e12, "A100": 312e12, "B200": 2250e12}


class Engine:
    """Model, optimizer and position of one run on this rank."""

    def __init__(
        self,
        config: TrainConfig,
        layout: ParallelLayout,
        task: TrainingTask,
    ) -> None:
        self.config, self.layout, self.task = config, layout, task
        self.step = 0
        self.consumed = 0
        self.guard = LossGuard(config.trainer.explode_factor)
        self.micro_steps = _micro_steps(config, layout)
        self.global_batch = config.data.micro_batch_size * layout.dp * self.micro_steps
        self.parameters = {
            name: parameter
            for name, parameter in task.model.named_parameters()
            if parameter.requires_grad
        }
        self.optimizer = _adamw(config, self.parameters)
        self.ema: dict[str, torch.Tensor] = {}
        if config.trainer.ema_decay:
            self.ema = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.copies = HostCopies(layout.device)
        self.optimizer_offload: OptimizerOffload | None = None
        self._prepared = False
        self._loader: Loader[Batch] | None = None

    def start_data(self) -> None:
        """Begin to read ahead from the current position."""
        data = self.config.data
        order = Sampler(
            self.task.train_counts(),
            seed=data.seed,
            window=data.shuffle_shards,
            shuffle=data.shuffle,
            sizes=self.task.train_shapes(),
            run=data.same_size,
        )

        def make(numbers: list[int]) -> Batch:
            return self.task.make_batch([(n, *order.at(n)) for n in numbers])

        if self.layout.tp_rank == 0:
            self._loader = Loader(
                make, self._numbers(), workers=data.num_workers, prefetch=data.prefetch
            )

    def stop_data(self) -> None:
        """Stop reading ahead."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def _numbers(self) -> Iterator[list[int]]:
        consumed = self.consumed
        while True:
            for micro_step in range(self.micro_steps):
                yield numbers_of(
                    consumed,
                    micro_batch=self.config.data.micro_batch_size,
                    data_parallel=self.layout.dp,
                    rank=self.layout.dp_rank,
                    micro_step=micro_step,
                )
            consumed += self.global_batch

    def _next_batch(self) -> Batch:
        # On the other tensor-parallel ranks there is no loader and the batch is received.
        return shared_batch(lambda: self._loader.next() if self._loader else {}, self.layout)

    def train_step(self, apply: Callable[[], object] | None = None) -> dict[str, float]:
        """One optimizer step. Returns its metrics, the same on every rank but for times.

        ``apply`` replaces the optimizer's own ``step`` (for a loop that wraps it).
        """
        started = time.perf_counter()
        model = self.task.model
        if not model.training:  # setting it again would visit hundreds of modules
            model.train()
        self.optimizer.zero_grad(set_to_none=True)
        lr = learning_rate(self.config.optim, self.step, self.config.trainer.max_steps)
        totals: dict[str, torch.Tensor] = {}
        waited, amount, flops, unit = 0.0, 0.0, 0.0, ""
        for micro_step in range(self.micro_steps):
            batch = self._next_batch()
            self._before_pass(batch, micro_step)
            waited += self._loader.wait_seconds if self._loader else 0.0
            loss, parts = self.task.loss(batch, self.step)
            (loss / self.micro_steps).backward()
            work = self.task.work(batch)
            amount, flops, unit = amount + work.amount, flops + work.forward_flops, work.unit
            for name, value in {"loss": loss, **parts}.items():
                totals[name] = totals.get(name, 0.0) + value.detach().float() / self.micro_steps
        if self.optimizer_offload is not None:
            self.optimizer_offload.fetch()
        average_over_replicas(self.parameters.values(), self.layout)
        complete_partial_gradients(self.parameters, self.task.partial_names(), self.layout)
        norm = global_norm(self.parameters.values(), self.layout)
        # Ranks need not have had clips of the same size.
        totals |= {"amount": torch.tensor(amount), "flops": torch.tensor(flops)}
        metrics = self._mean_over_ranks(totals)
        amount, flops = metrics.pop("amount"), metrics.pop("flops")
        metrics["grad_norm"] = float(norm)
        self.guard.check(self.step, metrics["loss"], metrics["grad_norm"], lr, self.parameters)
        clip(self.parameters.values(), norm, self.config.trainer.gradient_clip_val)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.copies.fence()
        (apply or self.optimizer.step)()
        self._update_ema()
        self.step += 1
        self.consumed += self.global_batch
        if self.layout.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        metrics |= {
            "lr": lr,
            "step_seconds": seconds,
            "data_wait_seconds": waited,
            f"{unit}_per_second": amount * self.layout.dp / seconds,
            "consumed_samples": float(self.consumed),
            "memory_gib": self._memory_gib(),
        }
        peak = self._peak()
        if peak and flops:
            metrics["mfu"] = 3 * flops / self.layout.tp / seconds / peak
        return metrics

    def _before_pass(self, batch: Batch, micro_step: int) -> None:
        if not self._prepared:
            self._prepared = True
            if self.task.prepare(batch, self.micro_steps).optimizer_offloaded:
                self.optimizer_offload = self._offload_optimizer()
        if self.optimizer_offload is not None:
            self.optimizer_offload.returns = micro_step == self.micro_steps - 1
            self.optimizer_offload.evict()

    def _offload_optimizer(self) -> OptimizerOffload:
        units = self.task.units()
        owner = {id(p): number for number, unit in enumerate(units) for p in unit.parameters()}
        state: list[dict[str, torch.Tensor]] = [{} for _ in units]
        for kind, name, value in self._checkpointed():
            number = owner.get(id(self.parameters[name]))
            if kind != "model" and number is not None:
                state[number][f"{kind}.{name}"] = local_part(value)
        return OptimizerOffload(units, state, self.layout.device, self.copies.stream)

    def _mean_over_ranks(self, totals: dict[str, torch.Tensor]) -> dict[str, float]:
        names = sorted(totals)
        flat = torch.stack([totals[name].to(self.layout.device) for name in names]).double()
        dist.all_reduce(flat)
        values = (flat / self.layout.world).tolist()
        return dict(zip(names, values, strict=True))

    def _update_ema(self) -> None:
        decay = self.config.trainer.ema_decay
        with torch.no_grad():
            for name, average in self.ema.items():
                local_part(average).lerp_(local_part(self.parameters[name]), 1 - decay)

    def _memory_gib(self) -> float:
        if self.layout.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def _peak(self) -> float | None:
        if self.layout.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self.layout.device)
        return next((peak for part, peak in PEAKS.items() if part in name), None)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Copies of weights, moments and moving average on the host, as global views.

        They are valid after ``copies.wait()`` and until the next call, whatever training does.
        """
        views: dict[str, torch.Tensor] = {}
        if self.optimizer_offload is not None:
            self.optimizer_offload.fetch()  # a step may have ended early
        self.copies.begin()
        for kind, name, value in self._checkpointed():
            parameter = self.parameters[name]
            key = f"{kind}.{name}"
            local = self.copies.copy_out(key, local_part(value))
            views[key] = global_view(local, parameter, self.layout, self.task.shard_dim(name))
        self.copies.end()
        return views

    def prepare_saves(self) -> None:
        """Allocate the host buffers of checkpoints, which on a GPU takes seconds, before a step."""
        for kind, name, value in self._checkpointed():
            self.copies.prepare(f"{kind}.{name}", local_part(value))

    def _checkpointed(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """(kind, name, tensor) of everything that a checkpoint holds."""
        for name, parameter in self.parameters.items():
            first, second = self._moments(parameter)
            yield "model", name, parameter.detach()
            yield "exp_avg", name, first
            yield "exp_avg_sq", name, second
            if name in self.ema:
                yield "ema", name, self.ema[name]

    def load_tensors(self, views: dict[str, torch.Tensor]) -> None:
        """Take over what a checkpoint load has filled in (the inverse of `tensors`)."""
        with torch.no_grad():
            for kind, name, value in self._checkpointed():
                local_part(value).copy_(local_part(views[f"{kind}.{name}"]))

    def _moments(self, parameter: nn.Parameter) -> tuple[torch.Tensor, torch.Tensor]:
        state = self.optimizer.state[parameter]
        if not state:
            # fused kernels count steps on the device, like torch's own initial state
            device = parameter.device if self.optimizer.defaults["fused"] else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state["exp_avg"], state["exp_avg_sq"]

    def state_bytes(self) -> int:
        """Bytes of weights, moments and moving average that this rank holds."""
        copies = 3 + bool(self.ema)
        return sum(local_part(p).nbytes * copies for p in self.parameters.values())

    def reshard(self) -> None:
        """Drop gathered weights, which a forward pass without backward leaves behind."""
        for module in self.task.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def state(self) -> dict[str, Any]:
        """The rest of the state, as JSON."""
        return {
            "step": self.step,
            "consumed_samples": self.consumed,
            "guard": self.guard.state(),
            "global_batch": self.global_batch,
            "layout": {"tp": self.layout.tp, "dp": self.layout.dp},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Set the position. Call after `load_tensors` and before `start_data`."""
        self.step = int(state["step"])
        self.consumed = int(state["consumed_samples"])
        self.guard.restore(state["guard"])
        for parameter in self.parameters.values():
            self._moments(parameter)
            self.optimizer.state[parameter]["step"].fill_(float(self.step))


def _micro_steps(config: TrainConfig, layout: ParallelLayout) -> int:
    wanted, per_pass = config.data.global_batch_size, config.data.micro_batch_size * layout.dp
    if wanted == 0:
        return config.trainer.accumulate_grad_batches
    if wanted % per_pass:
        raise UserError(
            f"data.global_batch_size={wanted} is not a multiple of data.micro_batch_size="
            f"{config.data.micro_batch_size} x {layout.dp} data-parallel ranks."
        )
    return wanted // per_pass


def _adamw(config: TrainConfig, parameters: dict[str, nn.Parameter]) -> torch.optim.AdamW:
    settings = config.optim.config
    # One group per mesh: the fused kernels take lists of tensors that share one.
    groups: dict[tuple[bool, int], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        plain = name.endswith("bias")
        mesh = hash(parameter.device_mesh) if isinstance(parameter, DTensor) else 0
        decay = 0.0 if plain else settings.weight_decay
        group = groups.setdefault((plain, mesh), {"params": [], "weight_decay": decay})
        group["params"].append(parameter)
    fused = any(p.device.type == "cuda" for p in parameters.values())
    return torch.optim.AdamW(
        list(groups.values()),
        lr=settings.lr,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_eps,
        fused=fused,
    )
