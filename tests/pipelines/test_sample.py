"""`cosmos-pipelines sample` from model folders to an MP4 that plays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from components.lib.contract import UserError
from components.lib.cosmos.dit.network import DIT_PRESETS, DiT
from components.lib.cosmos.formats.tiny_text import write_tiny_t5
from components.lib.cosmos.model_folder import save_model_folder
from components.lib.cosmos.tokenizer.network import TOKENIZER_PRESETS, CosmosTokenizer
from components.lib.manifest import FileEntry, Manifest
from components.lib.store import ObjectStore
from components.lib.video.frames import read_clip
from components.lib.video.probe import probe
from pipelines.cli import app
from pipelines.commands.sample import choose_device

SIZE = ["--frames", "9", "--height", "64", "--width", "96", "--fps", "12", "--steps", "2"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tokenizer = CosmosTokenizer(TOKENIZER_PRESETS["tiny-cv"])
    save_model_folder(
        folder / "tokenizer",
        "tokenizer",
        "tiny-cv",
        tokenizer.config.model_dump(mode="json"),
        tokenizer.state_dict(),
    )
    dit = DiT(DIT_PRESETS["tiny"])
    save_model_folder(
        folder / "dit", "dit", "tiny", dit.config.model_dump(mode="json"), dit.state_dict()
    )
    write_tiny_t5(folder / "t5", 0)
    embedding = torch.zeros(512, 64, dtype=torch.bfloat16)
    save_file({"embedding": embedding}, folder / "prompt.safetensors")
    return folder


def sample(models: Path, output: Path, *options: str) -> None:
    arguments = [
        "sample",
        "a rainy road",
        *("--model", str(models / "dit"), "--tokenizer", str(models / "tokenizer")),
        *("--output", str(output), *SIZE, *options),
    ]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert str(output) in result.output


def test_prompt_becomes_a_video_with_the_asked_frames_size_and_rate(
    models: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "road.mp4"
    sample(models, output, "--t5", str(models / "t5"))
    video = probe(output)
    assert (video.frames, video.width, video.height) == (9, 96, 64)
    assert float(video.fps) == pytest.approx(12)


def test_the_seed_decides_the_video(models: Path, tmp_path: Path) -> None:
    stored = ("--embedding", str(models / "prompt.safetensors"))
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        sample(models, tmp_path / f"{name}.mp4", *stored, "--seed", seed, "--solver", "euler")
    a, b, c = (read_clip(tmp_path / f"{name}.mp4", count=9).astype(float) for name in "abc")
    # the frames are equal to the bit; the encoder may differ in its last choices
    assert abs(a - b).mean() < 0.2 * abs(a - c).mean()


def test_models_may_be_manifests(
    models: Path,
    tmp_path: Path,
    store: ObjectStore,
    storage_root: str,
    store_env: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The averaged weights of a training run differ from its last ones, and so do the videos."""
    for name, value in store_env.items():
        monkeypatch.setenv(name, value)
    uri = f"{storage_root}/training/1/"
    other = DiT(DIT_PRESETS["tiny"], seed=9)
    save_model_folder(
        models / "ema", "dit", "tiny", other.config.model_dump(mode="json"), other.state_dict()
    )
    files = []
    for prefix, folder in (("model", models / "dit"), ("model_ema", models / "ema")):
        for path in sorted(folder.iterdir()):
            info = store.put_file(path, f"{uri}{prefix}/{path.name}")
            entry = {"path": f"{prefix}/{path.name}", "bytes": info.bytes, "sha256": info.sha256}
            files.append(FileEntry.model_validate(entry))
    manifest = Manifest(
        kind="training-run",
        stage="training",
        stage_version="1",
        address="1",
        uri=uri,
        files=tuple(files),
    )
    store.put_bytes(f"{uri}manifest.json", manifest.model_dump_json().encode())
    options = ["--embedding", str(models / "prompt.safetensors"), "--model", f"{uri}manifest.json"]
    sample(models, tmp_path / "folder.mp4", *options[:2])
    sample(models, tmp_path / "last.mp4", *options)
    sample(models, tmp_path / "mean.mp4", *options, "--ema")
    first, last, mean = (
        read_clip(tmp_path / f"{name}.mp4", count=9).astype(float)
        for name in ("folder", "last", "mean")
    )
    assert abs(first - last).mean() < 0.2 * abs(first - mean).mean()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "Give either --t5"),
        (("--embedding", "none.safetensors"), "not a prompt embedding"),
        (("--embedding", "PROMPT", "--frames", "10"), "8k \\+ 1"),
        (("--embedding", "PROMPT", "--steps", "0"), "--steps"),
        (("--embedding", "PROMPT", "--dtype", "int8"), "--dtype must be"),
        (("--embedding", "PROMPT", "--model", "TOKENIZER"), "'dit' is needed"),
    ],
)
def test_mistakes_are_answered_with_a_sentence(
    models: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    places = {"PROMPT": models / "prompt.safetensors", "TOKENIZER": models / "tokenizer"}
    given = [str(places.get(option, option)) for option in options]
    with pytest.raises(UserError, match=words):
        sample(models, tmp_path / "x.mp4", *given)
    assert not (tmp_path / "x.mp4").exists()


def test_device_and_dtype_follow_the_machine() -> None:
    if torch.cuda.is_available():
        assert choose_device("auto", "auto") == ("cuda", torch.bfloat16)
    else:
        assert choose_device("auto", "auto") == ("cpu", torch.float32)
        with pytest.raises(UserError, match="no CUDA device"):
            choose_device("cuda:1", "auto")
    assert choose_device("cpu", "bfloat16") == ("cpu", torch.bfloat16)
