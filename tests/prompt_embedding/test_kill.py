"""Killed at random moments, the stage resumes and writes what an undisturbed run writes.

COSMOS_KILLS=20 runs the long form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from components.lib.manifest import load_manifest
from components.lib.store import ObjectStore
from tests.latent_encoding.kills import kill_count, run_undisturbed, run_with_kills


def test_killed_runs_end_with_the_bytes_of_an_undisturbed_one(
    store: ObjectStore,
    store_env: dict[str, str],
    put_prompts: Callable[..., str],
    make_config: Callable[..., Any],
) -> None:
    prompts = [f"a car drives past house number {k} " * (1 + k % 40) for k in range(200)]
    config = make_config(put_prompts(*prompts), max_tokens=1024)
    uri, seconds = run_undisturbed("prompt_embedding", config, store_env)
    calm = load_manifest(uri, store)
    for uri in run_with_kills("prompt_embedding", config, store_env, seconds, kill_count(), seed=0):
        resumed = load_manifest(uri, store)
        assert resumed.content == calm.content
        assert len(resumed.files) == 201
