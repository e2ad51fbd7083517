"""The whole pipeline: in the guide's layout with one override, and encoded by several pods.

Both are compared with the same plain run, which comes first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from components.lib.manifest import MANIFEST_NAME, Manifest
from components.lib.report.scores import parse_evaluation
from components.lib.shards.guide import iter_guide_samples
from components.lib.store import ObjectStore


def scores_of_the_base(pipeline: Any, store: ObjectStore) -> Any:
    """What evaluation measured of the model that both runs start from."""
    manifest = pipeline.manifest("evaluation")
    found = parse_evaluation(store.get_bytes(manifest.file_uri("evaluation.json")), "e")
    return [(clip.sha256, clip.values) for clip in found.clips("base")]


class Plain(NamedTuple):
    """What the plain run made: latents, and scores of the model that every run starts from."""

    latents: Manifest
    scores: Any


@pytest.fixture(scope="module")
def plain(pipeline: Any, shared_client: ObjectStore) -> Plain:
    """A run of one pod into tars."""
    pipeline.run()
    latents = pipeline.manifest("latent_encoding")
    return Plain(latents, scores_of_the_base(pipeline, shared_client))


def test_one_override_trains_and_evaluates_on_the_guide_s_files(
    pipeline: Any, plain: Plain, store: ObjectStore, tmp_path: Path
) -> None:
    pipeline.run("--set", "latent_encoding.layout=guide", "--encode-pods", "2")
    latents, prompts = pipeline.manifest("latent_encoding"), pipeline.manifest("prompt_embedding")
    assert latents.summary["layout"] == "guide"
    assert latents.inputs["prompts"].content == prompts.content
    trained = pipeline.manifest("training")
    assert trained.inputs["data"].content == latents.content
    assert scores_of_the_base(pipeline, store) == plain.scores

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


def test_parts_make_the_data_set_of_one_pod_and_a_lost_part_stops_the_run(
    pipeline: Any, plain: Plain, store: ObjectStore
) -> None:
    alone = plain.latents
    assert sum(entry.path.endswith(".tar") for entry in alone.files) >= 3

    # the same work again for three pods, the second of which meets a saved segment that is broken
    for info in list(store.list(f"{pipeline.root}/latent_encoding/")):
        store.delete(info.uri)
    broken = f"{alone.uri}segments/train-000001/0000.tar"
    store.put_bytes(broken, b"not a tar file" * 100)
    pipeline.run("--encode-pods", "3", fails=True)
    assert store.stat(alone.uri + MANIFEST_NAME) is None
    assert not {"training", "evaluation"} & {record["stage"] for record in pipeline.stages()}
    part = alone.uri.rstrip("/") + "-part-{}-of-3/" + MANIFEST_NAME
    assert [store.stat(part.format(index)) is not None for index in range(3)] == [True, False, True]

    store.delete(broken)
    pipeline.run("--encode-pods", "3")
    *parts, whole = [s for s in pipeline.stages() if s["stage"] == "latent_encoding"]
    assert sorted(record["reused"] for record in parts) == [False, True, True]
    assert not whole["reused"]
    joined = pipeline.manifest("latent_encoding")
    assert joined.timing["frames_encoded"] == 0  # there was nothing left to encode
    assert joined.files == alone.files
    (trained,) = [record for record in pipeline.stages() if record["stage"] == "training"]
    assert trained["reused"]  # to what comes after, the data set is the same
