"""Killed, terminated and moved trainings end exactly as the undisturbed one, on a real store.

The short form interrupts a run once in each way. COSMOS_RESUME_CAMPAIGN=20 makes it twenty
interruptions at random steps. Tests share what none of them changes: the undisturbed run, and a
killed one of which each test damages a copy.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from components.lib.store import ObjectStore
from components.lib.store.embedded import EmbeddedStore

pytestmark = pytest.mark.resume
CAMPAIGN = int(os.environ.get("COSMOS_RESUME_CAMPAIGN", "3"))
STEPS = max(24, 6 * CAMPAIGN)
LOW_RANK = ("model.lora.rank=4", "optim.config.lr=1e-2")
PATIENCE_S = 400  # only a hang takes longer, however loaded the machine is


class Run:
    """A training that writes to ``uri``; each start may be on a "new machine"."""

    ranks = 2

    def __init__(self, arguments: list[str], env: dict[str, str], folder: Path, uri: str) -> None:
        self.arguments, self.env, self.folder, self.uri = arguments, env, folder, uri
        self.log = folder / "machine"
        self.output = folder / "output.txt"

    def start(self) -> subprocess.Popen[bytes]:
        with self.output.open("ab") as output:
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                    *(f"--nproc-per-node={self.ranks}", "--shutdown-timeout=60"),
                    *("-m", "components.lib.train", "--yes", *self.arguments),
                    *(f"log.log_dir={self.log}", f"log.store_uri={self.uri}"),
                ],
                env=self.env,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def reached(self) -> int:
        """The last step in this machine's metrics."""
        path = self.log / "logs" / "metrics.jsonl"
        if not path.is_file():
            return 0
        lines = [line for line in path.read_text().splitlines() if '"train"' in line]
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def finish(self) -> None:
        assert self.start().wait(PATIENCE_S) == 0, self.output.read_text()[-3000:]

    def interrupt(self, how: str, step: int) -> None:
        """Start, and stop in this way once ``step`` is reached."""
        process = self.start()
        limit = time.monotonic() + PATIENCE_S
        while self.reached() < step and process.poll() is None:
            assert time.monotonic() < limit, self.output.read_text()[-3000:]
            time.sleep(0.01)
        if process.poll() is not None:
            assert process.returncode == 0, self.output.read_text()[-3000:]
            return
        ranks = psutil.Process(process.pid).children(recursive=True)
        if how == "kill a rank":
            random.choice(ranks).kill()
        elif how == "terminate":
            process.send_signal(signal.SIGTERM)
        else:
            process.kill()
            for rank in ranks:
                if rank.is_running():
                    rank.kill()
        process.wait(PATIENCE_S)
        psutil.wait_procs(ranks, timeout=PATIENCE_S)
        if how == "lose the machine":
            shutil.rmtree(self.log)


@pytest.fixture(scope="module")
def make_run(
    diffusion_arguments: list[str],
    embedded_store: EmbeddedStore,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Run]:
    """make_run(name, *more arguments)"""
    arguments = [
        *diffusion_arguments,
        f"trainer.max_steps={STEPS}",
        "trainer.val_check_interval=8",
        "trainer.ema_decay=0.9",
        "optim.lr_scheduler.name=cosine",
        "log.ckpt.every_n_train_steps=3",
        "data.global_batch_size=2",
    ]
    env = {**os.environ, **embedded_store.env, "OMP_NUM_THREADS": "1"}
    root = f"s3://cosmos/resume-{uuid.uuid4().hex[:12]}"

    def make(name: str, *more: str) -> Run:
        folder = tmp_path_factory.mktemp(name)
        return Run([*arguments, *more], env, folder, f"{root}/{folder.name}/")

    return make


@pytest.fixture(scope="module")
def calm_runs(
    make_run: Callable[..., Run],
    trainings: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Run]:
    """The undisturbed runs, to compare with, trained by the same two processes."""
    runs = {"whole": make_run("calm"), "low rank": make_run("calm-low-rank", *LOW_RANK)}
    runs["low rank"].ranks = 1
    with pytest.MonkeyPatch.context() as patch:
        for name, value in runs["whole"].env.items():
            patch.setenv(name, value)
        trainings(
            tmp_path_factory.mktemp("calm-runs"),
            [
                {
                    "world": run.ranks,
                    "folder": str(run.log),
                    "arguments": [*run.arguments, f"log.store_uri={run.uri}"],
                }
                for run in runs.values()
            ],
        )
    return runs


@pytest.fixture(scope="module")
def killed(make_run: Callable[..., Run]) -> Run:
    """A run whose machine died after step 10: saved at 3, 6 and 9, each after the one before."""
    run = make_run("killed")
    run.interrupt("kill the launcher", 10)
    return run


@pytest.fixture
def killed_copy(killed: Run, make_run: Callable[..., Run], shared_client: ObjectStore) -> Run:
    """The same, to be damaged."""
    copy = make_run("copy")
    shutil.copytree(killed.log, copy.log)
    for info in list(shared_client.list(killed.uri)):
        shared_client.put_bytes(
            copy.uri + info.uri.removeprefix(killed.uri), shared_client.get_bytes(info.uri)
        )
    return copy


def trace(store: ObjectStore, run: Run) -> list[tuple[object, ...]]:
    """Everything in the metrics that is not a time."""
    records = map(json.loads, store.get_bytes(run.uri + "metrics.jsonl").decode().splitlines())
    names = ("step", "split", "loss", "grad_norm", "lr", "consumed_samples")
    return [tuple(record.get(name) for name in names) for record in records]


def weights(store: ObjectStore, run: Run, name: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(store.get_bytes(f"{run.uri}{name}/model.safetensors"))


def assert_same(store: ObjectStore, rough: Run, calm: Run, hint: str = "") -> None:
    """Metrics, model and averaged model are the same, bit by bit."""
    assert trace(store, rough) == trace(store, calm), hint
    for name in ("model", "model_ema"):
        expected, found = weights(store, calm, name), weights(store, rough, name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), hint


@pytest.mark.timeout(1200 + 400 * CAMPAIGN)
def test_interrupted_training_equals_the_undisturbed_one_bit_by_bit(
    make_run: Callable[..., Run], calm_runs: dict[str, Run], store: ObjectStore
) -> None:
    rough = make_run("rough")
    seed = int(os.environ.get("COSMOS_RESUME_SEED", "1"))
    random.seed(seed)
    ways = ["kill a rank", "terminate", "lose the machine"]
    for number in range(CAMPAIGN):
        last = rough.reached() if rough.log.is_dir() else 0
        rough.interrupt(ways[number % 3], min(last + random.randint(2, 6), STEPS - 1))
    rough.finish()
    assert_same(store, rough, calm_runs["whole"], f"seed {seed}")
    said = rough.output.read_text()
    assert said.count("resuming from") >= min(CAMPAIGN, 3) - 1
    if CAMPAIGN >= 2:
        assert "stopped by SIGTERM after step" in said


def test_interrupted_low_rank_training_equals_the_undisturbed_one(
    make_run: Callable[..., Run], calm_runs: dict[str, Run], store: ObjectStore, dit_folder: Path
) -> None:
    """A checkpoint holds the factors alone; the base comes from where it came from at first.

    One rank: `test_layouts` resumes such a training on several. The long form also kills it.
    """
    from components.lib.cosmos.model_folder import load_state_dict

    rough = make_run("low-rank", *LOW_RANK)
    rough.ranks = 1
    if CAMPAIGN > 3:
        rough.interrupt("kill a rank", 5)
    rough.interrupt("terminate", 9)
    rough.finish()
    assert_same(store, rough, calm_runs["low rank"])
    base, trained = load_state_dict(dit_folder), weights(store, rough, "model")
    assert any(not torch.equal(base[name], trained[name]) for name in base)
    said = rough.output.read_text()
    assert "resuming from" in said and "stopped by SIGTERM after step" in said


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    killed_copy: Run, calm_runs: dict[str, Run], store: ObjectStore
) -> None:
    rough = killed_copy
    saved = sorted(info.uri for info in store.list(rough.uri + "checkpoints/"))
    newest = [uri for uri in saved if uri.endswith("/manifest.json")][-1].rsplit("/", 1)[0]
    store.put_bytes(next(uri for uri in saved if uri.startswith(f"{newest}/shard")), b"other bytes")
    rough.finish()
    assert_same(store, rough, calm_runs["whole"])
    said = rough.output.read_text()
    assert f"{newest[len(rough.uri) :]}/ cannot be read" in said
    assert "resuming from checkpoints/step-" in said


def test_a_run_of_which_nothing_can_be_read_does_not_begin_anew_by_itself(
    killed_copy: Run, store: ObjectStore
) -> None:
    """Days of training are not given up without asking."""
    run = killed_copy
    before = {info.uri for info in store.list(run.uri)}
    for uri in before:
        if uri.endswith(".safetensors"):
            store.put_bytes(uri, b"other bytes")
    assert run.start().wait(PATIENCE_S) != 0
    said = run.output.read_text()
    assert "can be read" in said and "log.store_uri" in said
    assert {info.uri for info in store.list(run.uri)} == before


@pytest.mark.parametrize("engine", ["plain", "lightning"])
def test_sigterm_exits_with_the_documented_code(
    engine: str, make_run: Callable[..., Run], store: ObjectStore
) -> None:
    run = make_run("alone")
    process = start_alone(run, f"trainer.engine={engine}")
    said = read_until(process, "step 2/")
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    said += process.stderr.read()
    assert process.wait() == 75, said
    assert "Traceback" not in said
    [line] = [line for line in said.splitlines() if "stopped by SIGTERM after step" in line]
    step = int(line.split("after step ")[1].split(";")[0])
    assert step < STEPS
    # every step that was made is in a complete checkpoint
    assert store.stat(f"{run.uri}checkpoints/step-{step:08d}/manifest.json") is not None


def test_sigterm_while_starting_has_nothing_to_save_and_means_the_same(
    make_run: Callable[..., Run], store: ObjectStore
) -> None:
    run = make_run("early")
    process = start_alone(run, "resume.restore_config.path=s3://nowhere/at-all/manifest.json")
    # Linux shows which signals a process handles: bit 14 of SigCgt is SIGTERM.
    while not handles_sigterm(process.pid):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait() == 75, said
    assert "before the first step" in said
    assert not list(store.list(run.uri))


def start_alone(run: Run, *more: str) -> subprocess.Popen[str]:
    """One rank without torchrun, whose exit code is the trainer's own."""
    arguments = [*run.arguments, f"log.log_dir={run.log}", f"log.store_uri={run.uri}", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "components.lib.train", "--yes", *arguments],
        env=run.env,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(process: subprocess.Popen[str], mark: str) -> str:
    """What it says up to a line with ``mark``, or all of it."""
    said = ""
    assert process.stderr is not None
    for line in process.stderr:
        said += line
        if mark in line:
            break
    return said


def handles_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    [caught] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)
