"""What a run needs on the server before it can start: the pipeline's version and an experiment.

A pipeline is uploaded as a new version only when its compiled YAML changed: the version's name
holds the YAML's digest.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from components.lib.contract import Frozen
from pipelines import kfp_private
from pipelines.backend.connection import Server
from pipelines.compiling import read_spec


class Uploaded(Frozen):
    """A version of a pipeline on the server."""

    pipeline_id: str
    version_id: str
    version: str
    new: bool


def upload(server: Server, text: str) -> Uploaded:
    """Make sure that the server has this compiled pipeline; nothing is sent when it has."""
    name = read_spec(text)["pipelineInfo"]["name"]
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        path.write_text(text)
        pipeline_id = server.call(
            f"Looking for the pipeline '{name}'", lambda: server.api.get_pipeline_id(name)
        )
        if pipeline_id is None:
            pipeline_id = server.created_once(
                f"Uploading the pipeline '{name}'",
                lambda: _new_pipeline(server, name),
                lambda: server.api.get_pipeline_id(name),
            )
        version = f"{name}-{digest}"
        existing = server.call(
            f"Looking for versions of '{name}'", lambda: _version(server, pipeline_id, version)
        )
        if existing is not None:
            return Uploaded(
                pipeline_id=pipeline_id,
                version_id=existing.pipeline_version_id,
                version=digest,
                new=False,
            )
        made = server.created_once(
            f"Uploading a version of '{name}'",
            lambda: server.api.upload_pipeline_version(str(path), version, pipeline_id=pipeline_id),
            lambda: _version(server, pipeline_id, version),
        )
    return Uploaded(
        pipeline_id=pipeline_id, version_id=made.pipeline_version_id, version=digest, new=True
    )


def experiment_id(server: Server, name: str) -> str:
    """The id of an experiment, which is made when there is none of this name."""
    made = server.call(
        f"Opening the experiment '{name}'",
        lambda: server.api.create_experiment(name, namespace=server.namespace),
    )
    return str(made.experiment_id)


def _new_pipeline(server: Server, name: str) -> str:
    """The id of a new pipeline without versions."""
    import kfp_server_api

    body = kfp_server_api.V2beta1Pipeline(name=name, display_name=name, namespace=server.namespace)
    return str(kfp_private.create_pipeline(server.api, body).pipeline_id)


def _version(server: Server, pipeline_id: str, name: str) -> Any:
    answer = server.api.list_pipeline_versions(pipeline_id, filter=named(name))
    return first(answer.pipeline_versions)


def named(name: str) -> str:
    """KFP's filter for what has this name."""
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [predicate]})


def first(items: list[Any] | None) -> Any:
    """The first of a list that KFP leaves out when it is empty; None then."""
    return items[0] if items else None
