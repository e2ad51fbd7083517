"""Recipes of the video tokenizers."""

from __future__ import annotations

from components.lib.train.settings.config import (
    CheckpointConfig,
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


RECIPES = (train_tokenizer, tiny_tokenizer, tiny_tokenizer_dv)
