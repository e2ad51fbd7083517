"""The command line teaches, answers at once, and ends a user's mistake with one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli import COMMANDS

CLI = str(Path(sys.executable).parent / "cosmos-pipelines")
HEAVY = ("torch", "kfp", "nemo", "lightning", "transformers", "diffusers", "av", "kubernetes")


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CLI, *arguments], capture_output=True, text=True, timeout=120, env=env, check=False
    )


def test_help_lists_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_of_a_command_needs_no_heavy_import(name: str) -> None:
    script = (
        f"import sys; sys.argv = ['cosmos-pipelines', {name!r}, '--help']\n"
        "from pipelines.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"loaded = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "difusion", "--local", "--videos", "."), "no pipeline 'difusion'"),
        (("run", "diffusion", "--local", "--videos", "/nowhere"), "no file or folder /nowhere"),
        (("run", "diffusion", "--videos", "."), "--local"),
        (("stage", "shardng"), "no stage 'shardng'"),
        (("stage", "tar_sharding", "--config", "/nowhere.yaml"), "/nowhere.yaml"),
    ],
)
def test_mistake_ends_in_one_sentence(arguments: tuple[str, ...], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_fields_of_a_stage_are_listed_with_their_meaning() -> None:
    done = run("stage", "latent_encoding", "--fields")
    assert done.returncode == 0
    assert "chunks_per_video" in done.stdout
