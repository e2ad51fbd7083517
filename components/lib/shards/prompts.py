"""Prompt embeddings by the digest of the prompt, fetched once each and kept in memory.

Many clips share a prompt, so the data set stores each embedding once. Memory is bounded by an LRU:
512 x 1024 bf16 is 1 MiB.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from threading import Lock

import torch

from components.lib.contract import UserError
from components.lib.manifest import Manifest, load_manifest, reference
from components.lib.store import ObjectStore

KEPT = 1024


class PromptSource:
    """Embeddings of a prompt-embeddings manifest, or of a local folder with the same files."""

    def __init__(self, manifest: Manifest | None, folder: Path | None, store: ObjectStore | None):
        self.manifest, self.folder, self.store = manifest, folder, store
        self._embeddings: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._lock = Lock()

    def embedding(self, prompt_sha256: str) -> torch.Tensor:
        """[512, D] bf16. Raises UserError when the prompt has no embedding."""
        with self._lock:
            if prompt_sha256 in self._embeddings:
                self._embeddings.move_to_end(prompt_sha256)
                return self._embeddings[prompt_sha256]
            value = self._load(f"prompts/{prompt_sha256}.safetensors")
            self._embeddings[prompt_sha256] = value
            if len(self._embeddings) > KEPT:
                self._embeddings.popitem(last=False)
            return value

    def _load(self, path: str) -> torch.Tensor:
        from safetensors.torch import load

        if self.manifest is not None and self.store is not None:
            entry = self.manifest.entry(path)
            data = self.store.get_bytes(self.manifest.file_uri(path), sha256=entry.sha256)
        elif self.folder is not None and (self.folder / path).is_file():
            data = (self.folder / path).read_bytes()
        else:
            raise UserError(
                f"There is no embedding {path}. Set data.prompts to the manifest that "
                "prompt_embedding wrote for these videos."
            )
        return load(data)["embedding"]


def open_prompts(path: str, store: ObjectStore | None) -> PromptSource:
    """The embeddings at ``path``: a manifest (URI or file), a folder, or none."""
    if not path:
        return PromptSource(None, None, store)
    if not path.startswith("s3://") and Path(path).is_dir():
        return PromptSource(None, Path(path), store)
    if store is None:
        raise UserError(f"data.prompts={path} cannot be read: no object store is set up.")
    manifest = load_manifest(reference(path), store)
    if manifest.kind != "prompt-embeddings":
        raise UserError(f"data.prompts={path} is a {manifest.kind} manifest.")
    return PromptSource(manifest, None, store)
