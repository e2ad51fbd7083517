"""Killed at random moments, the stage resumes and writes what an undisturbed run writes.

COSMOS_KILLS=20 runs the long form, on more prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from components.lib.manifest import load_manifest
from components.lib.store import ObjectStore
from tests.latent_encoding.kills import (
    imported,
    kill_count,
    long_form,
    run_undisturbed,
    run_with_kills,
)


def test_killed_runs_end_with_the_bytes_of_an_undisturbed_one(
    store: ObjectStore,
    store_env: dict[str, str],
    put_prompts: Callable[..., str],
    make_config: Callable[..., Any],
) -> None:
    count = 200 if long_form() else 60
    prompts = [f"a car drives past house number {k} " * (1 + k % 40) for k in range(count)]
    config = make_config(put_prompts(*prompts), max_tokens=1024)
    with imported("prompt_embedding", store_env) as stage:
        uri, seconds = run_undisturbed(stage, config)
        done = run_with_kills(stage, config, seconds, kill_count(), seed=0)
    calm = load_manifest(uri, store)
    for uri in done:
        resumed = load_manifest(uri, store)
        assert resumed.content == calm.content
        assert len(resumed.files) == count + 1
