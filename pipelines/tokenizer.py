"""tokenizer_post_training: fetch -> discover -> shard -> train -> evaluate -> promote.

No postponed annotations here: KFP reads the types of the parameters from the function object.
"""

from typing import Any

from kfp import dsl

from components.checkpoint_fetch.component import checkpoint_fetch
from components.tar_sharding.component import tar_sharding
from components.video_discovery.component import video_discovery
from pipelines import profiles
from pipelines.profiles import Profile, place
from pipelines.train_and_judge import train_and_judge


def build(profile: Profile = profiles.CLUSTER) -> Any:
    """The pipeline for a profile."""

    @dsl.pipeline(
        name="tokenizer-post-training",
        description="Post-train a Cosmos-1.0 video tokenizer on fleet video.",
    )
    def tokenizer_post_training(
        videos: str,
        storage_root: str = "s3://cosmos/runs",
        checkpoint: str = "hf://nvidia/Cosmos-1.0-Tokenizer-CV8x8x8",
        vgg_checkpoint: str = "hf://timm/vgg16.tv_in1k",
        factory: str = "train_tokenizer",
        launcher: str = "pytorchjob",
        model_name: str = "cosmos-tokenizer-cv8x8x8",
        overrides: list[str] = [],  # noqa: B006 - KFP needs a literal default
    ) -> None:
        """Post-train a video tokenizer.

        Args:
            videos: Where the videos are: s3://bucket/prefix, hf://datasets/owner/name, or a folder.
            storage_root: Where outputs go, as s3://bucket/prefix.
            checkpoint: The tokenizer to start from: hf://owner/name[@revision], s3://… or file://….
            vgg_checkpoint: VGG16 weights of the perceptual loss, in the same forms.
            factory: Recipe: train_tokenizer or tiny_tokenizer.
            launcher: pytorchjob, trainjob, or process (torchrun inside the step).
            model_name: Name under which versions are registered.
            overrides: Anything else: stage.field=value, or trainer.max_steps=…, optim.config.lr=…
        """
        base = checkpoint_fetch(
            storage_root=storage_root, source=checkpoint, role="tokenizer", overrides=overrides
        ).set_display_name("fetch tokenizer")
        place(base, profile, profiles.FETCH, secrets=("huggingface",))
        found = video_discovery(
            storage_root=storage_root, source=videos, prompt="", overrides=overrides
        ).set_display_name("discover videos")
        place(found, profile, profiles.DISCOVER, cached=False, secrets=("huggingface",))
        post_train(
            profile,
            found,
            base,
            storage_root=storage_root,
            vgg_checkpoint=vgg_checkpoint,
            factory=factory,
            launcher=launcher,
            model_name=model_name,
            overrides=overrides,
        )

    return tokenizer_post_training


def post_train(
    profile: Profile,
    found: dsl.PipelineTask,
    base: dsl.PipelineTask,
    *,
    storage_root: Any,
    vgg_checkpoint: Any,
    factory: Any,
    launcher: Any,
    model_name: Any,
    overrides: Any,
    cached: bool = True,
    ledger: Any = None,
) -> None:
    """The tasks from discovered videos and a tokenizer to start from up to promotion.

    ``ledger`` names the ledger that the videos of a promoted model are entered in.
    """
    vgg = checkpoint_fetch(
        storage_root=storage_root, source=vgg_checkpoint, role="vgg16", overrides=overrides
    ).set_display_name("fetch VGG16")
    place(vgg, profile, profiles.FETCH, cached=cached, secrets=("huggingface",))
    shards = tar_sharding(
        storage_root=storage_root, videos=found.outputs["videos"], overrides=overrides
    ).set_display_name("shard videos")
    place(shards, profile, profiles.SHARD, cached=cached)
    train_and_judge(
        profile,
        found,
        base,
        shards.outputs["dataset"],
        storage_root=storage_root,
        factory=factory,
        launcher=launcher,
        model_name=model_name,
        overrides=overrides,
        cached=cached,
        ledger=ledger,
        training_inputs={"vgg": vgg.outputs["checkpoint"]},
        evaluation_inputs={},
    )
