"""diffusion_post_training: fetch -> discover -> embed prompts -> encode latents -> train -> judge.

No postponed annotations here: KFP reads the types of the parameters from the function object.
"""

from typing import Any

from kfp import dsl

from components.checkpoint_fetch.component import checkpoint_fetch
from components.latent_encoding.component import latent_encoding, latent_encoding_part
from components.prompt_embedding.component import prompt_embedding
from components.video_discovery.component import video_discovery
from pipelines import profiles
from pipelines.profiles import Profile, place
from pipelines.train_and_judge import train_and_judge


def build(profile: Profile = profiles.CLUSTER) -> Any:
    """The pipeline for a profile."""

    @dsl.pipeline(
        name="diffusion-post-training",
        description="Post-train a Cosmos-1.0 Text2World diffusion model on fleet video.",
    )
    def diffusion_post_training(
        videos: str,
        prompt: str = "A video of sks.",
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
        """Post-train a Text2World diffusion model.

        Args:
            videos: Where the videos are: s3://bucket/prefix, hf://datasets/owner/name, or a folder.
            prompt: Prompt of videos that have none of their own (sidecar .txt or .json).
            storage_root: Where outputs go, as s3://bucket/prefix.
            checkpoint: The DiT to start from: hf://owner/name[@revision], s3://… or file://….
            tokenizer_checkpoint: The continuous tokenizer that makes the latents.
            text_encoder_checkpoint: The T5 encoder of the prompts.
            frames: Frames of a clip, 8k+1.
            height: Height of a clip in pixels, a multiple of 16.
            width: Width of a clip in pixels, a multiple of 16.
            factory: Recipe: cosmos_diffusion_{7b,14b}_text2world_finetune or tiny_diffusion.
            launcher: pytorchjob, trainjob, or process (torchrun inside the step).
            model_name: Name under which versions are registered.
            overrides: Anything else: stage.field=value, or trainer.max_steps=…, optim.config.lr=…
        """
        base = checkpoint_fetch(
            storage_root=storage_root, source=checkpoint, role="dit", overrides=overrides
        ).set_display_name("fetch diffusion model")
        place(base, profile, profiles.FETCH, secrets=("huggingface",))
        found = video_discovery(
            storage_root=storage_root, source=videos, prompt=prompt, overrides=overrides
        ).set_display_name("discover videos")
        place(found, profile, profiles.DISCOVER, cached=False, secrets=("huggingface",))
        post_train(
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
        )

    return diffusion_post_training


def post_train(
    profile: Profile,
    found: dsl.PipelineTask,
    base: dsl.PipelineTask,
    *,
    storage_root: Any,
    tokenizer_checkpoint: Any,
    text_encoder_checkpoint: Any,
    frames: Any,
    height: Any,
    width: Any,
    factory: Any,
    launcher: Any,
    model_name: Any,
    overrides: Any,
    cached: bool = True,
    ledger: Any = None,
) -> None:
    """The tasks from discovered videos and a model to start from up to promotion.

    ``ledger`` names the ledger that the videos of a promoted model are entered in.
    """
    tokenizer = checkpoint_fetch(
        storage_root=storage_root,
        source=tokenizer_checkpoint,
        role="tokenizer",
        overrides=overrides,
    ).set_display_name("fetch tokenizer")
    place(tokenizer, profile, profiles.FETCH, cached=cached, secrets=("huggingface",))
    text_encoder = checkpoint_fetch(
        storage_root=storage_root,
        source=text_encoder_checkpoint,
        role="t5",
        overrides=overrides,
    ).set_display_name("fetch T5")
    place(text_encoder, profile, profiles.FETCH, cached=cached, secrets=("huggingface",))
    embedded = prompt_embedding(
        storage_root=storage_root,
        videos=found.outputs["videos"],
        checkpoint=text_encoder.outputs["checkpoint"],
        overrides=overrides,
    ).set_display_name("embed prompts")
    place(embedded, profile, profiles.EMBED, cached=cached)
    # The latents wait for the prompts although shards, the usual layout, hold no text: it is an
    # override that chooses the guide's layout, and by then the graph is fixed. The price is T5's
    # minutes, once for each set of prompts.
    encoding = {
        "storage_root": storage_root,
        "videos": found.outputs["videos"],
        "checkpoint": tokenizer.outputs["checkpoint"],
        "prompts": embedded.outputs["embeddings"],
        "frames": frames,
        "height": height,
        "width": width,
        "overrides": overrides,
    }
    latents = latent_encoding(**encoding).set_display_name("encode latents")
    # after several pods it finds their shards and writes the manifest; it asks for a GPU all the
    # same, because it is also what makes a shard again whose decoder crashed
    place(latents, profile, profiles.ENCODE, cached=cached)
    if profile.encode_pods > 1:
        numbers = list(range(profile.encode_pods))
        with dsl.ParallelFor(numbers, name="parts of the latents") as index:
            part = latent_encoding_part(
                part_index=index, part_count=profile.encode_pods, **encoding
            ).set_display_name("encode a part")
            place(part, profile, profiles.ENCODE, cached=cached)
        latents.after(part)
    prompts = {"prompts": embedded.outputs["embeddings"]}
    train_and_judge(
        profile,
        found,
        base,
        latents.outputs["latents"],
        storage_root=storage_root,
        factory=factory,
        launcher=launcher,
        model_name=model_name,
        overrides=overrides,
        cached=cached,
        ledger=ledger,
        training_inputs=prompts,
        evaluation_inputs=prompts,
    )
