"""Which files of a repository or folder a role needs, and no others.

A published repository holds the same weights in several forms (a 7B one about 45 GB in all); only
one of them is fetched. The order of preference is the exact native file, then NeMo's, then
diffusers'.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Literal

from components.lib.contract import UserError

CheckpointRole = Literal["dit", "tokenizer", "t5", "vgg16"]
Variant = Literal["auto", "canonical", "model.pt", "nemo", "diffusers", "jit"]

_CANONICAL = (
    ["config.json", "model.safetensors"],
    ["config.json", "model.safetensors.index.json", "model-*.safetensors"],
)
_T5_ALWAYS = ["config.json"]
_T5_TOKENIZER = [
    "tokenizer.json",
    "spiece.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
]
_DIFFUSERS_WEIGHTS = (
    ["diffusion_pytorch_model.safetensors"],
    ["diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model-*.safetensors"],
)


def _diffusers(folder: str) -> list[list[str]]:
    places = ["", folder]
    return [
        [f"{place}config.json", *(f"{place}{name}" for name in weights)]
        for place in places
        for weights in _DIFFUSERS_WEIGHTS
    ]


# CheckpointRole -> form -> alternatives, the first whose patterns all match is taken.
_FORMS: dict[CheckpointRole, dict[Variant, list[list[str]]]] = {
    "dit": {
        "model.pt": [["model.pt"]],
        "nemo": [["nemo/*"], ["metadata.json", "*"]],
        "diffusers": _diffusers("transformer/"),
        "canonical": list(_CANONICAL),
    },
    "tokenizer": {
        "jit": [["autoencoder.jit"], ["encoder.jit", "decoder.jit"]],
        "diffusers": _diffusers("vae/"),
        "canonical": list(_CANONICAL),
    },
    "t5": {
        "auto": [
            [*_T5_ALWAYS, "model.safetensors"],
            [*_T5_ALWAYS, "model.safetensors.index.json", "model-*.safetensors"],
            [*_T5_ALWAYS, "pytorch_model.bin"],
            [*_T5_ALWAYS, "pytorch_model.bin.index.json", "pytorch_model-*.bin"],
        ]
    },
    "vgg16": {
        "auto": [["*.safetensors"], ["*.pth"], ["pytorch_model.bin"]],
    },
}
# Taken along when they are there.
_OPTIONAL: dict[CheckpointRole, list[str]] = {
    "dit": ["config.json"],
    "tokenizer": ["config.json", "mean_std.pt"],
    "t5": _T5_TOKENIZER,
    "vgg16": ["config.json"],
}


def needed_files(
    paths: Iterable[str], role: CheckpointRole, where: str, variant: Variant = "auto"
) -> list[str]:
    """The paths (relative, ``/`` separated) to fetch, sorted.

    Raises UserError that says what the role needs and what is there.
    """
    paths = sorted(path for path in paths if not _hidden(path))
    forms = _FORMS[role]
    if variant != "auto" and variant not in forms:
        known = ", ".join(name for name in forms if name != "auto") or "auto only"
        raise UserError(
            f"A checkpoint of role '{role}' has no variant '{variant}'; it has {known}."
        )
    for name, alternatives in forms.items():
        if variant not in ("auto", name):
            continue
        for patterns in alternatives:
            if _whole(paths, patterns):
                return _take(paths, [*patterns, *_OPTIONAL[role]])
    wanted = " or ".join(
        " + ".join(patterns)
        for name, alternatives in forms.items()
        for patterns in alternatives[:1]
        if variant in ("auto", name)
    )
    listing = ", ".join(paths[:8]) + (", …" if len(paths) > 8 else "")
    raise UserError(
        f"{where} has no checkpoint of role '{role}': it needs {wanted}, and it holds "
        f"{listing or 'no files'}."
    )


def _hidden(path: str) -> bool:
    return any(part in (".git", ".cache") for part in path.split("/"))


def _whole(paths: Sequence[str], patterns: Sequence[str]) -> bool:
    return all(any(_matches(path, pattern) for path in paths) for pattern in patterns)


def _take(paths: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [path for path in paths if any(_matches(path, pattern) for pattern in patterns)]


def _matches(path: str, pattern: str) -> bool:
    """As a shell would, except that only a trailing ``/*`` or a lone ``*`` enters folders."""
    if pattern == "*":
        return True
    if pattern.endswith("/*"):
        return path.startswith(pattern[:-1])
    return "/" not in path.removeprefix(_folder(pattern)) and fnmatch.fnmatchcase(path, pattern)


def _folder(pattern: str) -> str:
    return pattern[: pattern.rfind("/") + 1]
