"""A form's fields are what KFP asks for, and retraining inherits those of post-training.

No postponed annotations here: KFP reads the types of a component from its function.
"""

from typing import Any

import pytest
import yaml
from kfp import compiler, dsl
from pydantic import Field

from components.lib.contract import Frozen
from pipelines import forms
from pipelines.catalog import COMPILED
from pipelines.diffusion import DiffusionForm
from pipelines.fleet import DiffusionRetraining, TokenizerRetraining
from pipelines.tokenizer import TokenizerForm


class SmallForm(forms.Form):
    """A form with every kind of field."""

    checkpoint: str = Field("c", description="Where from.")
    factory: str = Field("f", description="Which recipe.")
    model_name: str = Field("m", description="Which model: {7b,14b}.")
    share: float = Field(0.25, description="How much.")
    count: int = Field(3, description="How many.")


@dsl.component(base_image="none/python:1")
def takes(count: int, videos: str) -> None:
    """Nothing."""


def test_kfp_reads_name_type_default_and_help_of_each_field(tmp_path: Any) -> None:
    def make_tasks(form: SmallForm) -> None:
        takes(count=form.count, videos=form.videos)

    made = forms.pipeline("small", "A small one.", SmallForm, make_tasks)
    compiler.Compiler().compile(made, str(tmp_path / "small.yaml"))
    spec = next(yaml.safe_load_all((tmp_path / "small.yaml").read_text()))
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert spec["pipelineInfo"] == {"name": "small", "description": "A small one."}
    assert set(parameters) == set(SmallForm.model_fields)
    assert parameters["count"] == {
        "parameterType": "NUMBER_INTEGER", "defaultValue": 3.0, "isOptional": True,
        "description": "How many.",
    }  # fmt: skip
    assert parameters["share"]["parameterType"] == "NUMBER_DOUBLE"
    assert parameters["overrides"]["parameterType"] == "LIST"
    assert parameters["model_name"]["description"] == "Which model: {7b,14b}."
    assert "defaultValue" not in parameters["videos"]
    (task,) = spec["root"]["dag"]["tasks"].values()
    passed = task["inputs"]["parameters"]
    assert passed["count"] == {"componentInputParameter": "count"}
    assert passed["videos"] == {"componentInputParameter": "videos"}


@pytest.mark.parametrize(
    ("retraining", "post_training"),
    [(DiffusionRetraining, DiffusionForm), (TokenizerRetraining, TokenizerForm)],
)
def test_retraining_asks_for_what_post_training_does_and_more(
    retraining: type[Frozen], post_training: type[Frozen]
) -> None:
    more = set(retraining.model_fields) - set(post_training.model_fields)
    assert more == {"min_new_videos", "old_per_new"}
    for name, field in post_training.model_fields.items():
        assert retraining.model_fields[name].default == field.default, name


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("diffusion", DiffusionForm),
        ("tokenizer", TokenizerForm),
        ("fleet", DiffusionRetraining),
        ("fleet-tokenizer", TokenizerRetraining),
    ],
)
def test_the_committed_yaml_asks_for_the_form(name: str, form: type[Frozen]) -> None:
    spec = next(yaml.safe_load_all((COMPILED / f"{name}.yaml").read_text()))
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    asked = {key: (p["description"], p.get("defaultValue")) for key, p in parameters.items()}
    assert asked == {
        key: (info.description, None if info.is_required() else info.default)
        for key, info in form.model_fields.items()
    }
