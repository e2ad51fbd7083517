"""What one family of models is: everything that the code would otherwise ask by name.

A family is one kind of network with its settings class. The record names code lazily, as
``module:attribute``, so that reading it imports neither torch nor the network. What lies on upper
floors is found by the record's ``training``, a rule instead of a table: its recipes are
``lib/train/settings/recipes/<training>.py``, its task ``lib/train/tasks/<training>.py``, its
evaluation ``evaluation/<training>_family.py``.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

from components.lib.contract import Frozen

#: In which form a checkpoint is published.
Variant = Literal["auto", "canonical", "model.pt", "nemo", "diffusers", "jit"]
#: Patterns of files that a form consists of, in the order of preference.
Alternatives = tuple[tuple[str, ...], ...]

CANONICAL: Alternatives = (
    ("config.json", "model.safetensors"),
    ("config.json", "model.safetensors.index.json", "model-*.safetensors"),
)


def diffusers_files(folder: str) -> Alternatives:
    """diffusers' files of a network, at the top of a repository or in ``folder``."""
    weights = (
        ("diffusion_pytorch_model.safetensors",),
        ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model-*.safetensors"),
    )
    return tuple(
        (f"{place}config.json", *(f"{place}{name}" for name in names))
        for place in ("", folder)
        for names in weights
    )


class Family(Frozen):
    """One family.

    ``name`` stands in the config.json of a model folder and is a checkpoint's role. ``noun`` and
    ``about`` are for people. ``settings``, ``presets`` and ``network`` are ``module:attribute``;
    a family without a network of ours has ``shapes`` instead, a function from settings to shapes.
    ``variants`` says which files make up each published form, ``optional`` what is taken along;
    ``uses`` is the code that loads an exported form (``{place}`` is its folder).

    Of a family that is post-trained: ``training`` (see above), ``title`` of its reports,
    ``data_kind`` of the manifests that it is trained on, and ``inputs``: which setting of the
    trainer takes which input of the training stage.
    """

    name: str
    noun: str
    about: str
    settings: str = ""
    presets: str = ""
    network: str = ""
    shapes: str = ""
    variants: dict[Variant, Alternatives]
    optional: tuple[str, ...] = ()
    uses: dict[str, str] = {}
    hub_tag: str = ""
    training: str = ""
    title: str = ""
    data_kind: str = ""
    inputs: dict[str, str] = {}

    def load(self, reference: str) -> Any:
        """What a ``module:attribute`` of this record names."""
        module, _, attribute = reference.partition(":")
        return getattr(importlib.import_module(module), attribute)

    def settings_class(self) -> type[Frozen]:
        """The class of its networks' settings."""
        cls: type[Frozen] = self.load(self.settings)
        return cls

    def preset_settings(self) -> dict[str, Frozen]:
        """Settings of the published sizes by name; empty where there are none."""
        return dict(self.load(self.presets)) if self.presets else {}
