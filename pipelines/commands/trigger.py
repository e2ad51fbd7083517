"""`cosmos-pipelines trigger`: start a pipeline when new videos appear in a bucket."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from components.lib.contract import UserError
from components.training.launch.names import STEP_ACCOUNT
from pipelines.commands.options import (
    WORKSPACE,
    Account,
    EncodePods,
    Endpoint,
    Experiment,
    GpuType,
    Images,
    Namespace,
    Overrides,
    Parameters,
    ParametersFile,
    Pipeline,
    collect_parameters,
    merge_parameters,
)
from pipelines.forms import STORAGE_ROOT


def command(
    pipeline: Pipeline,
    on_bucket: Annotated[
        str, typer.Option("--on-bucket", help="Prefix to watch, as s3://bucket/prefix.")
    ],
    every: Annotated[float, typer.Option(help="Seconds between looks.", min=0.1)] = 60.0,
    settle: Annotated[
        float, typer.Option(help="Seconds without another arrival before a run starts.", min=0)
    ] = 120.0,
    max_wait: Annotated[
        float, typer.Option(help="Seconds after which a run starts even so.", min=0)
    ] = 3600.0,
    max_runs: Annotated[int | None, typer.Option(help="Stop after this many runs.", min=1)] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after this time.", min=0)] = None,
    name: Annotated[
        str, typer.Option(help="Name of the trigger's memory; two with one name share it.")
    ] = "",
    local: Annotated[
        bool, typer.Option("--local", help="Run here instead of submitting to a cluster.")
    ] = False,
    preset: Annotated[str, typer.Option(help="With --local: tiny or full.")] = "tiny",
    workspace: Annotated[Path, typer.Option(help="With --local: its folder.")] = WORKSPACE,
    external_store: Annotated[
        bool, typer.Option(help="With --local: use the store that AWS_ENDPOINT_URL names.")
    ] = False,
    parameter: Parameters = None,
    override: Overrides = None,
    parameters_file: ParametersFile = None,
    image: Images = None,
    gpu_type: GpuType = None,
    encode_pods: EncodePods = 1,
    experiment: Experiment = "cosmos",
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    service_account: Account = STEP_ACCOUNT,
) -> None:
    """Watch a bucket and start a run when new videos have arrived, until Ctrl-C or a limit.

    The store comes from AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. A schedule
    does the same by the clock and needs no process that stays up.

    Example: cosmos-pipelines trigger fleet --on-bucket s3://fleet/new -p min_new_videos=50
    """
    from pipelines.trigger import Limits

    if not on_bucket.startswith("s3://"):
        raise UserError(f"--on-bucket {on_bucket} is no prefix of a bucket: write s3://bucket/….")
    if local and (image or gpu_type):
        raise UserError(
            "--image and --gpu-type choose containers and nodes of a cluster. Leave them out with "
            "--local: the runs happen on this machine as it is."
        )
    parameters = {"videos": on_bucket, **collect_parameters(parameters_file, parameter, override)}
    limits = Limits(
        every_s=every, max_runs=max_runs, for_s=None if minutes is None else minutes * 60
    )
    memory = f"{pipeline}-{hashlib.sha256(on_bucket.encode()).hexdigest()[:12]}"
    with stopping() as stopped:
        if local:
            from pipelines.catalog import preset_parameters
            from pipelines.local import run_local, storage, terminate_cleanly

            workspace = workspace.resolve()
            form = preset_parameters(pipeline, preset, workspace, on_bucket)
            form = merge_parameters(form, parameters)
            with storage(workspace, external=external_store) as env:

                def start() -> str:
                    with terminate_cleanly():
                        run = run_local(pipeline, form, workspace, env, encode_pods)
                    return run.log.stem

                root = str(form.get("storage_root", STORAGE_ROOT))
                watch = _watch(root, name or memory, on_bucket, settle, max_wait, env)
                _poll(watch, start, lambda _run: False, limits, stopped)
            return
        from pipelines import client, compiling

        images = compiling.image_overrides(image or [])
        text = compiling.compile_pipeline(pipeline, images, gpu_type, encode_pods)
        compiling.check_parameters(text, parameters)
        server = client.Server(client.Connection(endpoint=endpoint, namespace=namespace))

        def submit() -> str:
            run = client.submit(
                server,
                pipeline,
                parameters,
                images=images,
                gpu_type=gpu_type,
                encode_pods=encode_pods,
                experiment=experiment,
                service_account=service_account or None,
            )
            typer.echo(run.url)
            return run.run_id

        root = str(parameters.get("storage_root", STORAGE_ROOT))
        watch = _watch(root, name or memory, on_bucket, settle, max_wait, None)
        _poll(watch, submit, lambda run: _going(server, run), limits, stopped)


def _watch(
    storage_root: str, name: str, prefix: str, settle: float, max_wait: float, env: Any
) -> Any:
    from components.lib.store import ObjectStore
    from components.lib.store.watch import BucketWatch
    from components.lib.video.container import VIDEO_SUFFIXES

    return BucketWatch(
        ObjectStore.from_env(env or None),
        prefix,
        f"{storage_root.rstrip('/')}/triggers/{name}.json",
        VIDEO_SUFFIXES,
        settle_s=settle,
        max_wait_s=max_wait,
    )


def _going(server: Any, run: str) -> bool:
    """Whether a run is still under way; one that KFP cannot tell of is taken for ended."""
    from pipelines.client import run_info

    try:
        return not run_info(server, run).finished
    except UserError as error:
        typer.echo(f"taking run {run} for ended: {error}")
        return False


def _poll(
    watch: Any,
    start: Callable[[], str],
    going: Callable[[str], bool],
    limits: Any,
    stopped: list[bool],
) -> None:
    from pipelines.trigger import poll

    def say(line: str) -> None:
        typer.echo(f"{time.strftime('%H:%M:%S')} {line}")

    say(f"watching {watch.prefix}")
    runs = 0
    try:
        runs = poll(watch, start, going, say, limits)
    except KeyboardInterrupt:
        stopped.append(True)
    say("stopped" if stopped else f"done: {runs} runs started")


@contextlib.contextmanager
def stopping() -> Iterator[list[bool]]:
    """SIGTERM ends the watching as Ctrl-C does."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield []
    finally:
        signal.signal(signal.SIGTERM, previous)
