"""The blocks of the DiT: self-attention, cross-attention and MLP under adaptive layer norm.

A `TransformerBlock` holds three `SubBlock`s that share one rule,
``x <- x + gate * f(LayerNorm(x) * (1 + scale) + shift)``, with shift, scale and gate from a
low-rank projection of the noise level plus a shared term. f ends in a matrix product, which is
where the gate is applied (`gated_linear`). Module names repeat the published ones.

Activation checkpointing sits inside the block, in the function that is compiled, so that a
compiler sees the policy; compilation replaces that function and leaves ``forward`` (and what
FSDP hooks onto it) alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import (
    checkpoint,
    create_selective_checkpoint_contexts,
)

from components.lib.cosmos.dit.attention import (
    ATTENTION_OPS,
    LAST_PRODUCT_OPS,
    PRODUCT_OPS,
    SUM_OPS,
    AttentionBackend,
    attend,
    worth_keeping,
)
from components.lib.cosmos.dit.config import DiTConfig
from components.lib.cosmos.dit.parallel import ColumnLinear, RowLinear, TensorParallel
from components.lib.cosmos.dit.rope import rotate

Checkpointing = Literal["none", "light", "selective", "full"]
Rotary = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """``block.attn``: heads cut over the tensor-parallel group, q and k RMS-normed per head."""

    def __init__(self, config: DiTConfig, context_dim: int, parallel: TensorParallel) -> None:
        super().__init__()
        hidden, size = config.hidden, config.head_dim
        if config.heads % parallel.size:
            raise ValueError(
                f"{config.heads} attention heads do not divide by tensor parallel {parallel.size}"
            )
        self.parallel = parallel
        self.backend: AttentionBackend = "auto"
        self.heads = config.heads // parallel.size
        self.to_q = nn.Sequential(
            ColumnLinear(hidden, hidden), nn.RMSNorm(size, eps=config.norm_eps)
        )
        self.to_k = nn.Sequential(
            ColumnLinear(context_dim, hidden), nn.RMSNorm(size, eps=config.norm_eps)
        )
        self.to_v = nn.Sequential(ColumnLinear(context_dim, hidden))
        self.to_out = nn.Sequential(RowLinear(hidden, hidden))

    def forward(
        self,
        x: Tensor,
        gate: Tensor,
        tokens: int,
        context: Tensor | None,
        rotary: Rotary | None,
    ) -> Tensor:
        """x [rows, B, hidden]; context [L, B, dim] (None: attend to x itself) -> gate * like x."""
        x = self.parallel.enter(x, tokens)
        source = x if context is None else context
        heads = (self.heads, -1)
        query = self.to_q[1](self.to_q[0](x).unflatten(-1, heads))
        key = self.to_k[1](self.to_k[0](source).unflatten(-1, heads))
        value = self.to_v[0](source).unflatten(-1, heads)
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        attended = attend(query, key, value, self.backend)
        return self.parallel.leave(self.to_out[0](attended, self.parallel.share(gate)))


class _Attends(nn.Module):
    """The level named ``block`` around ``attn`` in the published names."""

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        self.attn = attn

    def forward(
        self,
        x: Tensor,
        gate: Tensor,
        tokens: int,
        context: Tensor | None,
        rotary: Rotary | None,
    ) -> Tensor:
        return self.attn(x, gate, tokens, context, rotary)


class FeedForward(nn.Module):
    """``block`` of the third sub-block: hidden -> ffn, exact GELU, ffn -> hidden."""

    def __init__(self, config: DiTConfig, parallel: TensorParallel) -> None:
        super().__init__()
        self.parallel = parallel
        self.layer1 = ColumnLinear(config.hidden, config.ffn)
        self.layer2 = RowLinear(config.ffn, config.hidden)

    def forward(
        self,
        x: Tensor,
        gate: Tensor,
        tokens: int,
        _context: Tensor | None,
        _rotary: Rotary | None,
    ) -> Tensor:
        """[rows, B, hidden] -> gate * the same. An MLP needs neither context nor positions."""
        inner = F.gelu(self.layer1(self.parallel.enter(x, tokens)))
        return self.parallel.leave(self.layer2(inner, self.parallel.share(gate)))


class Modulation(nn.Sequential):
    """``adaLN_modulation``: SiLU, hidden -> rank, rank -> parts · hidden."""

    def __init__(self, config: DiTConfig, parts: int) -> None:
        super().__init__(
            nn.SiLU(),
            nn.Linear(config.hidden, config.adaln_rank, bias=False),
            nn.Linear(config.adaln_rank, parts * config.hidden, bias=False),
        )


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm without affine parameters, then scale and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


class SubBlock(nn.Module):
    """One of the three parts of a block: ``block`` is f, ``adaLN_modulation`` its modulation."""

    def __init__(self, config: DiTConfig, block: nn.Module) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.block = block
        self.adaLN_modulation = Modulation(config, 3)

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        shared: Tensor,
        tokens: int,
        context: Tensor | None,
        rotary: Rotary | None,
    ) -> Tensor:
        """x [rows, B, hidden]; noise [B, hidden]; shared [B, 3 · hidden]."""
        shift, scale, gate = (self.adaLN_modulation(noise) + shared).chunk(3, dim=-1)
        inner = modulate(x, shift, scale, self.eps)
        return x + self.block(inner, gate, tokens, context, rotary)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, MLP."""

    def __init__(self, config: DiTConfig, parallel: TensorParallel) -> None:
        super().__init__()
        self.parallel = parallel
        self.checkpointing: Checkpointing = "none"
        #: Around the work on so many rows (tokens x samples): who sees what it keeps for backward.
        self.saving: Callable[[int], AbstractContextManager[object]] = lambda _: nullcontext()
        self.blocks = nn.ModuleList(
            [
                SubBlock(config, _Attends(Attention(config, config.hidden, parallel))),
                SubBlock(config, _Attends(Attention(config, config.text_dim, parallel))),
                SubBlock(config, FeedForward(config, parallel)),
            ]
        )
        self._ways = self._eager_ways()

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        noise: Tensor,
        shared: Tensor,
        text: Tensor,
        rotary: Rotary,
        tokens: int,
    ) -> Tensor:
        """x [rows, B, hidden] -> the same. ``tokens``: all tokens; rows: this rank's share."""
        way = self.checkpointing if torch.is_grad_enabled() else "forward only"
        with self.saving(tokens * x.shape[1]):
            return self._ways[way](x, positions, noise, shared, text, rotary, tokens)

    def compile_ways(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the block's work into one graph, whichever way it runs."""
        compiled = partial(torch.compile, fullgraph=True, backend=backend)
        self._ways = {way: compiled(run) for way, run in self._eager_ways().items()}

    def _eager_ways(self) -> dict[str, Callable[..., Tensor]]:
        """A method for each way to run.

        The compiler counts the graphs of one method and refuses a ninth. Together, the ways of a
        plan that mixes them, with and without gradients, on clips of several sizes, need more.
        """
        return {
            "none": self._work,
            "light": self._light,
            "selective": self._selective,
            "full": self._full,
            "forward only": self._forward_only,
        }

    def _forward_only(self, *inputs: Any) -> Tensor:
        return self._work(*inputs)

    def _full(self, *inputs: Any) -> Tensor:
        return checkpoint(self._work, *inputs, use_reentrant=False)

    def _selective(self, *inputs: Any) -> Tensor:
        return self._keeping(ATTENTION_OPS, *inputs)

    def _light(self, *inputs: Any) -> Tensor:
        ends = LAST_PRODUCT_OPS if self.parallel.size == 1 else SUM_OPS
        return self._keeping([*PRODUCT_OPS, *ends], *inputs)

    def _keeping(self, kept: list[Any], *inputs: Any) -> Tensor:
        keep = partial(create_selective_checkpoint_contexts, partial(worth_keeping, kept))
        return checkpoint(self._work, *inputs, use_reentrant=False, context_fn=keep)

    def _work(
        self,
        x: Tensor,
        positions: Tensor,
        noise: Tensor,
        shared: Tensor,
        text: Tensor,
        rotary: Rotary,
        tokens: int,
    ) -> Tensor:
        own, cross, mlp = self.blocks
        x = own(x + positions, noise, shared, tokens, None, rotary)
        x = cross(x, noise, shared, tokens, text, None)
        return mlp(x, noise, shared, tokens, None, None)
