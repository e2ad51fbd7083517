"""Frames to latents on one device.

Frames cross to the device as bytes and are scaled to [-1, 1] there; the latent comes back as
bf16, normalised with the tokenizer's per-channel, per-latent-frame statistics. On a GPU nothing
waits: the copy down and the next clip's work are queued while the host goes on, and `collect`
hands out what has arrived. On a CPU the same calls compute at once.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.latent_encoding.decode_worker import Frame
from components.lib.cosmos.compiler import has_compiler
from components.lib.cosmos.model_folder import load_tokenizer
from components.lib.cosmos.tokenizer.folded import can_fold, fold_encoder
from components.lib.cosmos.tokenizer.network import CosmosTokenizer
from components.lib.cosmos.torch_private import recompile_limit

log = logging.getLogger("cosmos.latent_encoding")
# Forward passes queued on a GPU before the host waits for the oldest.
IN_FLIGHT = 2
# Graphs of one encoder: sizes x lengths x clips in a forward pass.
MAX_SHAPES = 256


@dataclass(frozen=True)
class Encoded:
    """Latents [B, C, T, H, W] bf16 on the host, of the batch that ``tag`` names."""

    tag: Any
    latents: torch.Tensor


class LatentEncoder:
    """The tokenizer's encoder on ``device``; ``dtype`` is that of weights and arithmetic."""

    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, dtype)
        # Weights are folded in fp32 where they can be, and rounded once.
        self.tokenizer = load_tokenizer(folder, self.device, torch.float32).requires_grad_(False)
        self.encode = encoder_of(self.tokenizer, self.dtype)
        # Frames go down on a stream of their own: on the encoder's they would wait for it.
        cuda = self.device.type == "cuda"
        self.loading = torch.cuda.Stream(self.device) if cuda else None
        self.queue: deque[tuple[Any, torch.Tensor, torch.cuda.Event | None]] = deque()
        self.busy_s = 0.0

    def buffer(self, clips: int, frames: int, height: int, width: int) -> torch.Tensor:
        """Zeroed bytes [clips, frames, height, width, 3] on the device, to be filled by `load`."""
        shape = (clips, frames, height, width, 3)
        with torch.cuda.stream(self.loading):
            return torch.zeros(shape, dtype=torch.uint8, device=self.device)

    def load(self, target: torch.Tensor, pieces: list[Frame]) -> None:
        """Copy a decoded clip, given as consecutive pieces, into its place of a buffer."""
        at = 0
        with torch.cuda.stream(self.loading):
            for piece in pieces:
                target[at : at + len(piece)].copy_(torch.from_numpy(piece))
                at += len(piece)

    def submit(self, tag: Any, frames: torch.Tensor) -> None:
        """Encode a buffer. The result comes out of `collect`."""
        begun = time.monotonic()
        if self.loading is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.loading)
            frames.record_stream(current)  # its memory comes from the loading stream's pool
        with torch.inference_mode():
            latent = self.tokenizer.normalise(self.encode(frames)).to(torch.bfloat16)
            if self.device.type == "cuda":
                host = torch.empty(latent.shape, dtype=latent.dtype, pin_memory=True)
                host.copy_(latent, non_blocking=True)
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(self.device))
                self.queue.append((tag, host, event))
            else:
                self.queue.append((tag, latent, None))
        self.busy_s += time.monotonic() - begun

    def collect(self, everything: bool = False) -> list[Encoded]:
        """What is done, oldest first. Waits while too much is queued, or for all of it."""
        done: list[Encoded] = []
        while self.queue:
            tag, latents, event = self.queue[0]
            if event is not None and not event.query():
                if not everything and len(self.queue) <= IN_FLIGHT:
                    break
                begun = time.monotonic()
                event.synchronize()
                self.busy_s += time.monotonic() - begun
            self.queue.popleft()
            done.append(Encoded(tag, latents))
        return done


def compiled_by_shape(
    run: Callable[[Tensor], Tensor], backend: str | Callable[..., Any] = "inductor"
) -> Callable[[Tensor], Tensor]:
    """``run`` with a graph for each shape of its input.

    The compiler runs a ninth shape as it is. That is slower, and since it rounds otherwise, the
    bits of a latent would depend on which shapes had come before.
    """
    compiled = torch.compile(run, dynamic=False, backend=backend)

    def call(frames: Tensor) -> Tensor:
        with recompile_limit(MAX_SHAPES):
            return compiled(frames)

    return call


def encoder_of(tokenizer: CosmosTokenizer, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Bytes [B, T, H, W, 3] to latents [B, C, T', H', W'], not normalised, in ``dtype``.

    Clips that fit one window of the tokenizer take the folded encoder; longer ones, and networks
    that cannot be folded, the tokenizer's own. On a GPU with a C compiler beside it the folded one
    is compiled, one graph for each shape of clip, which fuses its elementwise work.
    """
    window = tokenizer.config.window
    folded: Callable[[Tensor], Tensor] | None = None
    if can_fold(tokenizer):
        folded = fold_encoder(tokenizer, dtype)
        cuda = next(tokenizer.parameters()).is_cuda
        if cuda and has_compiler("cuda"):
            folded = compiled_by_shape(folded)
        elif cuda:
            log.warning("encoding without torch.compile, which is faster: there is no C compiler")

    def encode(frames: Tensor) -> Tensor:
        if folded is not None and frames.shape[1] <= window:
            return folded(frames)
        tokenizer.to(dtype)
        video = frames.permute(0, 4, 1, 2, 3).to(dtype).div_(127.5).sub_(1.0)
        return tokenizer.encode(video)

    return encode
