"""The harness: what runs again, what is reused, what a killed run leaves and what follows it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from components.lib.contract import StageConfig, UserError, manifest_input, operational
from components.lib.manifest import Manifest, canonical_json, load_manifest
from components.lib.stage import Output, StageResult, StageSpec, execute, load_inputs
from components.lib.store import ObjectStore
from components.lib.system.scratch import remove_abandoned, scratch_folder
from tests.conftest import SilentProgress

SPEC = StageSpec(name="doubling", version="1", kind="videos")


class Config(StageConfig):
    """A stage that writes ``count`` files."""

    count: int = 3
    seed: int = 0
    workers: int = operational(1, "How many threads.")
    source: str | None = manifest_input("What to read.", default=None)


def write_files(inputs: dict[str, Manifest], output: Output, count: int, seed: int = 0) -> int:
    """Write the files that are not there yet; returns how many that were."""
    written = 0
    for number in range(count):
        path = f"part-{number:03d}"
        if output.finished(path) is None:
            data = random.Random(f"{seed}/{number}").randbytes(1000 + number)
            output.put_bytes(path, data, meta={"number": number, "name": "ü x"})
            written += 1
    output.summary["count"] = count
    output.metrics["files"] = count
    output.timing["write_seconds"] = 0.1
    return written


def run(
    config: Config, store: ObjectStore, progress: SilentProgress, **changes: object
) -> StageResult:
    spec = SPEC.model_copy(update=changes)

    def work(inputs: dict[str, Manifest], output: Output) -> None:
        write_files(inputs, output, config.count, config.seed)

    return execute(spec, config, store, progress, work)


def test_a_second_run_reuses_the_first(
    store: ObjectStore, storage_root: str, progress: SilentProgress
) -> None:
    config = Config(storage_root=storage_root)
    first = run(config, store, progress)
    before = {info.uri: info.modified for info in store.list(storage_root)}
    second = run(config, store, progress)
    assert (first.reused, second.reused) == (False, True)
    assert second.manifest == first.manifest
    assert second.metrics == first.metrics == {"files": 3}
    assert {info.uri: info.modified for info in store.list(storage_root)} == before
    assert load_manifest(first.manifest_uri, store) == first.manifest


def test_the_manifest_lists_every_file_with_its_digest(
    store: ObjectStore, storage_root: str, progress: SilentProgress
) -> None:
    manifest = run(Config(storage_root=storage_root), store, progress).manifest
    assert [entry.path for entry in manifest.files] == ["part-000", "part-001", "part-002"]
    for number, entry in enumerate(manifest.files):
        data = store.get_bytes(manifest.file_uri(entry.path), sha256=entry.sha256)
        assert len(data) == entry.bytes == 1000 + number
        assert entry.meta == {"number": number, "name": "ü x"}


def test_what_decides_the_address(
    store: ObjectStore, storage_root: str, progress: SilentProgress
) -> None:
    def address(changes: dict[str, Any], **spec: str) -> str:
        config = Config(**{"storage_root": storage_root, **changes})
        return run(config, store, progress, **spec).manifest.address

    base = address({})
    assert address({"workers": 7}) == base, "operational fields do not decide"
    assert address({"storage_root": storage_root + "/elsewhere"}) == base
    others = [
        address({"count": 2}),
        address({"seed": 1}),
        address({}, version="2"),
        address({}, name="other"),
    ]
    assert len({base, *others}) == 5


def test_inputs_count_by_content_and_not_by_place(
    store: ObjectStore, storage_root: str, progress: SilentProgress
) -> None:
    def derived(place: str, seed: int) -> StageResult:
        made = run(Config(storage_root=f"{storage_root}/{place}", seed=seed), store, progress)
        config = Config(storage_root=storage_root, count=1, source=made.manifest_uri)
        return run(config, store, progress, name="derived")

    here, there, other = derived("a", 5), derived("b", 5), derived("c", 6)
    assert there.reused and here.manifest.address == there.manifest.address
    assert other.manifest.address != here.manifest.address
    assert set(here.manifest.inputs) == {"source"}


class Particular(StageConfig):
    """A stage that takes some kinds of manifests."""

    videos: str = manifest_input("Videos, as video_discovery writes them.", kinds=("videos",))
    model: str = manifest_input(
        "What checkpoint_fetch made.", kinds=("checkpoint", "training-run"), default=""
    )


def test_a_manifest_of_another_kind_is_refused_with_what_to_give(
    store: ObjectStore, storage_root: str, progress: Any
) -> None:
    videos = run(Config(storage_root=storage_root), store, progress)
    other = run(Config(storage_root=storage_root), store, progress, name="a", kind="evaluation")
    config = Particular(storage_root=storage_root, videos=videos.manifest_uri)
    assert set(load_inputs(config, store)) == {"videos"}
    config = config.model_copy(update={"model": other.manifest_uri})
    started = []

    def work(inputs: dict[str, Manifest], output: Output) -> None:
        started.append(inputs)

    with pytest.raises(UserError) as caught:
        execute(SPEC, config, store, progress, work)
    sentence = str(caught.value)
    for words in (
        f"model={other.manifest_uri}", "'evaluation'", "takes checkpoint or training-run",
        "What checkpoint_fetch made.",
    ):  # fmt: skip
        assert words in sentence
    assert started == []


@pytest.mark.parametrize("kind", ["", "Videos", "two words", "-x", "x-"])
def test_a_kind_is_small_words_with_hyphens(kind: str) -> None:
    with pytest.raises(ValidationError, match="kind"):
        StageSpec(name="s", version="1", kind=kind)


def test_work_that_fails_leaves_no_manifest(
    store: ObjectStore, storage_root: str, progress: SilentProgress
) -> None:
    def work(inputs: dict[str, Manifest], output: Output) -> None:
        write_files(inputs, output, 2)
        raise UserError("No.")

    with pytest.raises(UserError):
        execute(SPEC, Config(storage_root=storage_root), store, progress, work)
    left = [info.uri.rpartition("/")[2] for info in store.list(storage_root)]
    assert left == ["part-000", "part-001"]
    written = []
    execute(
        SPEC,
        Config(storage_root=storage_root),
        store,
        progress,
        lambda inputs, output: written.append(write_files(inputs, output, 3)),
    )
    assert written == [1], "the two that were complete are not made again"


def test_an_output_with_missing_or_replaced_files_is_made_again(
    store: ObjectStore, storage_root: str, progress: SilentProgress
) -> None:
    config = Config(storage_root=storage_root)
    first = run(config, store, progress)
    store.delete(first.manifest.file_uri("part-001"))
    second = run(config, store, progress)
    assert not second.reused
    assert second.manifest.content == first.manifest.content
    assert any("part-001 is missing" in line for line in progress.lines)
    store.get_bytes(second.manifest.file_uri("part-001"))


def test_a_broken_manifest_of_ours_names_the_file(
    store: ObjectStore, storage_root: str, tmp_path: Path
) -> None:
    store.put_bytes(f"{storage_root}/manifest.json", b'{"kind": "videos"}')
    with pytest.raises(UserError, match=f"{storage_root}/manifest.json is not a manifest"):
        load_manifest(f"{storage_root}/manifest.json", store)
    (tmp_path / "m.json").write_text("[]")
    with pytest.raises(UserError, match=r"m\.json is not a manifest"):
        load_manifest(str(tmp_path / "m.json"), store)
    with pytest.raises(UserError, match=r"none\.json"):
        load_manifest(str(tmp_path / "none.json"), store)


def test_scratch_is_private_and_removed(
    store: ObjectStore, storage_root: str, progress: SilentProgress
) -> None:
    seen: list[Path] = []

    def work(inputs: dict[str, Manifest], output: Output) -> None:
        assert list(output.scratch.iterdir()) == []
        (output.scratch / "x").write_bytes(b"x")
        seen.append(output.scratch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(SPEC, Config(storage_root=storage_root), store, progress, work)
    assert not seen[0].exists()


def test_scratch_of_the_killed_is_removed_and_of_the_living_kept(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from components.lib.system.scratch import *\n"
        "with scratch_folder('x', Path(sys.argv[1])) as folder:\n"
        "    print(folder, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    folder = Path(child.stdout.readline().strip())
    try:
        with scratch_folder("mine", tmp_path) as mine:
            assert remove_abandoned(tmp_path, young_s=0) == []
            assert folder.is_dir() and mine.is_dir()
            child.kill()
            child.wait()
            assert remove_abandoned(tmp_path, young_s=3600) == [], "too new to judge"
            assert remove_abandoned(tmp_path, young_s=0) == [folder.parent]
            assert mine.is_dir()
    finally:
        child.kill()
        child.communicate()
    assert list(tmp_path.iterdir()) == []


# Writes 12 files slowly; killed at random moments until it finishes.
SLOW = """
import random, sys, time
from components.lib.contract import StageConfig
from components.lib.progress import LineProgress
from components.lib.stage import StageSpec, execute
from components.lib.store import ObjectStore

def work(inputs, output):
    for number in range(12):
        if output.finished(f"part-{number:03d}") is None:
            data = random.Random(number).randbytes(200_000)
            output.put_bytes(f"part-{number:03d}", data, meta={"number": number})
            print("made", number, flush=True)
            time.sleep(0.02)

spec = StageSpec(name="slow", version="1", kind="videos")
config = StageConfig(storage_root=sys.argv[1])
result = execute(spec, config, ObjectStore.from_env(), LineProgress(), work)
print("done", result.manifest.content, flush=True)
"""


def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    store: ObjectStore, storage_root: str, store_env: dict[str, str]
) -> None:
    def start(root: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SLOW, root]
        return subprocess.Popen(command, env=store_env, stdout=subprocess.PIPE, text=True)

    undisturbed = start(f"{storage_root}/a").communicate(timeout=60)[0].split()[-1]
    generator = random.Random(0)
    made: list[str] = []
    for attempt in range(40):
        process = start(f"{storage_root}/b")
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        if attempt < 6:
            time.sleep(generator.uniform(0, 0.08))
            os.kill(process.pid, signal.SIGKILL)
        lines += process.communicate(timeout=60)[0].splitlines()
        made += [line.split()[1] for line in lines if line.startswith("made")]
        if lines[-1].startswith("done"):
            break
    assert lines[-1].split() == ["done", undisturbed]
    assert attempt >= 2, "it was killed before"
    assert len(made) == len(set(made)), "nothing that was finished is made twice"


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.dictionaries(st.text(max_size=4), inner, max_size=4),
        max_leaves=8,
    )
)
def test_canonical_json_depends_on_the_value_alone(value: object) -> None:
    def reordered(item: object) -> object:
        if isinstance(item, dict):
            return {key: reordered(item[key]) for key in reversed(list(item))}
        return item

    assert canonical_json(value) == canonical_json(reordered(value))
    assert json.loads(canonical_json(value)) == value
