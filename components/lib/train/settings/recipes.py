"""The recipes, by the names the guides give to `--factory`.

Hyperparameters are the reference's: lr 1e-6 constant, no weight decay, clip 1.0, on eight GPUs
tensor parallel 8 with sequence parallel for the DiTs (on fewer: see `choices`); AdamW (0.5, 0.999),
lr 1e-4, weight decay 0.01, no clipping for the tokenizers. What differs on purpose: fp32 master
weights always; seeded random clips instead of the top-left corner of the first frames; compiled
blocks that recompute only what memory asks for, instead of everything. The successor's warm-up,
decay, EMA and augmentation are a few overrides away. The tiny recipes learn something visible on
two CPU cores in a minute.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from components.lib.contract import UserError
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
    TaskEncoder,
    TokenizerData,
    TokenizerModel,
    TokenizerTrainingConfig,
    TrainerConfig,
)

AnyConfig = DiffusionTrainingConfig | TokenizerTrainingConfig


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


def train_tokenizer() -> TokenizerTrainingConfig:
    """Cosmos-1.0-Tokenizer-CV8x8x8 or DV8x16x16 (`model.model`), as the guide trains it."""
    return TokenizerTrainingConfig(
        trainer=TrainerConfig(
            max_steps=1000,
            val_check_interval=100,
            gradient_clip_val=0.0,
            compile=True,
            strategy=StrategyConfig(data_parallel_replicas=0),
        ),
        optim=OptimConfig(
            config=OptimizerConfig(lr=1e-4, adam_beta1=0.5, adam_beta2=0.999, weight_decay=0.01)
        ),
        log=LogConfig(
            log_dir="nemo_experiments/train_tokenizer",
            name="train_tokenizer",
            ckpt=CheckpointConfig(every_n_train_steps=100, save_top_k=3),
        ),
    )


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


def _tiny_tokenizer(model: str, factory: str) -> TokenizerTrainingConfig:
    return TokenizerTrainingConfig(
        model=TokenizerModel(model=model, perceptual_weight=(0.0, 0.0), gram_weight=(0.0, 0.0)),
        data=TokenizerData(
            task_encoder=TaskEncoder(
                crop_height=64, temporal_crop=9, resize_height=176, resize_width=320
            ),
            validation_clips=2,
        ),
        trainer=TrainerConfig(
            engine="plain",
            max_steps=48,
            precision="32-true",
            val_check_interval=24,
            gradient_clip_val=1.0,
            strategy=StrategyConfig(data_parallel_replicas=0),
        ),
        optim=OptimConfig(
            config=OptimizerConfig(lr=1e-3, adam_beta1=0.9, adam_beta2=0.99),
            lr_scheduler=LrScheduler(name="cosine", warmup_steps=5, min_lr=1e-4),
        ),
        log=LogConfig(
            log_dir=f"nemo_experiments/{factory}",
            name=factory,
            ckpt=CheckpointConfig(every_n_train_steps=16),
        ),
    )


def tiny_tokenizer() -> TokenizerTrainingConfig:
    """The continuous tokenizer with few channels on small crops."""
    return _tiny_tokenizer("tiny-cv", "tiny_tokenizer")


def tiny_tokenizer_dv() -> TokenizerTrainingConfig:
    """The discrete tokenizer with few channels on small crops."""
    return _tiny_tokenizer("tiny-dv", "tiny_tokenizer_dv")


FACTORIES: dict[str, Callable[[], AnyConfig]] = {
    factory.__name__: factory
    for factory in (
        cosmos_diffusion_7b_text2world_finetune,
        cosmos_diffusion_14b_text2world_finetune,
        cosmos_diffusion_7b_video2world_finetune,
        cosmos_diffusion_14b_video2world_finetune,
        train_tokenizer,
        tiny_diffusion,
        tiny_tokenizer,
        tiny_tokenizer_dv,
    )
}


def recipe(name: str) -> AnyConfig:
    """The config of a recipe. Raises UserError naming the nearest one when there is none."""
    if name not in FACTORIES:
        close = difflib.get_close_matches(name, FACTORIES, n=1)
        hint = f"Did you mean '{close[0]}'?" if close else f"Recipes: {', '.join(FACTORIES)}."
        raise UserError(f"There is no recipe '{name}'. {hint}")
    return FACTORIES[name]()
