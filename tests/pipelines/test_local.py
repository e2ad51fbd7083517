"""What a local run leaves on this machine."""

from __future__ import annotations

from pathlib import Path

from components.lib.contract import Progress, StageConfig
from components.lib.manifest import Kind, Manifest
from components.lib.stage import Output, StageSpec, execute
from components.lib.store import ObjectStore
from pipelines.local import StageRecord, copy_reports


def test_each_stage_s_report_has_a_file_of_its_own(
    store: ObjectStore, storage_root: str, store_env: dict[str, str], progress: Progress,
    tmp_path: Path,
) -> None:  # fmt: skip
    def ran(stage: str, kind: Kind, report: bool) -> StageRecord:
        def work(_inputs: dict[str, Manifest], output: Output) -> None:
            output.put_bytes("report.html" if report else "other", f"of {stage}".encode())

        config = StageConfig(storage_root=storage_root)
        made = execute(StageSpec(name=stage, version="t", kind=kind), config, store, progress, work)
        return StageRecord(
            stage=stage, manifest=made.manifest_uri, reused=False, seconds=1, report=report
        )

    records = (
        ran("training", "training-run", report=False),
        ran("evaluation", "evaluation", report=True),
        ran("run_report", "run-report", report=True),
    )
    folder = tmp_path / "reports"
    copies = copy_reports(records, folder, "fleet", store_env)
    assert copies == (folder / "fleet-evaluation.html", folder / "fleet-run-report.html")
    assert [path.read_text() for path in copies] == ["of evaluation", "of run_report"]
