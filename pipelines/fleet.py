"""fleet_retraining, the scheduled pipeline: only what is new, from the model in production.

discover what the ledger does not hold -> enough? -> start from production -> as in post-training
-> gate. The ledger, which is named like the model, takes the videos in when the model is promoted.
An exit task writes the run report whatever happened. Two forms, one per family of models.

No step is served from KFP's cache: a step that KFP skips leaves no note for the report, and the
stages find finished outputs in the store by themselves, in seconds.

No postponed annotations here: KFP reads the types of the parameters from the function object.
"""

from typing import Any

from kfp import dsl

from components.checkpoint_fetch.component import checkpoint_fetch
from components.video_discovery.component import video_discovery
from pipelines import diffusion, profiles, tokenizer
from pipelines.profiles import Profile, place
from pipelines.run_report import run_report


def build_diffusion(profile: Profile = profiles.CLUSTER) -> Any:
    """The pipeline of Text2World diffusion models for a profile."""

    @dsl.pipeline(
        name="fleet-retraining",
        description="Retrain a Cosmos-1.0 Text2World model when new fleet video has arrived.",
    )
    def fleet_retraining(
        videos: str,
        prompt: str = "A video of sks.",
        min_new_videos: int = 20,
        old_per_new: float = 0.5,
        storage_root: str = "s3://cosmos/runs",
        checkpoint: str = "hf://nvidia/Cosmos-1.0-Diffusion-7B-Text2World",
        tokenizer_checkpoint: str = "hf://nvidia/Cosmos-1.0-Tokenizer-CV8x8x8",
        text_encoder_checkpoint: str = "hf://google-t5/t5-11b",
        frames: int = 121,
        height: int = 704,
        width: int = 1280,
        factory: str = "cosmos_diffusion_7b_text2world_finetune",
        launcher: str = "pytorchjob",
        model_name: str = "cosmos-diffusion-7b-text2world",
        overrides: list[str] = [],  # noqa: B006 - KFP needs a literal default
    ) -> None:
        """Retrain when enough new video has arrived.

        Args:
            videos: Where the fleet puts its videos: s3://bucket/prefix (or a folder).
            min_new_videos: With fewer new videos the run ends at once, green, and says so.
            old_per_new: Old training videos to mix in for each new one, against forgetting.
            prompt: Prompt of videos that have none of their own (sidecar .txt or .json).
            storage_root: Where outputs go, as s3://bucket/prefix.
            checkpoint: The DiT to start from while nothing is in production.
            tokenizer_checkpoint: The continuous tokenizer that makes the latents.
            text_encoder_checkpoint: The T5 encoder of the prompts.
            frames: Frames of a clip, 8k+1.
            height: Height of a clip in pixels, a multiple of 16.
            width: Width of a clip in pixels, a multiple of 16.
            factory: Recipe: cosmos_diffusion_{7b,14b}_text2world_finetune or tiny_diffusion.
            launcher: pytorchjob, trainjob, or process (torchrun inside the step).
            model_name: Name of the model whose version in production is retrained, and its ledger.
            overrides: Anything else: stage.field=value, or trainer.max_steps=…, optim.config.lr=…
        """
        ended = run_report(storage_root=storage_root, title=model_name)
        place(ended, profile, profiles.PROMOTE, cached=False)
        with dsl.ExitHandler(ended, name="retraining"):
            found = video_discovery(
                storage_root=storage_root,
                source=videos,
                prompt=prompt,
                only_new=True,
                ledger=model_name,
                min_new_videos=min_new_videos,
                old_per_new=old_per_new,
                overrides=overrides,
            ).set_display_name("discover new videos")
            place(found, profile, profiles.DISCOVER, cached=False, secrets=("huggingface",))
            with dsl.If(found.outputs["Output"] == "train", name="enough new videos"):
                base = checkpoint_fetch(
                    storage_root=storage_root,
                    source=checkpoint,
                    role="dit",
                    production_of=model_name,
                    overrides=overrides,
                ).set_display_name("start from production")
                place(base, profile, profiles.FETCH, cached=False, secrets=("huggingface",))
                diffusion.post_train(
                    profile,
                    found,
                    base,
                    storage_root=storage_root,
                    tokenizer_checkpoint=tokenizer_checkpoint,
                    text_encoder_checkpoint=text_encoder_checkpoint,
                    frames=frames,
                    height=height,
                    width=width,
                    factory=factory,
                    launcher=launcher,
                    model_name=model_name,
                    overrides=overrides,
                    cached=False,
                    ledger=model_name,
                )

    return fleet_retraining


def build_tokenizer(profile: Profile = profiles.CLUSTER) -> Any:
    """The pipeline of tokenizers for a profile."""

    @dsl.pipeline(
        name="fleet-retraining-tokenizer",
        description="Retrain a Cosmos-1.0 video tokenizer when new fleet video has arrived.",
    )
    def fleet_retraining_tokenizer(
        videos: str,
        min_new_videos: int = 20,
        old_per_new: float = 0.5,
        storage_root: str = "s3://cosmos/runs",
        checkpoint: str = "hf://nvidia/Cosmos-1.0-Tokenizer-CV8x8x8",
        vgg_checkpoint: str = "hf://timm/vgg16.tv_in1k",
        factory: str = "train_tokenizer",
        launcher: str = "pytorchjob",
        model_name: str = "cosmos-tokenizer-cv8x8x8",
        overrides: list[str] = [],  # noqa: B006 - KFP needs a literal default
    ) -> None:
        """Retrain when enough new video has arrived.

        Args:
            videos: Where the fleet puts its videos: s3://bucket/prefix (or a folder).
            min_new_videos: With fewer new videos the run ends at once, green, and says so.
            old_per_new: Old training videos to mix in for each new one, against forgetting.
            storage_root: Where outputs go, as s3://bucket/prefix.
            checkpoint: The tokenizer to start from while nothing is in production.
            vgg_checkpoint: VGG16 weights of the perceptual loss, in the same forms.
            factory: Recipe: train_tokenizer or tiny_tokenizer.
            launcher: pytorchjob, trainjob, or process (torchrun inside the step).
            model_name: Name of the model whose version in production is retrained, and its ledger.
            overrides: Anything else: stage.field=value, or trainer.max_steps=…, optim.config.lr=…
        """
        ended = run_report(storage_root=storage_root, title=model_name)
        place(ended, profile, profiles.PROMOTE, cached=False)
        with dsl.ExitHandler(ended, name="retraining"):
            found = video_discovery(
                storage_root=storage_root,
                source=videos,
                prompt="",
                only_new=True,
                ledger=model_name,
                min_new_videos=min_new_videos,
                old_per_new=old_per_new,
                overrides=overrides,
            ).set_display_name("discover new videos")
            place(found, profile, profiles.DISCOVER, cached=False, secrets=("huggingface",))
            with dsl.If(found.outputs["Output"] == "train", name="enough new videos"):
                base = checkpoint_fetch(
                    storage_root=storage_root,
                    source=checkpoint,
                    role="tokenizer",
                    production_of=model_name,
                    overrides=overrides,
                ).set_display_name("start from production")
                place(base, profile, profiles.FETCH, cached=False, secrets=("huggingface",))
                tokenizer.post_train(
                    profile,
                    found,
                    base,
                    storage_root=storage_root,
                    vgg_checkpoint=vgg_checkpoint,
                    factory=factory,
                    launcher=launcher,
                    model_name=model_name,
                    overrides=overrides,
                    cached=False,
                    ledger=model_name,
                )

    return fleet_retraining_tokenizer
