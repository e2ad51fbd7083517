"""NeMo's distributed checkpoints: written here by the layout's own rules, read by the importer."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from components.lib.contract import UserError
from components.lib.cosmos.dit.network import DIT_PRESETS, DiT
from components.lib.cosmos.formats.importing import import_model
from components.lib.cosmos.formats.source_config import write_config
from components.lib.cosmos.model_folder import load_dit, load_state_dict

CONFIG = DIT_PRESETS["tiny"].model_copy(update={"layers": 3})
HEADS, WIDTH, RANK = CONFIG.heads, CONFIG.head_dim, CONFIG.adaln_rank


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Random bf16 weights under official names; also those that start as zero."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: tensor
        if name == "pos_embedder.seq"
        else torch.randn(tensor.shape, generator=generator).bfloat16()
        for name, tensor in DiT(CONFIG, seed=None).state_dict().items()
    }


def to_nemo(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The layout in Megatron's own terms: loops over heads and rows, no reshaping tricks."""
    out = {
        f"module.{name}": tensor
        for name, tensor in weights.items()
        if not name.startswith(("blocks.", "pos_embedder."))
    }
    stacks: dict[str, list[torch.Tensor]] = {}
    for i in range(CONFIG.layers):

        def block(name: str, i: int = i) -> torch.Tensor:
            return weights[f"blocks.block{i}.blocks.{name}.weight"]

        qkv, kv = [], []
        for head in range(HEADS):
            rows = slice(head * WIDTH, (head + 1) * WIDTH)
            qkv += [block(f"0.block.attn.{part}")[rows] for part in ("to_q.0", "to_k.0", "to_v.0")]
            kv += [block(f"1.block.attn.{part}")[rows] for part in ("to_k.0", "to_v.0")]
        hidden = CONFIG.hidden
        second = torch.zeros(9 * hidden, 3 * RANK, dtype=torch.bfloat16)
        for part in range(3):
            second[3 * hidden * part : 3 * hidden * (part + 1), RANK * part : RANK * (part + 1)] = (
                block(f"{part}.adaLN_modulation.2")
            )
        layer = {
            "full_self_attention.linear_qkv": torch.cat(qkv),
            "full_self_attention.linear_proj": block("0.block.attn.to_out.0"),
            "full_self_attention.q_layernorm": block("0.block.attn.to_q.1"),
            "full_self_attention.k_layernorm": block("0.block.attn.to_k.1"),
            "cross_attention.linear_q": block("1.block.attn.to_q.0"),
            "cross_attention.linear_kv": torch.cat(kv),
            "cross_attention.linear_proj": block("1.block.attn.to_out.0"),
            "cross_attention.q_layernorm": block("1.block.attn.to_q.1"),
            "cross_attention.k_layernorm": block("1.block.attn.to_k.1"),
            "mlp.linear_fc1": block("2.block.layer1"),
            "mlp.linear_fc2": block("2.block.layer2"),
            "adaLN.adaLN_modulation.1": torch.cat(
                [block(f"{part}.adaLN_modulation.1") for part in range(3)]
            ),
            "adaLN.adaLN_modulation.2": second,
        }
        for name, tensor in layer.items():
            stacks.setdefault(f"module.decoder.layers.{name}.weight", []).append(tensor)
    out.update({name: torch.stack(layers) for name, layers in stacks.items()})
    out["module.logvar.0.freqs"] = torch.randn(128).bfloat16()
    return out


def write_zarr(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """As Megatron shards it over 2 tensor-parallel ranks: chunks of one layer, rows halved."""
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "zarr"}))
    (folder / "common.pt").write_bytes(b"not read")
    for name, tensor in tensors.items():
        (folder / name).mkdir()
        chunks = [1, *tensor.shape[1:]] if name.startswith("module.decoder") else [*tensor.shape]
        axis = 1 if name.startswith("module.decoder") else 0
        if tensor.dim() > axis + 1:
            chunks[axis] = tensor.shape[axis] // 2
        meta = {
            "chunks": chunks,
            "compressor": None,
            "dtype": "bfloat16",
            "fill_value": None,
            "filters": None,
            "order": "C",
            "shape": list(tensor.shape),
            "zarr_format": 2,
        }
        (folder / name / ".zarray").write_text(json.dumps(meta))
        raw = tensor.contiguous().view(torch.int16).numpy()
        counts = [size // chunk for size, chunk in zip(tensor.shape, chunks, strict=True)]
        for position in np.ndindex(*counts):
            window = tuple(slice(p * c, (p + 1) * c) for p, c in zip(position, chunks, strict=True))
            (folder / name / ".".join(map(str, position))).write_bytes(raw[window].tobytes())


def write_torch_dist(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True)
    dcp.save({**tensors, "step": 7}, checkpoint_id=folder, no_dist=True)
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))


WRITERS = {"zarr": write_zarr, "torch_dist": write_torch_dist}


def repository(folder: Path, backend: str, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, "dit", "tiny-3", CONFIG.model_dump(mode="json"))
    WRITERS[backend](folder / "nemo", tensors)
    return folder


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("backend", ["zarr", "torch_dist"])
def test_both_back_ends_give_the_official_weights_bit_for_bit(
    weights: dict[str, torch.Tensor], tmp_path: Path, backend: str
) -> None:
    source = repository(tmp_path / "repo", backend, to_nemo(weights))
    report = import_model(source, tmp_path / "out", role="dit")
    assert (report.source_format, report.notes) == ("nemo", ())
    imported = load_state_dict(tmp_path / "out")
    assert imported.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(imported[name], tensor), name
    load_dit(tmp_path / "out")


def test_a_dense_adaln_keeps_its_function(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    tensors = to_nemo(weights)
    fused = "module.decoder.layers.adaLN.adaLN_modulation.{}.weight"
    noise = torch.randn(tensors[fused.format(2)].shape) * 0.02
    tensors[fused.format(2)] = (tensors[fused.format(2)] + noise).bfloat16()
    source = repository(tmp_path / "repo", "zarr", tensors)
    report = import_model(source, tmp_path / "out", role="dit")
    assert "not block-diagonal" in report.notes[0]
    model = load_dit(tmp_path / "out", dtype=torch.float32)
    x = torch.randn(2, CONFIG.hidden)
    wanted = x @ tensors[fused.format(1)][1].float().T @ tensors[fused.format(2)][1].float().T
    state = model.state_dict()
    prefix = "blocks.block1.blocks.{}.adaLN_modulation.{}.weight"
    got = [
        x @ state[prefix.format(part, 1)].T @ state[prefix.format(part, 2)].T for part in range(3)
    ]
    torch.testing.assert_close(torch.cat(got, dim=1), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("removed", "named"),
    [
        ("module.decoder.layers.mlp.linear_fc1.weight", "blocks.block0.blocks.2.block.layer1"),
        ("module.final_layer.linear.weight", "final_layer.linear.weight"),
        ("module.decoder.layers.full_self_attention.linear_qkv.weight", "attn.to_q.0.weight"),
        ("module.decoder.layers.adaLN.adaLN_modulation.2.weight", "adaLN_modulation.2.weight"),
    ],
)
def test_a_missing_tensor_is_named(
    weights: dict[str, torch.Tensor], tmp_path: Path, removed: str, named: str
) -> None:
    tensors = to_nemo(weights)
    del tensors[removed]
    source = repository(tmp_path / "repo", "zarr", tensors)
    with pytest.raises(UserError, match=named):
        import_model(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_extra_tensor_is_named(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    tensors = to_nemo(weights)
    tensors["module.decoder.layers.mlp.linear_fc3.weight"] = torch.zeros(3, 4).bfloat16()
    source = repository(tmp_path / "repo", "zarr", tensors)
    with pytest.raises(UserError, match=r"unexpected: decoder\.layers\.mlp\.linear_fc3\.weight"):
        import_model(source, tmp_path / "out")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("backend", ["zarr", "torch_dist"])
@pytest.mark.parametrize("change", ["renamed", "transposed"])
@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("decoder.layers.mlp.linear_fc2.weight", "block.layer2.weight"),
        ("decoder.layers.cross_attention.linear_kv.weight", "1.block.attn.to_k.0.weight"),
        ("x_embedder.proj.1.weight", "x_embedder.proj.1.weight"),
    ],
)
def test_a_renamed_or_transposed_tensor_is_named(
    weights: dict[str, torch.Tensor],
    tmp_path: Path,
    key: str,
    named: str,
    change: str,
    backend: str,
) -> None:
    tensors = to_nemo(weights)
    value = tensors.pop(f"module.{key}")
    if change == "renamed":
        tensors[f"module.{key}s"] = value
    else:
        tensors[f"module.{key}"] = value.transpose(-1, -2).contiguous()
    source = repository(tmp_path / "repo", backend, tensors)
    with pytest.raises(UserError, match=named.replace(".", r"\.")) as caught:
        import_model(source, tmp_path / "out")
    if change == "renamed":
        assert f"{key}s" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_layer_that_is_not_there_is_an_error(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    source = repository(tmp_path / "repo", "zarr", to_nemo(weights))
    chunk = source / "nemo" / "module.decoder.layers.mlp.linear_fc1.weight" / "2.0.0"
    chunk.unlink()
    with pytest.raises(UserError, match=r"linear_fc1\.weight lacks the chunk 2\.0\.0"):
        import_model(source, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("/tmp/should-not-exist-cosmos"),))


def test_metadata_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "nemo"
    folder.mkdir()
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    (folder / ".metadata").write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(UserError, match="it was not loaded"):
        import_model(tmp_path, tmp_path / "out")
    assert not Path("/tmp/should-not-exist-cosmos").exists()
