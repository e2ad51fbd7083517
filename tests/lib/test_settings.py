"""What a person means by ``name=value``."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from components.lib.contract import UserError
from components.lib.settings import likeness, nearest, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    {
        "true": True, "3": 3, "1e-4": 1e-4, "-2.5E+3": -2500.0, "[a, 1]": ["a", 1], "null": None,
        "": None, "crop": "crop", '"5"': "5", "{queue: night}": {"queue": "night"},
    }.items(),
)  # fmt: skip
def test_a_value_means_what_it_looks_like(text: str, value: Any) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    {
        "": "", "007": "007", "null": "null", "1e-4": "1e-4", '"quoted: text"': "quoted: text",
        "s3://bucket/a b": "s3://bucket/a b", "{subject} drives": "{subject} drives", " x ": "x",
    }.items(),
)  # fmt: skip
def test_a_setting_that_is_text_takes_text_as_it_stands(text: str, value: str) -> None:
    assert parse_value(text, str) == value


def test_text_that_may_be_missing() -> None:
    assert parse_value("null", str | None) is None
    assert parse_value("", str | None) == ""
    assert parse_value("5", str | None) == "5"
    assert parse_value("5", float | None) == 5
    assert parse_value("5", Literal["5"]) == 5  # not a type: what is allowed is checked later


def test_what_is_no_yaml_is_said() -> None:
    with pytest.raises(UserError, match=r"\[1, .* YAML"):
        parse_value("[1, ")


def test_the_nearest_name() -> None:
    names = ["trainer.max_steps", "trainer.precision"]
    assert nearest("trainer.maxsteps", names) == "trainer.max_steps"
    assert nearest("zzz", names) is None
    assert likeness("trainer.max_steps", names) == 1
    assert likeness("x", []) == 0
