"""Prompts to T5 embeddings as Cosmos-1.0 reads them: 512 rows, rows past the prompt zero.

The encoder is T5 v1.0 (google-t5/t5-11b for the real models). Attention in T5 knows positions
only relatively and masks padding, so a prompt's rows do not depend on how far its batch is
padded. Prompts are therefore sorted by length and padded to their batch's longest (rounded up to
`PAD_TO`) instead of to 512: a caption of 20 tokens costs a sixteenth of the padded one. The
trade-off: the last bits of a row depend on the shape of its batch, so whoever needs the same
bytes again must ask for the same batches (see `plan_batches`).

The reference writes a mask of ones next to the embedding whatever the prompt's length, and the
network attends to the zero rows too. Pretraining did the same, so the zero rows are part of the
input and the length is only information.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.lib.contract import UserError

if TYPE_CHECKING:
    import torch

MAX_TOKENS = 512
PAD_TO = 16


def plan_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group prompts into batches of at most ``max_tokens`` padded tokens.

    ``lengths`` are token counts. Returns lists of positions into ``lengths``, longest prompts
    first (an out-of-memory error then comes at once), ties in input order. Every position occurs
    exactly once; a batch holds at least one prompt.
    """
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    batches: list[list[int]] = []
    width = 0
    for position in order:
        if batches and (len(batches[-1]) + 1) * width <= max_tokens:
            batches[-1].append(position)
        else:
            batches.append([position])
            width = padded_length(lengths[position])
    return batches


def padded_length(length: int) -> int:
    """``length`` rounded up to a multiple of `PAD_TO`."""
    return -(-length // PAD_TO) * PAD_TO


class TextEncoder:
    """A T5 encoder loaded from a transformers folder.

    ``dtype`` is a torch dtype or its name; weights and arithmetic use it, embeddings are bf16
    whatever it is. Raises UserError when the folder is not a complete T5 encoder.
    """

    def __init__(
        self, folder: Path, device: str = "cpu", dtype: torch.dtype | str = "bfloat16"
    ) -> None:
        import torch
        from transformers import AutoTokenizer, T5EncoderModel

        folder = Path(folder)
        self.device = torch.device(device)
        kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        try:
            model, report = T5EncoderModel.from_pretrained(
                str(folder), dtype=kind, local_files_only=True, output_loading_info=True
            )
            self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{folder} does not hold a T5 text encoder in the transformers layout: {reason}"
            ) from error
        if missing := sorted(report["missing_keys"]):
            raise UserError(
                f"{folder} lacks {len(missing)} weights of the T5 encoder, the first is "
                f"'{missing[0]}'. Fetch the checkpoint again."
            )
        self.model = model.to(self.device).eval().requires_grad_(False)

    @property
    def dim(self) -> int:
        """Width of an embedding: 1024 for t5-11b."""
        return int(self.model.config.d_model)

    def tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt, end mark included, not truncated and not padded."""
        if not prompts:
            return []
        encoded = self.tokenizer(list(prompts), add_special_tokens=True, truncation=False)
        return [list(ids) for ids in encoded["input_ids"]]

    def encode(
        self, prompts: Sequence[str], *, max_tokens: int = 16_384
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [N, 512, D] bf16 on the CPU and lengths [N] int64, in the prompts' order.

        Longer prompts are cut to 512 tokens with the end mark kept. ``max_tokens`` bounds the
        padded tokens of one forward pass.
        """
        import torch

        tokens = [truncate(ids) for ids in self.tokenize(prompts)]
        embeddings = torch.zeros(len(tokens), MAX_TOKENS, self.dim, dtype=torch.bfloat16)
        lengths = torch.tensor([len(ids) for ids in tokens], dtype=torch.int64)
        for batch in plan_batches(lengths.tolist(), max_tokens):
            rows = self.encode_tokens([tokens[position] for position in batch])
            for position, row in zip(batch, rows, strict=True):
                embeddings[position, : len(row)] = row
        return embeddings, lengths

    def encode_tokens(self, tokens: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """One forward pass. Returns per prompt its rows [length, D] bf16 on the CPU."""
        import torch

        width = padded_length(max(len(ids) for ids in tokens))
        ids = torch.full((len(tokens), width), self.tokenizer.pad_token_id or 0)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(tokens):
            ids[row, : len(prompt)] = torch.tensor(list(prompt))
            mask[row, : len(prompt)] = 1
        with torch.inference_mode():
            hidden = self.model(
                input_ids=ids.to(self.device), attention_mask=mask.to(self.device)
            ).last_hidden_state
            rows = hidden.to(torch.bfloat16).cpu()
        return [rows[row, : len(prompt)].clone() for row, prompt in enumerate(tokens)]


def truncate(ids: Sequence[int]) -> list[int]:
    """At most 512 ids; a cut prompt keeps its last id, T5's end mark."""
    if len(ids) <= MAX_TOKENS:
        return list(ids)
    return [*ids[: MAX_TOKENS - 1], ids[-1]]
