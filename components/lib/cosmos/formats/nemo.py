"""NeMo's distributed checkpoints (`nemo/`): Megatron's names and layout to the official ones.

Both storage back ends are read: `zarr` (a directory per tensor) and `torch_dist` (torch's
distributed checkpoint). Either stacks the layers of a kind on dimension 0. Differences undone:

* `linear_qkv` and `linear_kv` hold the heads' rows interleaved (per head its q, k, v).
* One adaLN of rank 3R serves the three sub-layers: its first matrix stacks theirs, its second has
  one block per sub-layer on the diagonal. A checkpoint trained in NeMo may have filled the rest;
  then every sub-layer keeps the whole rank 3R, which is the same function with larger matrices.

The interleaving and the order of the sub-layers follow Megatron's conventions; NVIDIA's converter
was not available to compare with. Reading is lazy: a layer is read when it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from components.lib.contract import UserError
from components.lib.cosmos.formats.source_config import read_json

if TYPE_CHECKING:
    import torch

PREFIX = "module."
LAYERS = "decoder.layers."
_ADALN = "adaLN.adaLN_modulation."
_SKIPPED = re.compile(r"(_extra_state|^logvar\.|^pos_embedder\.|^optimizer\.|^rng_state)")
# Megatron's name within a layer -> official names within a block, with how many parts a head's
# rows are split into.
_PLAIN = {
    "full_self_attention.linear_proj": "blocks.0.block.attn.to_out.0",
    "full_self_attention.q_layernorm": "blocks.0.block.attn.to_q.1",
    "full_self_attention.k_layernorm": "blocks.0.block.attn.to_k.1",
    "cross_attention.linear_q": "blocks.1.block.attn.to_q.0",
    "cross_attention.linear_proj": "blocks.1.block.attn.to_out.0",
    "cross_attention.q_layernorm": "blocks.1.block.attn.to_q.1",
    "cross_attention.k_layernorm": "blocks.1.block.attn.to_k.1",
    "mlp.linear_fc1": "blocks.2.block.layer1",
    "mlp.linear_fc2": "blocks.2.block.layer2",
}
_INTERLEAVED = {
    "full_self_attention.linear_qkv": (0, ("to_q.0", "to_k.0", "to_v.0")),
    "cross_attention.linear_kv": (1, ("to_k.0", "to_v.0")),
}


class StoredTensor(Protocol):
    """A tensor in a distributed checkpoint."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its whole shape, layers stacked on dimension 0."""

    def read(self, first: tuple[int, int] | None = None) -> torch.Tensor:
        """All of it, or a range of dimension 0."""


class Lazy:
    """A tensor that is computed when used; ``shape`` is known before."""

    def __init__(self, shape: tuple[int, ...], make: Callable[[], torch.Tensor]) -> None:
        self.shape, self.make = shape, make


class LazyWeights(Mapping[str, "torch.Tensor"]):
    """Official name -> tensor, computed at each access; `shapes` without computing."""

    def __init__(self, entries: Mapping[str, Lazy]) -> None:
        self.entries = entries

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.entries[key].make()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def nemo_folder(folder: Path) -> Path | None:
    """The folder with Megatron's metadata, in ``folder`` or where NeMo puts it below."""
    for place in (folder, folder / "nemo", folder / "weights", folder / "nemo" / "weights"):
        backend = read_json(place / "metadata.json").get("sharded_backend")
        if backend or (place / ".metadata").is_file():
            return place
    return None


def read_nemo(folder: Path) -> tuple[LazyWeights, int, list[str]]:
    """Official weights (lazy), the adaLN rank they need, and notes for the reader."""
    stored = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in _stored_tensors(folder).items()
        if not _SKIPPED.search(name.removeprefix(PREFIX))
    }
    if not stored:
        raise UserError(f"{folder} holds no tensors of a network.")
    entries: dict[str, Lazy] = {}
    for name, tensor in stored.items():
        if not name.startswith(LAYERS):
            entries[name] = Lazy(tensor.shape, tensor.read)
    layered = {
        name[len(LAYERS) :]: tensor for name, tensor in stored.items() if name.startswith(LAYERS)
    }
    layers = _layer_count(layered, folder)
    rank, notes = _fill_adaln(entries, layered, layers, folder)
    head = layered.get("full_self_attention.q_layernorm.weight")
    for name, tensor in layered.items():
        stem = name.removesuffix(".weight")
        if stem in _PLAIN:
            for i in range(layers):
                target = f"blocks.block{i}.{_PLAIN[stem]}.weight"
                entries[target] = Lazy(tensor.shape[1:], _layer(tensor, i))
        elif stem in _INTERLEAVED and head is not None:
            part, targets = _INTERLEAVED[stem]
            _split_heads(entries, tensor, layers, part, targets, head.shape[1])
        elif not name.startswith(_ADALN):
            # Kept under its own name: the strict check then reports it as unexpected.
            entries[LAYERS + name] = Lazy(tensor.shape, tensor.read)
    return LazyWeights(entries), rank, notes


def _stored_tensors(folder: Path) -> Mapping[str, StoredTensor]:
    backend = str(read_json(folder / "metadata.json").get("sharded_backend", ""))
    if backend == "zarr" or not (folder / ".metadata").is_file():
        from components.lib.cosmos.formats.zarr import METADATA_NAME, ZarrArray

        folders = sorted(path.parent for path in folder.glob(f"*/{METADATA_NAME}"))
        return {path.name: ZarrArray(path) for path in folders}
    from components.lib.cosmos.formats.torch_dist import read_torch_dist

    return read_torch_dist(folder)


def _layer_count(layered: Mapping[str, StoredTensor], folder: Path) -> int:
    counts = {tensor.shape[0] for tensor in layered.values() if tensor.shape}
    if len(counts) != 1:
        raise UserError(
            f"{folder} does not stack its layers alike: dimension 0 of {LAYERS}* has the sizes "
            f"{sorted(counts)}."
        )
    return counts.pop()


def _layer(tensor: StoredTensor, i: int) -> Callable[[], torch.Tensor]:
    return lambda: tensor.read((i, i + 1))[0]


def _split_heads(
    entries: dict[str, Lazy],
    tensor: StoredTensor,
    layers: int,
    part: int,
    targets: tuple[str, ...],
    head_dim: int,
) -> None:
    """[heads · parts · head_dim, in] per layer, head by head, to one matrix per part."""
    rows, columns = tensor.shape[1:]
    count = len(targets)
    for i in range(layers):
        for j, target in enumerate(targets):

            def make(i: int = i, j: int = j) -> torch.Tensor:
                whole = tensor.read((i, i + 1))[0]
                heads = whole.reshape(-1, count, head_dim, columns)
                return heads[:, j].reshape(rows // count, columns)

            name = f"blocks.block{i}.blocks.{part}.block.attn.{target}.weight"
            entries[name] = Lazy((rows // count, columns), make)


def _fill_adaln(
    entries: dict[str, Lazy], layered: Mapping[str, StoredTensor], layers: int, folder: Path
) -> tuple[int, list[str]]:
    """Split the fused adaLN into three; returns the rank of each and notes."""
    names = [f"{_ADALN}{number}.weight" for number in (1, 2)]
    if lacking := [name for name in names if name not in layered]:
        raise UserError(f"{folder} lacks {LAYERS}{lacking[0]}; nothing was loaded.")
    down, up = (layered[name] for name in names)
    fused, hidden = down.shape[1:]
    rows = up.shape[1]
    if fused % 3 or rows % 9 or up.shape[2] != fused:
        raise UserError(
            f"{folder}: {names[0]} {list(down.shape)} and {names[1]} {list(up.shape)} are not the "
            "three modulations of a layer in one."
        )
    diagonal = all(_is_block_diagonal(up.read((i, i + 1))[0], fused) for i in range(layers))
    rank = fused // 3 if diagonal else fused
    for i in range(layers):
        for part in range(3):
            down_name = f"blocks.block{i}.blocks.{part}.adaLN_modulation.1.weight"
            up_name = f"blocks.block{i}.blocks.{part}.adaLN_modulation.2.weight"

            def make_down(i: int = i, part: int = part) -> torch.Tensor:
                whole = down.read((i, i + 1))[0]
                return whole[part * rank : (part + 1) * rank] if diagonal else whole

            def make_up(i: int = i, part: int = part) -> torch.Tensor:
                mine = up.read((i, i + 1))[0].chunk(3)[part]
                return mine[:, part * rank : (part + 1) * rank] if diagonal else mine

            entries[down_name] = Lazy((rank, hidden), make_down)
            entries[up_name] = Lazy((rows // 3, rank), make_up)
    if diagonal:
        return rank, []
    _widen_final_layer(entries, rank)
    note = (
        f"the fused adaLN is not block-diagonal, so it was trained in NeMo; every sub-layer keeps "
        f"the whole rank {fused}, which computes the same"
    )
    return rank, [note]


def _widen_final_layer(entries: dict[str, Lazy], rank: int) -> None:
    """Pad the final layer's modulation with zeros to ``rank``: one setting serves all."""
    for number, dim in ((1, 0), (2, 1)):
        name = f"final_layer.adaLN_modulation.{number}.weight"
        narrow = entries.get(name)
        if narrow is None or len(narrow.shape) != 2:
            continue
        shape = list(narrow.shape)
        shape[dim] = rank

        def make(narrow: Lazy = narrow, shape: tuple[int, ...] = tuple(shape)) -> torch.Tensor:
            tensor = narrow.make()
            padded = tensor.new_zeros(shape)
            padded[: tensor.shape[0], : tensor.shape[1]] = tensor
            return padded

        if narrow.shape[dim] < rank:
            entries[name] = Lazy(tuple(shape), make)


def _is_block_diagonal(matrix: torch.Tensor, fused: int) -> bool:
    rank = fused // 3
    return not any(
        bool(rows[:, column * rank : (column + 1) * rank].any())
        for row, rows in enumerate(matrix.chunk(3))
        for column in range(3)
        if column != row
    )
