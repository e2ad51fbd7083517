"""What a diffusion model is shown beside the noisy latent, as one value.

`Conditions` goes whole through the data, the loss, sampling, evaluation and the network; each of
them takes out only what it works on. So a new input is a field here, and the code in between does
not change. A field that is None is an input that the model does not take or that is absent.

Every tensor leads with the batch. In a data set an input is stored without it, under the name of
its field (`components.lib.shards.latents`); `Conditions.of_batch` takes them out of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditions:
    """One batch of inputs.

    ``text`` [B, L, text_dim]; ``fps`` [B]; ``padding_mask`` [B, 1, height, width] in pixels, 1
    where the picture is padding; ``shown_frames`` [B, T], 1 for the latent frames that a
    Video2World model is given clean.
    """

    text: Tensor
    fps: Tensor | None = None
    padding_mask: Tensor | None = None
    shown_frames: Tensor | None = None

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The inputs there are."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def of_batch(cls, batch: Mapping[str, Tensor]) -> Conditions:
        """Those tensors of a batch that are inputs, by their names."""
        return cls(**{name: batch[name] for name in cls.names() if name in batch})

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditions:
        """The same inputs with ``change`` applied to each that is there."""
        values = {name: getattr(self, name) for name in self.names()}
        return Conditions(**{name: change(v) for name, v in values.items() if v is not None})

    def to(self, device: torch.device | str) -> Conditions:
        """The same inputs on a device."""
        return self.map(lambda tensor: tensor.to(device))

    def with_text(self, text: Tensor | None) -> Conditions:
        """The same inputs with another text; None: zeros, which is what the model learns for none.

        This is the unconditional pass of guidance: what is shown besides the text stays.
        """
        return replace(self, text=torch.zeros_like(self.text) if text is None else text)


def leading_frames(counts: Tensor, frames: int) -> Tensor:
    """``shown_frames`` [B, frames], fp32: 1 on the first ``counts`` [B] latent frames of each."""
    return (torch.arange(frames, device=counts.device)[None] < counts[:, None]).float()


def over_latent(per_frame: Tensor, latent: Tensor) -> Tensor:
    """[B, T] spread over a latent [B, C, T, H, W]: [B, 1, T, H, W], a view on its device."""
    batch, _, frames, height, width = latent.shape
    wide = per_frame.to(latent.device)[:, None, :, None, None]
    return wide.expand(batch, 1, frames, height, width)
