"""A user's mistakes end in one clear sentence, a non-zero exit, and nothing half-written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)

CLI = str(Path(sys.executable).parent / "cosmos-pipelines")


def run_tokenizer(
    workspace: Path, videos: Path, *extra: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    where = ["--videos", str(videos), "--workspace", str(workspace)]
    return subprocess.run(
        [CLI, "run", "tokenizer", "--local", *where, *extra],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, **(env or {})},
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mistakes")


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode not in (0, None)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def test_truncated_video(workspace: Path, clips: dict[str, Path], tmp_path: Path) -> None:
    data = clips["bigbuckbunny"].read_bytes()
    (tmp_path / "cut short.mp4").write_bytes(data[: len(data) // 3])
    assert "cut short.mp4" in sentence(run_tokenizer(workspace, tmp_path))


def test_text_file_named_mp4(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("this is no video\n" * 100)
    assert "notes.mp4" in sentence(run_tokenizer(workspace, tmp_path))


def test_empty_folder(workspace: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in sentence(run_tokenizer(workspace, empty))


def test_a_path_with_python3_in_it_is_left_as_it_is(workspace: Path, tmp_path: Path) -> None:
    missing = tmp_path / "lib" / "python3.11" / "drive.mp4"
    assert str(missing) in sentence(run_tokenizer(workspace, missing))


def test_wrong_secret(
    workspace: Path, clips: dict[str, Path], store_env: dict[str, str], storage_root: str
) -> None:
    secret = "not-the-secret-at-all"
    done = run_tokenizer(
        workspace,
        clips["bikes"],
        "--external-store",
        "-p",
        f"storage_root={storage_root}",
        env={**store_env, "AWS_SECRET_ACCESS_KEY": secret},
    )
    text = sentence(done)
    assert "AWS_SECRET_ACCESS_KEY" in text
    assert secret not in done.stdout + done.stderr


def test_missing_store_settings(workspace: Path, clips: dict[str, Path]) -> None:
    env = dict.fromkeys(("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID"), "")
    done = run_tokenizer(workspace, clips["bikes"], "--external-store", env=env)
    assert "AWS_ENDPOINT_URL" in sentence(done)
