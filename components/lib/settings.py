"""Settings that people write as ``name=value``: what a value means, and which name they meant.

Values are YAML, so ``true``, ``3``, ``[a, b]`` and plain text mean what they look like. Two things
are mended. ``1e-4``, which YAML 1.1 calls text, is the number it looks like. And a setting that is
text takes text as it stands: ``name=007`` does not become 7, ``name=`` is empty and not null.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from components.lib.contract import UserError


def parse_value(text: str, kind: Any = None) -> Any:
    """The value of ``text`` for a setting of this type (None: unknown).

    Raises UserError for text that is not YAML where no plain text is expected.
    """
    import yaml

    plain = text.strip()
    takes_text = kind is str or str in get_args(kind)
    try:
        value = yaml.safe_load(plain)
    except yaml.YAMLError as error:
        if takes_text:
            return plain
        raise UserError(f"The value '{text}' is not valid YAML: {error}") from error
    if takes_text:
        null = value is None and kind is not str and plain != ""
        return value if isinstance(value, str) or null else plain
    if isinstance(value, str) and value == plain:  # in quotes it is text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known name most like ``word``; None when none is at least ``cutoff`` like it."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def likeness(word: str, known: Iterable[str]) -> float:
    """How much the most similar known name is like ``word``, from 0 to 1."""
    return max((difflib.SequenceMatcher(None, word, name).ratio() for name in known), default=0.0)
