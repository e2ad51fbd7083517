"""import -> export -> import is bit-exact for every form; exports load where they should.

An export, and a process that cannot import this project, take seconds: several tests look at each.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import chain, product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from components.lib.contract import UserError
from components.lib.cosmos.conditions import Conditions
from components.lib.cosmos.formats import names, tiny
from components.lib.cosmos.formats.exporting import Dtype, Form, export_model
from components.lib.cosmos.formats.importing import import_model
from components.lib.cosmos.model_folder import load_dit, load_state_dict, load_tokenizer

FORMS: list[tuple[str, Form]] = [
    (tiny.DIT_FOLDER, "canonical"),
    (tiny.DIT_FOLDER, "model.pt"),
    (tiny.DIT_FOLDER, "diffusers"),
    (tiny.CV_FOLDER, "canonical"),
    (tiny.CV_FOLDER, "diffusers"),
    (tiny.CV_FOLDER, "jit"),
    (tiny.DV_FOLDER, "jit"),
]


Exports = Callable[..., Path]


@pytest.fixture(scope="module")
def exported(canonical: Path, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """exported(name, form, dtype) -> the folder of that export, made once."""

    @cache
    def export(name: str, form: Form, dtype: Dtype = "keep") -> Path:
        folder = tmp_path_factory.mktemp("exported") / "out"
        export_model(canonical / name, folder, form, dtype=dtype)
        return folder

    return export


@pytest.fixture(scope="module")
def returned(exported: Exports, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """returned(name, form) -> the folder of that export imported again, made once."""

    @cache
    def back(name: str, form: Form) -> Path:
        folder = tmp_path_factory.mktemp("returned") / "back"
        import_model(exported(name, form), folder)
        return folder

    return back


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert torch.equal(tensor, b[name]), name


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_round_trip_is_bit_exact(canonical: Path, returned: Exports, name: str, form: Form) -> None:
    assert_equal(load_state_dict(canonical / name), load_state_dict(returned(name, form)))


@pytest.mark.parametrize(
    ("name", "form"), [(tiny.DIT_FOLDER, "diffusers"), (tiny.CV_FOLDER, "jit")]
)
def test_the_config_survives_a_round_trip(
    canonical: Path, returned: Exports, name: str, form: Form
) -> None:
    load = load_dit if name == tiny.DIT_FOLDER else load_tokenizer
    assert load(returned(name, form)).config == load(canonical / name).config


def nearest(mask: torch.Tensor, size: list[int], interpolation: object) -> torch.Tensor:
    """What torchvision's resize does here; torchvision does not load beside the CPU torch."""
    return torch.nn.functional.interpolate(mask, size=size, mode="nearest")


def test_an_exported_dit_gives_diffusers_the_same_outputs(
    canonical: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import CosmosTransformer3DModel
    from diffusers.models.transformers import transformer_cosmos
    from safetensors.torch import load_file

    resize = SimpleNamespace(resize=nearest)
    modes = SimpleNamespace(NEAREST="nearest")
    stand_in = SimpleNamespace(functional=resize, InterpolationMode=modes)
    monkeypatch.setattr(transformer_cosmos, "transforms", stand_in, raising=False)

    export_model(canonical / tiny.DIT_FOLDER, tmp_path / "out", "diffusers", dtype="float32")
    if importlib.util.find_spec("accelerate"):
        theirs, info = CosmosTransformer3DModel.from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    else:  # diffusers refuses from_pretrained of this one class where accelerate is not installed
        theirs = CosmosTransformer3DModel.from_config(
            CosmosTransformer3DModel.load_config(tmp_path / "out")
        )
        weights = load_file(str(tmp_path / "out" / "diffusion_pytorch_model.safetensors"))
        theirs.load_state_dict(weights, strict=True)
    ours = load_dit(canonical / tiny.DIT_FOLDER, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 3, 8, 12, generator=generator)
    noise = torch.tensor([0.3])
    text = torch.randn(1, 32, 64, generator=generator)
    mask = torch.zeros(1, 1, 64, 96)
    with torch.no_grad():
        a = ours(x, noise, Conditions(text, torch.tensor([24.0]), mask))
        b = theirs(x, noise, text, fps=24, padding_mask=mask).sample
    assert a.abs().max() > 0.01
    assert (a - b).abs().max() < 1e-4


def test_an_exported_tokenizer_gives_diffusers_the_same_outputs(
    canonical: Path, tmp_path: Path
) -> None:
    from diffusers import AutoencoderKLCosmos

    export_model(canonical / tiny.CV_FOLDER, tmp_path / "out", "diffusers", dtype="float32")
    theirs, info = AutoencoderKLCosmos.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = load_tokenizer(canonical / tiny.CV_FOLDER, dtype=torch.float32)
    video = tiny.smooth_video(17, 64, seed=3)
    with torch.no_grad():
        latent = ours.encode(video)
        assert (latent - theirs.encode(video).latent_dist.sample()).abs().max() < 1e-4
        assert (ours.decode(latent) - theirs.decode(latent).sample).abs().max() < 1e-4
    mean, std = ours.latent_statistics
    assert torch.equal(torch.tensor(theirs.config.latents_mean), mean.flatten())
    assert torch.equal(torch.tensor(theirs.config.latents_std), std.flatten())


JIT_PROBE = """
import sys, torch
assert not any("site-packages" not in p and "main" in p for p in sys.path)
try:
    import components
    raise SystemExit("the project is importable")
except ModuleNotFoundError:
    pass
def float32(archives):
    results = {}
    for shape in ((1, 3, 17, 64, 64), (2, 3, 9, 48, 80), (1, 3, 1, 32, 48), (1, 3, 33, 32, 32)):
        generator = torch.Generator().manual_seed(sum(shape))
        video = torch.rand(shape, generator=generator) * 2 - 1
        encoded = archives["encoder"](video)
        assert isinstance(encoded, tuple)
        code = encoded[0]
        results[shape] = (code, archives["decoder"](code), archives["autoencoder"](video))
    return results
def bfloat16(archives):
    generator = torch.Generator().manual_seed(0)
    video = (torch.rand((1, 3, 17, 64, 64), generator=generator) * 2 - 1).bfloat16()
    code = archives["encoder"](video)[0]
    return video, code, archives["decoder"](code), archives["autoencoder"](video)
for dtype, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    names = ("encoder", "decoder", "autoencoder")
    with torch.no_grad():
        found = globals()[dtype]({n: torch.jit.load(f"{folder}/{n}.jit") for n in names})
    torch.save(found, folder + ".pt")
"""


@pytest.fixture(scope="module")
def archives_elsewhere(exported: Exports, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """archives_elsewhere(name, dtype) -> what the archives gave in a process without this project,
    which runs those of both tokenizers in both dtypes."""
    kinds = product((tiny.CV_FOLDER, tiny.DV_FOLDER), ("float32", "bfloat16"))
    arguments = [[dtype, str(exported(name, "jit", dtype))] for name, dtype in kinds]
    done = run_elsewhere(JIT_PROBE, tmp_path_factory.mktemp("probe"), *chain(*arguments))
    assert done.returncode == 0, done.stderr

    def found(name: str, dtype: Dtype) -> Path:
        return exported(name, "jit", dtype).with_suffix(".pt")

    return found


@pytest.mark.parametrize("name", [tiny.CV_FOLDER, tiny.DV_FOLDER])
def test_archives_work_without_this_project_in_sizes_of_any_kind(
    canonical: Path, archives_elsewhere: Exports, name: str
) -> None:
    ours = load_tokenizer(canonical / name, dtype=torch.float32)
    for shape, (code, decoded, rebuilt) in torch.load(archives_elsewhere(name, "float32")).items():
        video = torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) * 2 - 1
        with torch.no_grad():
            if ours.discrete:
                wanted = ours.encode_indices(video)
                assert code.dtype == torch.int32
                assert (
                    code.long() != wanted
                ).float().mean() < 0.01  # a tie may round the other way
                again = ours.decode_indices(code.long())
            else:
                assert (code - ours.encode(video)).abs().max() < 1e-4
                again = ours.decode(code)
        assert decoded.shape == rebuilt.shape == shape
        assert (decoded - again).abs().max() < 1e-4
        assert (decoded - rebuilt).abs().max() < 1e-4


@pytest.mark.parametrize("name", [tiny.CV_FOLDER, tiny.DV_FOLDER])
def test_archives_in_bf16_work_as_the_published_ones_do(
    canonical: Path, archives_elsewhere: Exports, name: str
) -> None:
    video, code, decoded, rebuilt = torch.load(archives_elsewhere(name, "bfloat16"))
    assert decoded.dtype == rebuilt.dtype == torch.bfloat16
    assert decoded.shape == video.shape
    ours = load_tokenizer(canonical / name, dtype=torch.float32)
    with torch.no_grad():
        wanted = ours.reconstruct(video.float())
        again = ours.decode_indices(code.long()) if ours.discrete else ours.decode(code.float())
    scale = wanted.abs().mean()
    assert (decoded.float() - again).abs().mean() < 0.05 * scale
    if not ours.discrete:  # in bf16 some codes round the other way
        assert (rebuilt.float() - wanted).abs().mean() < 0.05 * scale


DIFFUSERS_PROBE = """
import sys, torch
try:
    import components
    raise SystemExit("the project is importable")
except ModuleNotFoundError:
    pass
import diffusers
for class_name, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    model, info = getattr(diffusers, class_name).from_pretrained(folder, output_loading_info=True)
    bad = [info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")]
    assert not any(bad), info
    torch.save(dict(model.state_dict()), folder + ".pt")
"""
CLASSES = {
    tiny.DIT_FOLDER: "CosmosTransformer3DModel",
    tiny.CV_FOLDER: "AutoencoderKLCosmos",
}


@pytest.fixture(scope="module")
def diffusers_elsewhere(exported: Exports, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """diffusers_elsewhere(name) -> the weights that diffusers read in a process without this."""
    folders = {name: exported(name, "diffusers") for name in CLASSES}
    arguments = [[CLASSES[name], str(folder)] for name, folder in folders.items()]
    done = run_elsewhere(DIFFUSERS_PROBE, tmp_path_factory.mktemp("probe"), *chain(*arguments))
    assert done.returncode == 0, done.stderr
    return lambda name: folders[name].with_suffix(".pt")


@pytest.mark.parametrize("name", CLASSES)
def test_diffusers_loads_an_export_where_this_project_is_not_installed(
    canonical: Path, diffusers_elsewhere: Exports, name: str
) -> None:
    rename = names.dit_to_diffusers if name == tiny.DIT_FOLDER else names.tokenizer_to_diffusers
    theirs = torch.load(diffusers_elsewhere(name), weights_only=True)
    ours = {
        renamed: value
        for key, value in load_state_dict(canonical / name).items()
        if not key.startswith("latents_") and (renamed := rename(key)) is not None
    }
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value.float(), theirs[key].float()) for key, value in ours.items())


def run_elsewhere(script: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script in a process that can import torch and diffusers but not this."""
    site = Path(torch.__file__).parent.parent
    # -S keeps the editable install's path file from being read; torch itself is on PYTHONPATH.
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    path = folder / "probe.py"
    path.write_text(script)
    command = [sys.executable, "-S", str(path), *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_is_rounded_once_and_only_when_asked(
    canonical: Path, tmp_path: Path, dtype: Dtype
) -> None:
    export_model(canonical / tiny.DIT_FOLDER, tmp_path / "a", "canonical", dtype=dtype)
    before = load_state_dict(canonical / tiny.DIT_FOLDER)
    for name, tensor in load_state_dict(tmp_path / "a").items():
        wanted = before[name].dtype if name == "pos_embedder.seq" else getattr(torch, dtype)
        assert tensor.dtype == wanted
        assert torch.equal(tensor, before[name].to(wanted))


@pytest.mark.parametrize(
    ("name", "form", "reason"),
    [
        (tiny.DIT_FOLDER, "jit", "is a dit, which has no form 'jit'. Use --to canonical"),
        (tiny.CV_FOLDER, "model.pt", "is a tokenizer, which has no form 'model.pt'"),
        (tiny.DV_FOLDER, "diffusers", "diffusers has no discrete Cosmos tokenizer"),
    ],
)
def test_a_form_that_cannot_hold_the_network_leaves_nothing(
    canonical: Path, tmp_path: Path, name: str, form: Form, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        export_model(canonical / name, tmp_path / "out", form)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_not_written_to(canonical: Path, tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(UserError, match="is not an empty folder"):
        export_model(canonical / tiny.DIT_FOLDER, tmp_path, "canonical")
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]


def test_the_card_says_what_is_known(canonical: Path, tmp_path: Path) -> None:
    export_model(canonical / tiny.DIT_FOLDER, tmp_path / "out", "diffusers", name="night drives")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# night drives" in card
    assert "1,217,664 parameters" in card
    assert "trained on" in card and "not recorded" in card
    assert "CosmosTransformer3DModel.from_pretrained" in card
