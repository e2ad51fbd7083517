"""The harness around a stage's work: content addresses, reuse, resumption, manifest last.

An output lies under ``<storage_root>/<stage>/<address>/`` where the address is the sha256 of
(stage, its version, content digests of the input manifests, the deciding config fields). A rerun
with the same address finds the manifest and returns it; an interrupted run finds the files it had
finished (an S3 put is atomic, and each object carries its own sha256) and goes on from there.

The trade-off: bump `StageSpec.version` whenever a change alters what a stage writes. Forgetting
that serves old results; bumping needlessly costs one recomputation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.lib.contract import Frozen, Progress, StageConfig, UserError
from components.lib.manifest import (
    MANIFEST_NAME,
    FileEntry,
    InputRef,
    Kind,
    Manifest,
    digest_json,
    load_manifest,
    parse_manifest,
)
from components.lib.store import ObjectStore
from components.lib.system.scratch import scratch_folder


class StageSpec(Frozen):
    """Name, version and output kind of a stage. The kind is what other stages' inputs ask for."""

    name: str
    version: str
    kind: Kind


class StageResult(Frozen):
    """What a stage hands back. ``metrics`` are the scalars that the KFP UI shows."""

    manifest: Manifest
    manifest_uri: str
    reused: bool
    metrics: dict[str, float] = {}


@dataclass
class Output:
    """The output prefix while a stage is filling it.

    ``scratch`` is a private local folder, removed when the stage ends. Values put in ``summary``
    (JSON) describe the output; ``timing`` holds seconds and rates and stays out of all digests;
    ``metrics`` are scalars for the UI.
    """

    store: ObjectStore
    uri: str
    scratch: Path

    def __post_init__(self) -> None:
        self.files: dict[str, FileEntry] = {}
        self.summary: dict[str, Any] = {}
        self.timing: dict[str, float] = {}
        self.metrics: dict[str, float] = {}

    def finished(self, path: str) -> FileEntry | None:
        """A file that this run, or an interrupted earlier one, has already completed."""
        if path in self.files:
            return self.files[path]
        info = self.store.stat(self.uri + path)
        if info is None or info.sha256 is None:
            return None
        entry = FileEntry(path=path, bytes=info.bytes, sha256=info.sha256, meta=info.meta)
        self.files[path] = entry
        return entry

    def put_file(self, path: str, source: Path, meta: Mapping[str, Any] | None = None) -> FileEntry:
        """Upload a local file as part of the output."""
        info = self.store.put_file(source, self.uri + path, meta=meta)
        return self._record(path, info.bytes, info.sha256, meta)

    def put_bytes(self, path: str, data: bytes, meta: Mapping[str, Any] | None = None) -> FileEntry:
        """Upload bytes as part of the output."""
        info = self.store.put_bytes(self.uri + path, data, meta=meta)
        return self._record(path, info.bytes, info.sha256, meta)

    def _record(
        self, path: str, size: int, sha256: str | None, meta: Mapping[str, Any] | None
    ) -> FileEntry:
        assert sha256 is not None, "the store returns the digest of everything it writes"
        entry = FileEntry(path=path, bytes=size, sha256=sha256, meta=dict(meta or {}))
        self.files[path] = entry
        return entry


def load_inputs(config: StageConfig, store: ObjectStore) -> dict[str, Manifest]:
    """The manifests that the config names. Raises UserError for one of a kind it does not take."""
    inputs = {name: load_manifest(ref, store) for name, ref in config.manifest_refs().items()}
    kinds = config.input_kinds()
    for name, manifest in inputs.items():
        if kinds[name] and manifest.kind not in kinds[name]:
            raise UserError(
                f"{name}={manifest.uri}{MANIFEST_NAME} is a manifest of kind '{manifest.kind}', "
                f"but '{name}' takes {' or '.join(kinds[name])}: "
                f"{type(config).model_fields[name].description}"
            )
    return inputs


def address_of(
    spec: StageSpec, config: StageConfig, inputs: Mapping[str, Manifest], **world: Any
) -> str:
    """The address of an output that config and inputs decide, and what ``world`` adds to them."""
    contents = {name: manifest.content for name, manifest in inputs.items()}
    return address_by(spec, inputs=contents, config=config.deciding_fields(), **world)


def address_by(spec: StageSpec, **facts: Any) -> str:
    """The address of an output that these facts decide, whatever config and inputs say."""
    return digest_json({"stage": spec.name, "version": spec.version, **facts})


def address_by_list(spec: StageSpec, *facts: Any) -> str:
    """As `address_by`, for stages whose first outputs were addressed by a list of facts."""
    return digest_json([spec.name, spec.version, *facts])


def output_uri(storage_root: str, stage: str, address: str) -> str:
    """Where an output lies."""
    return f"{storage_root.rstrip('/')}/{stage}/{address}/"


Work = Callable[[dict[str, Manifest], Output], None]


def execute(
    spec: StageSpec,
    config: StageConfig,
    store: ObjectStore,
    progress: Progress,
    work: Work,
    *,
    address: str | None = None,
) -> StageResult:
    """Run ``work`` unless its output exists, then write the manifest.

    ``address`` replaces `address_of` config and inputs where the world decides the result, too
    (discovery, promotion). Everything ``work`` uploads through `Output` is listed.
    """
    inputs = load_inputs(config, store)
    address = address or address_of(spec, config, inputs)
    uri = output_uri(config.storage_root, spec.name, address)
    manifest_uri = uri + MANIFEST_NAME
    manifest = _complete_output(store, manifest_uri, progress)
    if manifest is not None:
        progress.log(f"{spec.name}: reusing {manifest_uri}")
        return StageResult(
            manifest=manifest,
            manifest_uri=manifest_uri,
            reused=True,
            metrics=_scalars(manifest.summary.get("metrics", {})),
        )
    started = time.monotonic()
    with scratch_folder(spec.name) as scratch:
        output = Output(store=store, uri=uri, scratch=scratch)
        work(inputs, output)
    output.timing["seconds"] = time.monotonic() - started
    manifest = Manifest(
        kind=spec.kind,
        stage=spec.name,
        stage_version=spec.version,
        address=address,
        uri=uri,
        files=tuple(sorted(output.files.values(), key=lambda entry: entry.path)),
        inputs={
            name: InputRef(uri=inputs[name].uri + MANIFEST_NAME, content=inputs[name].content)
            for name in inputs
        },
        config=config.deciding_fields(),
        summary={**output.summary, "metrics": output.metrics},
        timing=output.timing,
    )
    store.put_bytes(manifest_uri, manifest.model_dump_json(indent=1).encode())
    progress.log(f"{spec.name}: wrote {manifest_uri} ({len(manifest.files)} files)")
    return StageResult(
        manifest=manifest, manifest_uri=manifest_uri, reused=False, metrics=output.metrics
    )


def _complete_output(store: ObjectStore, uri: str, progress: Progress) -> Manifest | None:
    """The manifest of an earlier run, unless it is missing, cut short, or lists missing files."""
    info = store.stat(uri)
    if info is None or info.sha256 is None:
        return None
    manifest = parse_manifest(store.get_bytes(uri), uri)
    present = {info.uri: info.bytes for info in store.list(manifest.uri)}
    for entry in manifest.files:
        if present.get(manifest.file_uri(entry.path)) != entry.bytes:
            progress.log(
                f"{manifest.stage}: {manifest.file_uri(entry.path)} is missing or has another "
                "size than its manifest says; making the output again"
            )
            return None
    return manifest


def _scalars(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
