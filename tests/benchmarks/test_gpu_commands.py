"""The GPU measurements run, and count rightly, where there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from components.lib.cosmos.dit.network import DIT_PRESETS
from components.lib.store import ObjectStore
from tests.benchmarks.gpu.agreement import compare
from tests.benchmarks.gpu.common import covered, kind_of
from tests.benchmarks.gpu.dit_step import fitting_layers, parse_case
from tests.benchmarks.gpu.layouts import Cut, all_cuts, parse_cut
from tests.benchmarks.gpu.s3_memory import memory_store


def test_overlapping_spans_are_counted_once() -> None:
    assert covered([(0, 2), (1, 3), (5, 6), (5.2, 5.4)]) == pytest.approx(4.0)
    assert covered([]) == 0.0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16", "attention"),
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_NNT", "matrix products"),
        ("ncclDevKernel_AllGather_RING_LL(ncclDevComm*)", "communication"),
        (
            "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdam>",
            "optimizer",
        ),
        ("triton_poi_fused_add_gelu_3", "elementwise"),
        ("Memcpy DtoH (Device -> Pinned)", "copies"),
        ("aten::mm", "matrix products"),
    ],
)
def test_kernels_are_told_apart_by_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_all_layouts_of_eight_gpus() -> None:
    names = [cut.name for cut in all_cuts(8)]
    assert names == ["TP8", "FSDP8", "TP2xFSDP4", "TP4xFSDP2"]
    assert parse_cut("TP2xFSDP4", 8) == Cut(tp=2, dp=4)
    with pytest.raises(ValueError, match="no layout of 2 processes"):
        parse_cut("TP8", 2)


def test_layers_that_fit_a_gpu() -> None:
    # By hand for 14B on an H200, GiB: a layer's 393,216,512 weights and moments hold 4.39, its
    # gradients 1.46, more than the 2.2 activations of 0.537 that it keeps; beside the layers
    # 111,354,880 x 16 = 1.66, gathered 2.20, at work 8 x 0.537 = 4.30.
    # (0.92 x 139.8 - 8.16) / 5.85 = 20.6
    assert fitting_layers(DIT_PRESETS["14B"], total_bytes=139.8 * 2**30) == 20
    assert fitting_layers(DIT_PRESETS["7B"], total_bytes=1e15) == 28


def test_a_case_names_geometry_and_settings() -> None:
    geometry, config = parse_case("7B:4:recompute=light:attention=flash:lora=16")
    assert (geometry.layers, geometry.hidden) == (4, 4096)
    assert (config.trainer.recompute, config.trainer.attention) == ("light", "flash")
    assert config.model.lora.rank == 16


def test_the_stand_in_store_keeps_objects_as_a_store_does(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(40 * 2**20))  # more than a part: a multipart upload
    with memory_store() as store:
        store.ensure_bucket("cosmos")
        _round_trip(store, large, tmp_path / "back")


def _round_trip(store: ObjectStore, large: Path, back: Path) -> None:
    store.put_bytes("s3://cosmos/a b/ä.json", b"{}", meta={"n": 1})
    info = store.stat("s3://cosmos/a b/ä.json")
    assert info is not None and (info.bytes, info.meta) == (2, {"n": 1})
    assert store.get_bytes("s3://cosmos/a b/ä.json") == b"{}"
    stored = store.put_file(large, "s3://cosmos/large")
    store.get_file("s3://cosmos/large", back, sha256=stored.sha256)
    assert back.read_bytes() == large.read_bytes()
    assert store.stat("s3://cosmos/missing") is None
    assert [i.uri for i in store.list("s3://cosmos/a")] == ["s3://cosmos/a b/ä.json"]
    store.delete("s3://cosmos/large")
    assert store.stat("s3://cosmos/large") is None


def layouts(folder: Path, *arguments: str) -> tuple[str, list[dict[str, Any]]]:
    """Output and records of the layouts command on CPU ranks."""
    command = [
        *(sys.executable, "-m", "tests.benchmarks.gpu.layouts", "small", "--layers", "1"),
        *("--latent", "16x2x8x8", "--baseline-layers", "0", "--out", str(folder)),
    ]
    done = subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OUT": "", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    lines = (folder / "layouts.jsonl").read_text().splitlines()
    return done.stdout, [json.loads(line) for line in lines]


def test_the_layouts_command_measures_saves_and_restores(tmp_path: Path) -> None:
    arguments = ("--processes", "2", "--layouts", "TP2", "--restore-layers", "1", "--checkpoint")
    text, records = layouts(tmp_path, *arguments, "--deadline", "450")
    _, speed, saved, restored = records
    assert "TP2\tagrees with the CPU in fp32" in text
    assert len(speed["seconds"]) == 3
    assert speed["checkpoint_gib"] > 0
    assert {"attention", "matrix products", "communication"} <= set(speed["breakdown"])
    assert restored["step"] == saved["step"] == 3
    assert restored["next_loss"] == pytest.approx(saved["next_loss"], rel=5e-3)
    assert "restore in 1 GPU" in text and "DIFFERENT" not in text


def test_a_layout_that_computes_something_else_is_named() -> None:
    wanted = [[2.0, 5.0], [1.0, 4.0]]
    near = [[2.0, 5.05], [1.004, 4.0]]
    assert compare(near, wanted) == (
        True,
        "agrees with the CPU in fp32: loss 4.0e-03, gradient norm 1.0e-02",
    )
    for far in ([[2.0, 5.0], [1.01, 4.0]], [[2.0, 2.5], [1.0, 4.0]]):
        same, sentence = compare(far, wanted)
        assert not same
        assert sentence.startswith("DISAGREES")


def test_the_layouts_command_ends_at_its_deadline(tmp_path: Path) -> None:
    # 56,320 tokens on two CPU cores: no step ends before the deadline
    arguments = ("--processes", "2", "--restore-layers", "0", "--latent", "16x16x88x160")
    options = ("--deadline", "20", "--least", "1", "--no-agreement")
    text, records = layouts(tmp_path, *arguments, *options)
    assert [record["layout"] for record in records] == ["TP2", "FSDP2"]
    assert "at the deadline" in str(records[0]["error"])
    assert records[1]["error"] == "not begun: no time left"
    assert "no time left" in text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_beside_training_on_a_gpu_hold_what_was_there() -> None:
    from components.lib.train.memory.host_copies import HostCopies

    copies = HostCopies(torch.device("cuda", 0))
    weight = torch.randn(1 << 26, device="cuda")
    expected = weight.cpu()
    copies.begin()
    taken = copies.copy_out("w", weight)
    copies.end()
    copies.fence()
    weight.zero_()  # as the optimizer would: queued behind the copy
    copies.wait()
    assert torch.equal(taken, expected)
