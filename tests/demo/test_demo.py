"""The newcomer's command: both pipelines on real video, reports to look at, reuse, kills.

One demo run serves all tests here. The kill test's full form is ``make campaign-demo``, which
kills a demo of its own at random moments.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = [pytest.mark.demo, pytest.mark.timeout(1800)]

CLI = str(Path(sys.executable).parent / "cosmos-pipelines")
CHROMIUM_FLAGS = (
    "headless=new no-sandbox disable-gpu disable-quic no-first-run "
    "disable-background-networking disable-component-update disable-sync"
)
KILLS = int(os.environ.get("COSMOS_DEMO_KILLS", "0"))  # 0: the short form
LATE = ("training", "evaluation", "promotion")


class Demo(NamedTuple):
    workspace: Path
    first_seconds: float
    output: str


def run_demo(workspace: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        # a relative folder, as `make demo` gives it
        [CLI, "demo", "--workspace", workspace.name],
        cwd=workspace.parent,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    workspace = tmp_path_factory.mktemp("demo")
    started = time.monotonic()
    done = run_demo(workspace)
    assert done.returncode == 0, done.stdout + done.stderr
    return Demo(workspace, time.monotonic() - started, done.stdout)


@pytest.fixture(scope="module")
def losses(demo: Demo) -> dict[str, list[float]]:
    """Training loss of each step by pipeline, read from the demo's own store."""
    from components.lib.manifest import load_manifest
    from components.lib.store import ObjectStore
    from components.lib.store.embedded import EmbeddedStore

    found: dict[str, list[float]] = {}
    with EmbeddedStore(demo.workspace) as embedded:
        store = ObjectStore.from_env(embedded.env)
        for journal in sorted((demo.workspace / "runs").glob("*.jsonl")):
            for line in journal.read_text().splitlines():
                record = json.loads(line)
                if record["stage"] == "training":
                    manifest = load_manifest(record["manifest"], store)
                    text = store.get_bytes(manifest.file_uri("metrics.jsonl")).decode()
                    rows = [json.loads(row) for row in text.splitlines()]
                    steps = [row["loss"] for row in rows if row["split"] == "train"]
                    found[journal.name.split("-")[0]] = steps
    return found


@pytest.mark.parametrize("pipeline", ["diffusion", "tokenizer"])
def test_loss_falls(losses: dict[str, list[float]], pipeline: str) -> None:
    steps = losses[pipeline]
    tenth = max(1, len(steps) // 10)
    assert len(steps) >= 20
    first, last = sum(steps[:tenth]) / tenth, sum(steps[-tenth:]) / tenth
    assert last < 0.9 * first


def test_output_names_both_reports(demo: Demo) -> None:
    for name in ("diffusion", "tokenizer"):
        report = demo.workspace / "reports" / f"{name}-evaluation.html"
        assert report.is_file()
        assert str(report.resolve()) in demo.output


@pytest.mark.browser
@pytest.mark.parametrize("name", ["diffusion", "tokenizer"])
def test_report_opens_without_errors_or_requests(demo: Demo, name: str) -> None:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By

    options = webdriver.ChromeOptions()
    for flag in CHROMIUM_FLAGS.split():
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        driver.get((demo.workspace / "reports" / f"{name}-evaluation.html").resolve().as_uri())
        assert driver.find_elements(By.CSS_SELECTOR, "svg polyline, svg path, svg line")
        assert driver.find_elements(By.CSS_SELECTOR, "img")
        assert [entry["message"] for entry in driver.get_log("browser")] == []
        messages = [json.loads(e["message"])["message"] for e in driver.get_log("performance")]
        urls = [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        assert [url for url in urls if not url.startswith(("file:", "data:", "blob:"))] == []
    finally:
        driver.quit()


def test_second_run_reuses_the_first(demo: Demo) -> None:
    started = time.monotonic()
    done = run_demo(demo.workspace)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stdout + done.stderr
    newest = sorted((demo.workspace / "runs").glob("*.jsonl"), key=lambda p: p.stat().st_mtime)[-2:]
    for journal in newest:
        records = [json.loads(line) for line in journal.read_text().splitlines()]
        assert all(record["reused"] for record in records), records
    print(f"first {demo.first_seconds:.0f} s, second {seconds:.0f} s")


def test_every_stage_runs_alone_from_a_config_file(demo: Demo, tmp_path: Path) -> None:
    """With the demo's settings and inputs, each finds the demo's own output again."""
    from components.harness.stages import stage_names
    from components.lib.manifest import load_manifest
    from components.lib.store import ObjectStore
    from components.lib.store.embedded import EmbeddedStore

    records: dict[str, str] = {}
    for journal in sorted((demo.workspace / "runs").glob("*.jsonl")):
        for line in journal.read_text().splitlines():
            record = json.loads(line)
            records.setdefault(record["stage"], record["manifest"])
    assert set(records) == set(stage_names())
    with EmbeddedStore(demo.workspace) as embedded:
        store = ObjectStore.from_env(embedded.env)
        for name, uri in records.items():
            manifest = load_manifest(uri, store)
            inputs = {key: f"{ref.uri}" for key, ref in manifest.inputs.items()}
            values = {**manifest.config, **inputs, "storage_root": "s3://cosmos/runs"}
            path = tmp_path / f"{name}.json"
            path.write_text(json.dumps(values))
            done = subprocess.run(
                [CLI, "stage", name, "--config", str(path)],
                env={**os.environ, **embedded.env},
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
            assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
            again = load_manifest(done.stdout.split()[-1], store)
            assert again.stage == name
            if name != "evaluation":  # which also looks at production, and that has changed
                assert again.uri == manifest.uri


def test_killed_demo_finishes_when_started_again(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The short form goes on in the workspace of the finished demo, of which the tokenizer's
    training and what follows it were removed. It is killed while it starts, and while it trains."""
    if KILLS:
        workspace, generator = tmp_path, random.Random(20)
        for _ in range(KILLS):
            killed_demo(workspace, seconds=generator.uniform(3, 70))
    else:
        workspace = request.getfixturevalue("demo").workspace
        remove_outputs(workspace, "tokenizer", LATE)
        killed_demo(workspace, seconds=random.Random(20).uniform(1, 6))
        said = killed_demo(workspace, mark="GiB stored in")
        assert "== tokenizer ==" in said and "checkpoint of step" in said
    done = run_demo(workspace)
    assert done.returncode == 0, done.stdout + done.stderr
    assert KILLS or "resuming from" in done.stdout
    for name in ("diffusion", "tokenizer"):
        assert (workspace / "reports" / f"{name}-evaluation.html").is_file()


def remove_outputs(workspace: Path, pipeline: str, stages: tuple[str, ...]) -> None:
    """Remove what these stages of the pipeline's first run wrote, and the reports."""
    from components.lib.store import ObjectStore
    from components.lib.store.embedded import EmbeddedStore

    journal = min((workspace / "runs").glob(f"{pipeline}-*.jsonl"))
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    folders = [record["manifest"].rpartition("/")[0] for record in records]
    with EmbeddedStore(workspace) as embedded:
        store = ObjectStore.from_env(embedded.env)
        for record, folder in zip(records, folders, strict=True):
            for info in list(store.list(f"{folder}/")) if record["stage"] in stages else []:
                store.delete(info.uri)
    shutil.rmtree(workspace / "reports")


def killed_demo(workspace: Path, seconds: float = 600, mark: str = "") -> str:
    """A demo that is killed after so many seconds, or once it says ``mark``; what it said."""
    process = subprocess.Popen(
        [CLI, "demo", "--workspace", workspace.name],
        cwd=workspace.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    assert process.stdout is not None
    limit = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
    limit.start()
    said = ""
    try:
        for line in process.stdout:
            said += line
            if mark and mark in line:
                break
    finally:
        limit.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    return said
