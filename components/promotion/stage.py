"""Register a model as a version and make it production, if the gate lets it through.

What this stage does is decided by the world: by what is in production when it runs. Its content
address therefore holds the pointer's number beside the inputs and the config. A run that finds its
model in production already takes the address of the promotion that put it there, so a second
identical run returns the first one's decision and changes nothing. A refusal is found again for as
long as production stays what it was; once that changes, the gate is asked anew.

Order: gate, then version, then pointer, then ``decision.json``. A run that is killed in between is
started again and goes on: the version's number is claimed by the digest of the weights, and a
pointer that was moved by this very address is not moved twice.

With a ledger, the videos of a promoted model are entered there, after the pointer and before
``decision.json``: a video counts as used once a model that saw it is in production, and a run that
is killed in between enters them when it is started again. The videos of a refused model stay new.
They come back with the next round's, so that evidence too weak for one night adds up.
"""

from __future__ import annotations

import math
from typing import Any

from components.lib.contract import Progress, UserError
from components.lib.manifest import Manifest, canonical_json, digest_json, load_manifest
from components.lib.registry import (
    Pointer,
    PointerMoved,
    Registry,
    check_name,
    models_root,
    rolled_back,
)
from components.lib.report.scores import FILE_NAME, Evaluation, parse_evaluation, weights_digest
from components.lib.stage import Output, StageResult, execute
from components.lib.store import ObjectStore
from components.lib.video.ledger import commit_run
from components.promotion.config import SPEC, PromotionConfig
from components.promotion.gate import Rule, Verdict, judge
from components.promotion.version import Candidate, register

TRIES = 32


def run(config: PromotionConfig, store: ObjectStore, progress: Progress) -> StageResult:
    """Decide, register, promote. Output: ``decision.json``; see the README for what it holds."""
    training = load_manifest(config.training, store)
    judged = load_manifest(config.evaluation, store)
    check_name(config.model_name)
    evaluation = _read_evaluation(judged, store)
    digest = _candidate_digest(training, evaluation)
    root = config.models_root or models_root(config.storage_root)
    registry = Registry(store, root, config.model_name)
    head = registry.production()
    request = digest_json(
        {
            "stage": SPEC.name,
            "version": SPEC.version,
            "inputs": {"training": training.content, "evaluation": judged.content},
            "videos": config.videos and load_manifest(config.videos, store).content,
            "config": config.deciding_fields(),
            "models": registry.uri,
        }
    )
    if head is not None and head.digest == digest and head.address:
        address = head.address
        progress.log(f"{config.model_name}@{head.version} is in production: already promoted.")
    else:
        address = digest_json({"request": request, "pointer": head.number if head else 0})

    def work(inputs: dict[str, Manifest], output: Output) -> None:
        candidate = Candidate(
            training=inputs["training"],
            evaluation_manifest=inputs["evaluation"],
            evaluation=evaluation,
            digest=digest,
        )
        _promote(config, registry, candidate, address, store, progress, output)
        if config.ledger:
            _enter(config, inputs["videos"], candidate, store, progress, output)

    return execute(SPEC, config, store, progress, work, address=address)


def _read_evaluation(manifest: Manifest, store: ObjectStore) -> Evaluation:
    entry = manifest.entry(FILE_NAME)
    uri = manifest.file_uri(FILE_NAME)
    return parse_evaluation(store.get_bytes(uri, sha256=entry.sha256), uri)


def _candidate_digest(training: Manifest, evaluation: Evaluation) -> str:
    judged = evaluation.models["candidate"]
    digest = weights_digest(training, judged.prefix)
    if digest != judged.digest:
        raise UserError(
            f"The evaluation judged the weights of {judged.manifest}, not those of "
            f"{training.uri}. Evaluate this training run and promote with that evaluation."
        )
    return digest


def _promote(
    config: PromotionConfig,
    registry: Registry,
    candidate: Candidate,
    address: str,
    store: ObjectStore,
    progress: Progress,
    output: Output,
) -> None:
    for _ in range(TRIES):
        states = registry.history()
        head = states[-1] if states else None
        if head is not None and head.digest == candidate.digest:
            # Either this very promotion, interrupted before it could say so, or another run's.
            done = "promoted" if head.address == address else "already promoted"
            _record(output, config, candidate, done, head, None)
            return
        verdict = _judge(config, registry, candidate, states)
        if not verdict.passed and not config.force:
            for rule in verdict.rules:
                if not rule.passed:
                    progress.log(f"not promoted, {rule.name}: {rule.sentence}")
            _record(output, config, candidate, "refused", head, verdict)
            return
        number = register(registry, candidate, verdict, store, progress, output.scratch)
        try:
            pointer = registry.move(
                head,
                number,
                kind="promotion",
                digest=candidate.digest,
                forced=config.force and not verdict.passed,
                reason=config.reason,
                address=address,
            )
        except PointerMoved:
            progress.log("production changed while this was decided; the gate is asked again")
            continue
        progress.log(f"{config.model_name}@{number} is in production.")
        _record(output, config, candidate, "promoted", pointer, verdict)
        return
    raise UserError(
        f"The production pointer of {config.model_name} was moved by others {TRIES} times in a "
        "row. Run the promotion again."
    )


def _enter(
    config: PromotionConfig,
    videos: Manifest,
    candidate: Candidate,
    store: ObjectStore,
    progress: Progress,
    output: Output,
) -> None:
    refused = output.summary["decision"] == "refused"
    if refused and not config.enter_refused:
        progress.log("The model was refused, so its videos stay new.")
        output.summary["ledger"] = ""
        return
    run = f"{config.model_name}-{candidate.training.address[:16]}"
    output.summary["ledger"] = commit_run(store, config.storage_root, config.ledger, run, videos)
    progress.log(f"The videos are in the ledger: {output.summary['ledger']}.")


def _judge(
    config: PromotionConfig, registry: Registry, candidate: Candidate, states: list[Pointer]
) -> Verdict:
    head = states[-1] if states else None
    verdict = judge(
        candidate.evaluation,
        head.digest if head else "",
        f"{registry.model}@{head.version}" if head else "",
        config,
    )
    if candidate.digest not in rolled_back(states):
        return verdict
    rule = Rule(
        name="not rolled back",
        passed=False,
        sentence="These weights were in production and were rolled back. Promote them again by "
        "force, with a reason.",
    )
    return verdict.model_copy(update={"passed": False, "rules": (*verdict.rules, rule)})


def _record(
    output: Output,
    config: PromotionConfig,
    candidate: Candidate,
    decision: str,
    pointer: Pointer | None,
    verdict: Verdict | None,
) -> None:
    rules = [rule.model_dump(mode="json") for rule in verdict.rules] if verdict else []
    promoted = decision != "refused"
    version = pointer.version if pointer else 0
    content: dict[str, Any] = {
        "decision": decision,
        "model": config.model_name,
        "production": f"{config.model_name}@{version}" if version else "",
        "pointer": pointer.model_dump(mode="json") if pointer else None,
        "candidate": candidate.digest,
        "rules": rules,
        "forced": bool(pointer and pointer.forced and promoted),
        "reason": config.reason,
    }
    output.put_bytes("decision.json", canonical_json(content))
    output.summary.update(content)
    output.metrics["promoted"] = float(promoted)
    output.metrics["production_version"] = float(version)
    if verdict is not None and math.isfinite(verdict.improvement):
        output.metrics["improvement"] = verdict.improvement
    if verdict is not None and math.isfinite(verdict.p_value):
        output.metrics["p_value"] = verdict.p_value
