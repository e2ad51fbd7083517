"""The families of models. A new one is a file here and a line in `FAMILIES`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from components.lib.contract import Frozen, UserError
from components.lib.cosmos.families.dit import DIT
from components.lib.cosmos.families.record import Family, Variant
from components.lib.cosmos.families.t5 import T5
from components.lib.cosmos.families.tokenizer import TOKENIZER
from components.lib.cosmos.families.vgg16 import VGG16

__all__ = [
    "FAMILIES",
    "Family",
    "FamilyName",
    "Variant",
    "family_named",
    "family_of",
    "trained_families",
]

FAMILIES: dict[str, Family] = {family.name: family for family in (DIT, TOKENIZER, T5, VGG16)}


def family_named(name: str) -> Family:
    """The family of this name. Raises UserError listing those there are."""
    if name not in FAMILIES:
        raise UserError(f"There is no family of models '{name}'. There are: {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def _known(name: str) -> str:
    if name not in FAMILIES:
        raise ValueError(f"must be one of {', '.join(FAMILIES)}")
    return name


#: The name of a family, in settings and in files.
FamilyName = Annotated[str, AfterValidator(_known)]


def family_of(settings: Frozen) -> Family:
    """The family whose networks have settings of this class. Raises KeyError for another class."""
    cls = type(settings)
    by_settings = {family.settings: family for family in FAMILIES.values()}
    return by_settings[f"{cls.__module__}:{cls.__qualname__}"]


def trained_families() -> tuple[Family, ...]:
    """Those that are post-trained."""
    return tuple(family for family in FAMILIES.values() if family.training)
