"""Recipes of the diffusion models."""

from __future__ import annotations

from components.lib.train.settings.config import (
    CheckpointConfig,
    DiffusionData,
    DiffusionModel,
    DiffusionTrainingConfig,
    LogConfig,
    LrScheduler,
    OptimConfig,
    OptimizerConfig,
    StrategyConfig,
    TrainerConfig,
)


def _diffusion(preset: str, factory: str) -> DiffusionTrainingConfig:
    return DiffusionTrainingConfig(
        model=DiffusionModel(preset=preset),
        trainer=TrainerConfig(
            max_steps=1000,
            recompute="auto",
            compile=True,
            strategy=StrategyConfig(tensor_model_parallel_size=0, sequence_parallel=True),
        ),
        optim=OptimConfig(config=OptimizerConfig(lr=1e-6)),
        log=LogConfig(log_dir=f"nemo_experiments/{factory}", name=factory),
    )


def cosmos_diffusion_7b_text2world_finetune() -> DiffusionTrainingConfig:
    """Cosmos-1.0-Diffusion-7B-Text2World, as the guide trains it (8 GPUs of 80 GB)."""
    return _diffusion("7B", "cosmos_diffusion_7b_text2world_finetune")


def cosmos_diffusion_14b_text2world_finetune() -> DiffusionTrainingConfig:
    """Cosmos-1.0-Diffusion-14B-Text2World, as the guide trains it (8 GPUs of 80 GB)."""
    return _diffusion("14B", "cosmos_diffusion_14b_text2world_finetune")


def cosmos_diffusion_7b_video2world_finetune() -> DiffusionTrainingConfig:
    """Cosmos-1.0-Diffusion-7B-Video2World: the first latent frames are given."""
    return _diffusion("7B-V2W", "cosmos_diffusion_7b_video2world_finetune")


def cosmos_diffusion_14b_video2world_finetune() -> DiffusionTrainingConfig:
    """Cosmos-1.0-Diffusion-14B-Video2World: the first latent frames are given."""
    return _diffusion("14B-V2W", "cosmos_diffusion_14b_video2world_finetune")


def tiny_diffusion() -> DiffusionTrainingConfig:
    """A four-layer DiT on small latents: the whole path in a minute on two CPU cores."""
    return DiffusionTrainingConfig(
        model=DiffusionModel(preset="tiny"),
        data=DiffusionData(),
        trainer=TrainerConfig(
            engine="plain",
            max_steps=36,
            precision="32-true",
            val_check_interval=18,
            limit_val_batches=4,
        ),
        optim=OptimConfig(
            config=OptimizerConfig(lr=2e-3),
            lr_scheduler=LrScheduler(name="cosine", warmup_steps=5, min_lr=1e-4),
        ),
        log=LogConfig(
            log_dir="nemo_experiments/tiny_diffusion",
            name="tiny_diffusion",
            ckpt=CheckpointConfig(every_n_train_steps=12),
        ),
    )


RECIPES = (
    cosmos_diffusion_7b_text2world_finetune,
    cosmos_diffusion_14b_text2world_finetune,
    cosmos_diffusion_7b_video2world_finetune,
    cosmos_diffusion_14b_video2world_finetune,
    tiny_diffusion,
)
