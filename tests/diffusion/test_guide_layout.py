"""The guide's layout through the whole pipeline: one override, and the same figures."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from components.lib.report.scores import parse_evaluation
from components.lib.shards.guide import iter_guide_samples
from components.lib.store import ObjectStore
from tests.diffusion.conftest import Pipeline


def scores_of_the_base(
    pipeline: Pipeline, store: ObjectStore
) -> list[tuple[str, dict[str, float]]]:
    """What evaluation measured of the model that both runs start from."""
    manifest = pipeline.manifest("evaluation")
    found = parse_evaluation(store.get_bytes(manifest.file_uri("evaluation.json")), "e")
    return [(clip.sha256, clip.values) for clip in found.clips("base")]


def test_one_override_trains_and_evaluates_on_the_guide_s_files(
    pipeline: Pipeline, store: ObjectStore, tmp_path: Path
) -> None:
    (pipeline.videos / "bikes.txt").write_text("Cyclists ride along a street.\n")
    pipeline.run()
    expected = scores_of_the_base(pipeline, store)
    pipeline.run("--set", "latent_encoding.layout=guide", "--encode-pods", "2")
    latents, prompts = pipeline.manifest("latent_encoding"), pipeline.manifest("prompt_embedding")
    assert latents.summary["layout"] == "guide"
    assert latents.inputs["prompts"].content == prompts.content
    trained = pipeline.manifest("training")
    assert trained.inputs["data"].content == latents.content
    assert scores_of_the_base(pipeline, store) == expected

    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
    for entry in (*latents.files, *prompts.files):
        if entry.path.endswith((".pth", ".info.json", ".safetensors")):
            uri = (latents if entry in latents.files else prompts).file_uri(entry.path)
            (tmp_path / entry.path).parent.mkdir(exist_ok=True)
            store.get_file(uri, tmp_path / entry.path, sha256=entry.sha256)
    known = [load_file(path)["embedding"] for path in (tmp_path / "prompts").iterdir()]
    texts: dict[str, int] = {}
    for split in ("train", "validation"):
        for sample in iter_guide_samples(tmp_path / split):
            (which,) = [i for i, text in enumerate(known) if torch.equal(text, sample.embedding)]
            assert texts.setdefault(sample.info["video_path"], which) == which
    assert sorted(texts) == ["bigbuckbunny.mp4", "bikes.mp4"]
    assert len(set(texts.values())) == len(known) == 2
