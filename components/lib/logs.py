"""Logging of stages: one readable line each, with every known secret blanked.

Lines start with `LINE_MARK`, by which the local runner tells a stage's own words from what the
libraries around it print.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

LINE_MARK = "cosmos | "
SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "KFP_EXISTING_TOKEN",
    "KFP_OTHER_CLIENT_SECRET",
    "KFP_COOKIES",
)
_SHORTEST = 6  # blanking shorter values would eat ordinary words


def redact(text: str, env: Mapping[str, str] = os.environ) -> str:
    """``text`` with the value of every variable in `SECRET_VARIABLES` replaced by ``***``."""
    for name in SECRET_VARIABLES:
        secret = env.get(name, "")
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, "***")
    return text


class RedactingFormatter(logging.Formatter):
    """Formats as usual, exceptions included, then blanks secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def configure_logging(level: int = logging.INFO) -> None:
    """Send the loggers ``cosmos`` and ``components`` to stderr; twice is as good as once."""
    for name in ("cosmos", "components"):
        logger = logging.getLogger(name)
        if logger.handlers:
            continue
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(RedactingFormatter(f"{LINE_MARK}%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
