"""No secret reaches a log line."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.lib.logs import LINE_MARK, SECRET_VARIABLES, RedactingFormatter, redact

WORDS = st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=7)


@given(
    before=WORDS,
    after=WORDS,
    secret=st.text(
        st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=8, max_size=60
    ),
    name=st.sampled_from(SECRET_VARIABLES),
)
def test_a_known_secret_is_blanked_wherever_it_stands(
    before: str, after: str, secret: str, name: str
) -> None:
    text = redact(f"{before} {secret} {after} url?key={secret}", {name: secret})
    assert secret not in text
    assert text.startswith(f"{before} ") and f" {after} " in text


def test_ordinary_text_is_left_alone() -> None:
    text = "step 10/20, 3.2/s: s3://cosmos/runs/latent/0123 (AWS_SECRET_ACCESS_KEY is not set)"
    assert redact(text, {}) == text
    assert redact(text, {"AWS_SECRET_ACCESS_KEY": ""}) == text
    assert redact(text, {"HF_TOKEN": "step"}) == text, "too short to be a secret"


def test_messages_arguments_and_tracebacks_are_blanked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijkl")
    formatter = RedactingFormatter(f"{LINE_MARK}%(message)s")
    try:
        raise ValueError("cannot sign with wJalrXUtnFEMI/K7MDENG")
    except ValueError as error:
        caught = error
    record = logging.LogRecord(
        "cosmos",
        logging.ERROR,
        __file__,
        1,
        "token %s in %s",
        ("hf_abcdefghijkl", "x"),
        (ValueError, caught, caught.__traceback__),
    )
    text = formatter.format(record)
    assert "wJalr" not in text and "hf_abc" not in text
    assert "token *** in x" in text and "cannot sign with ***" in text
