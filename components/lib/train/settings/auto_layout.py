"""What is chosen for the user: the tensor-parallel size, and the line that says what will run.

``trainer.strategy.tensor_model_parallel_size=0`` asks for a choice. Nodes of eight GPUs (or a
multiple) get the guides' layout, tensor parallel 8. With fewer the smallest size is taken whose
estimated memory fits with attention outputs kept, since fully sharded training communicates least
and repeats nothing; failing that the smallest that fits when all is recomputed, and failing that
the largest. The estimate is for the guides' clips, 121 x 704 x 1280.
"""

from __future__ import annotations

import os
from typing import TypeVar

from components.lib.cosmos.dit.config import DIT_PRESETS, DiTConfig
from components.lib.train.settings.config import TrainConfig, TrainerConfig

GUIDE_TP = 8
#: Part of a GPU's memory that the estimate may take, as in `recompute`.
USABLE = 0.92
GUIDE_TOKENS = 56_320
Config = TypeVar("Config", bound=TrainConfig)


def choose_tp(dit: DiTConfig, world: int, per_node: int, device_bytes: float) -> int:
    """Ranks that share each layer, of ``world`` ranks, ``per_node`` on each node."""
    from components.lib.cosmos.flops import EstimatedLayout, dit_memory

    if per_node % GUIDE_TP == 0 and dit.heads % GUIDE_TP == 0:
        return GUIDE_TP
    sizes = [tp for tp in range(1, per_node + 1) if per_node % tp == 0 and dit.heads % tp == 0]
    for kept in ("selective", "full"):
        for tp in sizes:
            layout = EstimatedLayout(gpus=world, tp=tp, sequence_parallel=True, checkpointing=kept)
            if dit_memory(dit, GUIDE_TOKENS, layout).total <= USABLE * device_bytes:
                return tp
    return sizes[-1]


def resolve_layout(config: Config, device_bytes: float | None = None) -> Config:
    """The config with sizes above zero, for the ranks that torchrun describes.

    ``device_bytes``: memory of a GPU; None looks. On CPUs nothing is shared unless asked for.
    """
    strategy = config.trainer.strategy
    world = int(os.environ.get("WORLD_SIZE", "1"))
    tp, replicas = strategy.tensor_model_parallel_size, strategy.data_parallel_replicas
    if not tp:
        tp = _chosen_tp(config, world, device_bytes)
    if not replicas:
        replicas = world // tp if not config.model_parallel else 1
    sizes = {"tensor_model_parallel_size": tp, "data_parallel_replicas": replicas}
    strategy = strategy.model_copy(update=sizes)
    trainer = config.trainer.model_copy(update={"strategy": strategy})
    return config.model_copy(update={"trainer": trainer})


def _chosen_tp(config: TrainConfig, world: int, device_bytes: float | None) -> int:
    preset = config.network_preset()
    if preset in DIT_PRESETS:
        per_node = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
        if device_bytes is None:
            device_bytes = _device_bytes(config.trainer.accelerator)
        if device_bytes:
            return choose_tp(DIT_PRESETS[preset], world, per_node, device_bytes)
    return 1


def _device_bytes(accelerator: str) -> float:
    import torch

    if accelerator == "cpu" or not torch.cuda.is_available():
        return 0.0
    return float(torch.cuda.get_device_properties(0).total_memory)


def compile_mode(trainer: TrainerConfig, world: int, device: str) -> str:
    """torch.compile's mode for a tokenizer, whose kernels are shorter than launching them.

    CUDA graphs on GPUs that hold it whole. FSDP gathers weights to changing addresses, and each
    change would record a graph again.
    """
    if trainer.compile_mode != "auto":
        return trainer.compile_mode
    whole = trainer.strategy.data_parallel_replicas == world
    return "reduce-overhead" if whole and device != "cpu" else "default"


def describe_choices(
    config: TrainConfig,
    world: int,
    device: str,
    attention: str = "auto",
) -> str:
    """One line for the log: layout, precision, compilation, recomputation, attention.

    ``attention`` is what `components.lib.cosmos.dit.attention.choose` made of the wish.
    """
    trainer = config.trainer
    tp = trainer.strategy.tensor_model_parallel_size
    dp, replicas = world // max(tp, 1), trainer.strategy.data_parallel_replicas
    layout = [f"tensor parallel {tp}"] if tp > 1 else []
    if tp > 1 and trainer.strategy.sequence_parallel:
        layout[0] += " with sequence parallel"
    if dp > replicas:
        layout.append(f"state sharded over {dp // replicas}")
    elif tp == 1:
        layout.append("state whole")
    if replicas > 1:
        layout.append(f"{replicas} replicas")
    words = [f"{world} x {device}: {', '.join(layout)}", trainer.precision]
    compiled = "compiled" if trainer.compile else "not compiled"
    if not config.model_parallel:
        mode = f" ({compile_mode(trainer, world, device)})" if trainer.compile else ""
        return "; ".join([*words, f"encoder and decoder {compiled}{mode}, channels last"])
    if attention == "auto":
        attention = "PyTorch's own" if device == "cpu" else "cudnn, else flash"
    return "; ".join(
        [*words, f"blocks {compiled}, recompute {trainer.recompute}", f"attention {attention}"]
    )
