"""`cosmos-pipelines doctor`: is everything there that a run needs?"""

from __future__ import annotations

from collections.abc import Iterator

import typer

from components.lib.contract import UserError
from pipelines.commands.options import Endpoint, Namespace, StorageRoot
from pipelines.forms import STORAGE_ROOT

_MARKS = {"good": "ok  ", "unsure": "?   ", "bad": "FAIL"}


def command(
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    storage_root: StorageRoot = STORAGE_ROOT,
) -> None:
    """Check KFP, Kubernetes, CRDs, rights, Secrets, GPUs, the store and Hugging Face.

    Every failure says what to do about it. Exit status 1 when something will not work.
    """
    from pipelines.backend import checks, cluster

    def of_the_cluster() -> Iterator[checks.Finding]:
        try:
            reached = cluster.connect(namespace, lambda _line: None)
        except UserError as error:
            yield checks.Finding(state="bad", what="Kubernetes", advice=str(error))
            return
        for check in (checks.kubernetes, checks.secrets, checks.gpus):
            yield from check(reached)

    bad = 0
    for findings in (
        checks.kfp(endpoint, namespace),
        of_the_cluster(),
        checks.storage(storage_root),
        checks.huggingface(checks.GATED_MODEL),
    ):
        for finding in findings:
            bad += finding.state == "bad"
            advice = f"\n       {finding.advice}" if finding.advice else ""
            typer.echo(f"{_MARKS[finding.state]}  {finding.what}{advice}")
    if bad:
        raise UserError(f"{bad} of the checks failed; what to do stands beside each.")
