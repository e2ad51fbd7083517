"""The pass over a source: inspect in parallel, write records in order, then choose the splits.

A bounded window of files is in flight at once, so a listing of any length takes constant memory;
contents seen before are looked up in a small database on disk. Splits need to know all groups,
hence a second pass over the records just written.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.lib.contract import Progress, UserError
from components.lib.manifest import file_sha256
from components.lib.store import ObjectStore
from components.lib.video.inspection import Inspection
from components.lib.video.isolated import DecodingPool
from components.lib.video.ledger import Processed
from components.lib.video.probe import VideoProbe
from components.lib.video.records import (
    SplitRule,
    VideoRecord,
    is_old,
    parse_records,
    record_line,
)
from components.video_discovery.cache import InspectionCache
from components.video_discovery.candidates import Candidate, Ignored, candidates
from components.video_discovery.config import VideoDiscoveryConfig
from components.video_discovery.describe import Describer, Description, fill_prompt, read_table
from components.video_discovery.entries import Entry, VideoSource, readable
from components.video_discovery.filters import looks_at_pictures, rejection
from components.video_discovery.mixing import as_old, choose_old
from components.video_discovery.sources import open_source

_KEPT_REASONS = 20
_BYTES_PER_TIMEOUT_SECOND = 4 << 20


@dataclass
class Findings:
    """What a pass found. ``reasons`` holds the first few, each naming its file."""

    source: str
    videos: Path
    quarantine: Path
    videos_sha256: str = ""
    quarantine_sha256: str = ""
    listed: int = 0
    ok: int = 0
    unreadable: int = 0
    filtered: int = 0
    duplicates: int = 0
    already_processed: int = 0
    ignored: int = 0
    inspected: int = 0
    bytes: int = 0
    frames: int = 0
    seconds: float = 0.0
    without_prompt: int = 0
    new: int = 0
    old: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    single_group: bool = False
    reasons: list[str] = field(default_factory=list)
    timing: dict[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        same = self.single_group and self.ok > 0 and not self.splits["validation"]
        return {
            "source": self.source,
            "counts": {
                "listed": self.listed,
                "ok": self.ok,
                "quarantined": self.unreadable + self.filtered,
                "duplicate": self.duplicates,
                "unreadable": self.unreadable,
                "filtered": self.filtered,
                "already_processed": self.already_processed,
                "new": self.new,
                "old": self.old,
                "ignored_files": self.ignored,
            },
            "content": self.videos_sha256,
            "bytes": self.bytes,
            "frames": self.frames,
            "seconds_of_video": round(self.seconds, 3),
            "without_prompt": self.without_prompt,
            "splits": dict(sorted(self.splits.items())),
            "validation": "same-video" if same else "held-out",
            "reasons": self.reasons,
        }

    def metrics(self) -> dict[str, float]:
        """For the UI."""
        return {
            "videos": self.ok,
            "quarantined": self.unreadable + self.filtered,
            "duplicates": self.duplicates,
            "already_processed": self.already_processed,
            "new": self.new,
            "frames": self.frames,
            "gigabytes": round(self.bytes / 1e9, 6),
        }

    def sentence(self) -> str:
        """For the log."""
        parts = [f"{self.ok} usable videos of {self.listed} ({self.seconds:.0f} s)"]
        parts += [f"{self.unreadable} unreadable"] * bool(self.unreadable)
        parts += [f"{self.filtered} filtered out"] * bool(self.filtered)
        parts += [f"{self.duplicates} duplicates"] * bool(self.duplicates)
        parts += [f"{self.already_processed} already processed"] * bool(self.already_processed)
        parts += [f"{self.new} new and {self.old} old ones taken"] * bool(self.already_processed)
        return ", ".join(parts) + f" in {self.source}"


@dataclass
class _Result:
    candidate: Candidate
    inspection: Inspection | None
    known: bool
    lost: str = ""
    description: Description = field(default_factory=Description)
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0


def scan(
    config: VideoDiscoveryConfig,
    store: ObjectStore,
    progress: Progress,
    scratch: Path,
    workers: int,
    ledger: Processed | None = None,
) -> Findings:
    """List and inspect everything; the records are left in ``scratch``.

    With a ``ledger``, the videos that it holds are left out, but for the sample of them that
    ``old_per_new`` asks for.
    """
    old = ledger or Processed()
    source = open_source(config.source, store, config.storage_root)
    describer = _describer(config, source, store)
    findings = Findings(source.name, scratch / "videos.jsonl", scratch / "quarantine.jsonl")
    settings = [config.check, looks_at_pictures(config)]
    cache = InspectionCache(store, config.storage_root, config.source, settings, scratch)
    rule = SplitRule(config.validation_fraction, config.seed, old.groups)
    seen = _Seen(scratch / "seen.sqlite")
    unsplit, complete = scratch / "unsplit.jsonl", False
    started = time.monotonic()
    try:
        with (
            DecodingPool(workers) as pool,
            unsplit.open("wb") as usable,
            findings.quarantine.open("wb") as quarantine,
            progress.task("inspecting videos", unit="videos") as task,
        ):
            inspector = _Inspector(config, source, describer, pool, scratch)
            for result in inspector.results(cache, findings, workers):
                record = _record(config, source, result, seen, findings)
                task.advance()
                if record.status != "ok":
                    quarantine.write(record_line(record))
                elif bytes.fromhex(record.sha256) in old.videos:
                    findings.already_processed += 1
                    if config.old_per_new:
                        usable.write(record_line(as_old(record, old)))
                else:
                    rule.see(record)
                    usable.write(record_line(record))
        complete = True
    finally:
        cache.close(complete=complete)
        seen.close()
    seconds = time.monotonic() - started
    findings.timing["inspect_seconds"] = seconds
    findings.timing["files_inspected"] = findings.inspected
    findings.timing["files_per_second"] = findings.listed / seconds
    findings.single_group = rule.single_group
    chosen = choose_old(config, unsplit, rule) if config.old_per_new else set()
    _split(unsplit, findings, rule, chosen)
    findings.quarantine_sha256 = file_sha256(findings.quarantine)
    return findings


def _describer(config: VideoDiscoveryConfig, source: VideoSource, store: ObjectStore) -> Describer:
    table: dict[str, Description] = {}
    if config.table.startswith("s3://"):
        table = read_table(store.get_bytes(config.table), config.table)
    elif config.table:
        path = Path(config.table).expanduser()
        if not path.is_file():
            raise UserError(f"There is no table at {path}. Give a JSONL or CSV file.")
        table = read_table(path.read_bytes(), str(path))
    prompt = fill_prompt(config.prompt, config.subject)
    return Describer(source, config.path_pattern, prompt, table)


class _Inspector:
    def __init__(
        self,
        config: VideoDiscoveryConfig,
        source: VideoSource,
        describer: Describer,
        pool: DecodingPool,
        scratch: Path,
    ) -> None:
        self.config, self.source, self.describer = config, source, describer
        self.pool, self.scratch = pool, scratch
        self.pictures = looks_at_pictures(config)

    def results(
        self, cache: InspectionCache, findings: Findings, workers: int
    ) -> Iterator[_Result]:
        """Results in the order of the listing, with a bounded number of files in flight."""
        ignored = Ignored()
        window: deque[Future[_Result]] = deque()
        with ThreadPoolExecutor(2 * workers, thread_name_prefix="inspect") as threads:
            try:
                entries = self.source.entries()
                for candidate in candidates(entries, ignored, any_suffix=self.source.single):
                    findings.listed += 1
                    known = cache.get(candidate.entry)
                    window.append(threads.submit(self._one, candidate, known))
                    while len(window) > 8 * workers or (window and window[0].done()):
                        yield self._next(window, cache, findings)
                while window:
                    yield self._next(window, cache, findings)
            finally:
                for future in window:
                    future.cancel()
        findings.ignored = ignored.files

    def _next(
        self, window: deque[Future[_Result]], cache: InspectionCache, findings: Findings
    ) -> _Result:
        result = window.popleft().result()
        findings.inspected += not result.known
        for name in ("fetch_seconds", "decode_seconds"):  # of all threads together
            findings.timing[name] = findings.timing.get(name, 0.0) + getattr(result, name)
        if result.inspection is not None:
            cache.put(result.candidate.entry, result.inspection, new=not result.known)
        return result

    def _one(self, candidate: Candidate, known: Inspection | None) -> _Result:
        entry, begun = candidate.entry, time.monotonic()
        fetched = decoded = begun
        if known is None:
            with self.source.local(entry, self.scratch) as path:
                fetched = time.monotonic()
                result = self.pool.inspect(
                    path,
                    check=self.config.check,  # type: ignore[arg-type]  # the field's pattern
                    pictures=self.pictures,
                    timeout_s=self.config.timeout_s + entry.bytes / _BYTES_PER_TIMEOUT_SECOND,
                )
                decoded = time.monotonic()
                if isinstance(result, str):
                    return _Result(
                        candidate,
                        None,
                        False,
                        lost=result,
                        fetch_seconds=fetched - begun,
                        decode_seconds=decoded - fetched,
                    )
                if result.probe is not None:
                    self.source.publish(entry, path, result.sha256)
            inspection = result
        else:
            inspection = known
        description = Description()
        if inspection.probe is not None:
            description = self.describer.describe(candidate)
        return _Result(
            candidate,
            inspection,
            known is not None,
            description=description,
            fetch_seconds=fetched - begun,
            decode_seconds=decoded - fetched,
        )


def _record(
    config: VideoDiscoveryConfig,
    source: VideoSource,
    result: _Result,
    seen: _Seen,
    findings: Findings,
) -> VideoRecord:
    """The record of one result, counted in ``findings``."""
    entry, inspection = result.candidate.entry, result.inspection
    if inspection is None or inspection.probe is None:
        reason = result.lost or (inspection.reason if inspection else "")
        findings.unreadable += 1
        sha256 = inspection.sha256 if inspection else ""
        return _bad(source, entry, sha256, reason, "unreadable", findings)
    unwanted = rejection(config, inspection.probe, inspection.look)
    if unwanted:
        findings.filtered += 1
        return _bad(source, entry, inspection.sha256, unwanted, "filtered", findings)
    uri = source.uri(entry, inspection.sha256)
    first = seen.first_with(inspection.sha256, entry.key)
    record = _usable(uri, entry, inspection, inspection.probe, result.description)
    if first is not None:
        findings.duplicates += 1
        return record.model_copy(
            update={"status": "duplicate", "reason": f"it has the same content as {first}"}
        )
    return record


def _usable(
    uri: str, entry: Entry, inspection: Inspection, probe: VideoProbe, description: Description
) -> VideoRecord:
    extra = probe.extra()
    if uri.startswith("s3://") and uri != entry.key:
        extra["source"] = readable(entry.key)  # a copy under its content's name
    return VideoRecord(
        uri=uri,
        sha256=inspection.sha256,
        bytes=inspection.bytes,
        width=probe.width,
        height=probe.height,
        fps=probe.fps,
        frames=probe.frames,
        codec=probe.codec,
        pixel_format=probe.pixel_format,
        rotation=probe.rotation,
        duration=probe.duration,
        prompt=description.prompt,
        drive=description.drive,
        vehicle=description.vehicle,
        extra=extra,
    )


def _bad(
    source: VideoSource, entry: Entry, sha256: str, reason: str, cause: str, findings: Findings
) -> VideoRecord:
    if len(findings.reasons) < _KEPT_REASONS:
        findings.reasons.append(f"{readable(entry.key)}: {reason}")
    return VideoRecord(
        uri=source.uri(entry, sha256),
        sha256=sha256,
        bytes=entry.bytes,
        status="quarantined",
        reason=reason,
        extra={"cause": cause},
    )


def _split(unsplit: Path, findings: Findings, rule: SplitRule, chosen: set[str]) -> None:
    digest = hashlib.sha256()
    with unsplit.open("rb") as stream, findings.videos.open("wb") as videos:
        for record in parse_records(stream, str(unsplit)):
            if is_old(record) and record.sha256 not in chosen:
                continue
            split = record.split if is_old(record) else rule.split(record)
            assert split is not None, "the ledger knows the split of every video it holds"
            line = record_line(record.model_copy(update={"split": split}))
            digest.update(line)
            videos.write(line)
            findings.ok += 1
            findings.old += is_old(record)
            findings.new += not is_old(record)
            findings.splits[split] += 1
            findings.bytes += record.bytes
            findings.frames += record.frames
            findings.seconds += record.duration
            findings.without_prompt += not record.prompt
    unsplit.unlink()
    findings.videos_sha256 = digest.hexdigest()


class _Seen:
    """Which content was met first under which key."""

    def __init__(self, path: Path) -> None:
        self.database = sqlite3.connect(path)
        self.database.execute("PRAGMA synchronous=OFF")
        self.database.execute("PRAGMA journal_mode=OFF")
        self.database.execute("CREATE TABLE seen (content BLOB PRIMARY KEY, key TEXT)")

    def first_with(self, sha256: str, key: str) -> str | None:
        """The key that had this content before; None when this is the first."""
        content = bytes.fromhex(sha256)
        row = self.database.execute("SELECT key FROM seen WHERE content = ?", (content,)).fetchone()
        if row is None:
            self.database.execute("INSERT INTO seen VALUES (?, ?)", (content, readable(key)))
            return None
        return str(row[0])

    def close(self) -> None:
        self.database.close()
