"""The exit task of a scheduled pipeline: it runs when all else has ended, well or not.

No postponed annotations here: KFP reads the types of the parameters from the function object.
"""

from kfp import dsl

from components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def run_report(
    storage_root: str,
    title: str,
    run: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    status: dsl.PipelineTaskFinalStatus,
) -> None:
    """Write what the run found, did and decided, or where it failed."""
    from components.harness.task import run_report_task

    run_report_task(
        {"storage_root": storage_root, "title": title},
        status.state,
        status.error_message,
        html=report,
        markdown=summary,
        output=run,
    )
