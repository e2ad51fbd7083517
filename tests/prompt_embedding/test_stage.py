"""What users of prompt_embedding rely on: each prompt once, as the reference encodes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from components.lib.contract import UserError
from components.lib.manifest import Manifest
from components.lib.shards.latents import prompt_digest
from components.lib.store import ObjectStore
from components.prompt_embedding import stage
from components.prompt_embedding.config import PromptEmbeddingConfig

Make = Callable[..., PromptEmbeddingConfig]
Put = Callable[..., str]

SHORT = "A video of sks robot."
LONG = "A car drives through heavy rain at night on a wet street. " * 4
TOO_LONG = "a robot moves. " * 400


def read_embedding(manifest: Manifest, store: ObjectStore, prompt: str) -> dict[str, torch.Tensor]:
    path = f"prompts/{prompt_digest(prompt)}.safetensors"
    return load(store.get_bytes(manifest.file_uri(path), sha256=manifest.entry(path).sha256))


def reference_embedding(folder: Path, prompt: str) -> tuple[torch.Tensor, int]:
    """The guide's way: one prompt, padded to 512, masked, rows past its end set to zero."""
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = T5EncoderModel.from_pretrained(folder, dtype=torch.float32).eval()
    batch = tokenizer(
        [prompt], return_tensors="pt", truncation=True, padding="max_length", max_length=512
    )
    with torch.no_grad():
        hidden = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask
        ).last_hidden_state[0]
    length = int(batch.attention_mask.sum())
    hidden[length:] = 0
    return hidden.to(torch.bfloat16), length


@pytest.mark.parametrize("prompt", [SHORT, LONG, TOO_LONG, "Ünïcode — 自動車 🚗"])
def test_embedding_equals_the_reference_encoding(
    store: ObjectStore,
    put_prompts: Put,
    make_config: Make,
    t5_folder: Path,
    progress: Any,
    prompt: str,
) -> None:
    others = ["x", "another prompt of medium length about a forklift"]
    result = stage.run(make_config(put_prompts(prompt, *others)), store, progress)
    found = read_embedding(result.manifest, store, prompt)
    expected, length = reference_embedding(t5_folder, prompt)
    assert found["embedding"].dtype == torch.bfloat16
    assert found["embedding"].shape == (512, 64)
    assert found["length"].dtype == torch.int64
    assert int(found["length"]) == length
    assert not found["embedding"][length:].any()
    torch.testing.assert_close(found["embedding"], expected, rtol=0.02, atol=0.02)


def test_each_distinct_prompt_is_stored_once_and_listed(
    store: ObjectStore, put_prompts: Put, make_config: Make, progress: Any
) -> None:
    videos = put_prompts(SHORT, LONG, SHORT, SHORT)
    result = stage.run(make_config(videos), store, progress)
    files = [f.path for f in result.manifest.files if f.path.startswith("prompts/")]
    assert sorted(files) == sorted(
        f"prompts/{prompt_digest(prompt)}.safetensors" for prompt in (SHORT, LONG)
    )
    lines = store.get_bytes(result.manifest.file_uri("prompts.jsonl")).splitlines()
    listed = {line["prompt"]: line["videos"] for line in map(json.loads, lines)}
    assert listed == {SHORT: 3, LONG: 1}
    assert result.metrics["prompts"] == 2


def test_empty_and_negative_prompts_only_when_asked_for(
    store: ObjectStore, put_prompts: Put, make_config: Make, progress: Any
) -> None:
    videos = put_prompts(SHORT)
    config = make_config(videos, empty_prompt=True, negative_prompt="blurry")
    manifest = stage.run(config, store, progress).manifest
    assert manifest.summary["prompts"] == 3
    empty = read_embedding(manifest, store, "")
    assert int(empty["length"]) == 1  # the end mark alone
    assert empty["embedding"][0].any()
    assert manifest.summary["negative_prompt"] == prompt_digest("blurry")
    assert manifest.summary["empty_prompt"] == prompt_digest("")
    assert stage.run(make_config(videos), store, progress).manifest.summary["prompts"] == 1


def test_a_cut_prompt_is_reported(
    store: ObjectStore, put_prompts: Put, make_config: Make, progress: Any
) -> None:
    result = stage.run(make_config(put_prompts(SHORT, TOO_LONG)), store, progress)
    assert result.manifest.summary["truncated"] == [prompt_digest(TOO_LONG)]
    assert result.metrics["prompts_truncated"] == 1


def test_a_video_without_prompt_is_an_error_that_names_it(
    store: ObjectStore, put_prompts: Put, make_config: Make, progress: Any
) -> None:
    with pytest.raises(UserError, match=r"1 videos have no prompt.*s3://b/1\.mp4"):
        stage.run(make_config(put_prompts(SHORT, " ")), store, progress)


def test_quarantined_videos_do_not_count(
    store: ObjectStore, put_prompts: Put, make_config: Make, progress: Any
) -> None:
    with pytest.raises(UserError, match="no usable video"):
        stage.run(make_config(put_prompts(SHORT, status="quarantined")), store, progress)
