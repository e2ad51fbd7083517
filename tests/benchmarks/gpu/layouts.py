"""Parallel layouts of a DiT on the GPUs of one machine, with the project's own training engine.

``python -m tests.benchmarks.gpu.layouts 7B 14B`` measures every layout that the number of GPUs
allows: fully sharded (FSDP), tensor parallel with sequence parallel (TP), and both, one sample per
tensor-parallel group. Each first trains a small model, which is compared with the CPU
(`agreement`). For each: step time, MFU, peak memory, where a step's time goes, and the scaling
efficiency, which is its MFU over that of a few blocks on one GPU, measured first. Then, on
``--restore-layers`` layers, a checkpoint written in the first layout is read in every other one and
the next step's loss compared.

Each case runs in processes of its own (torchrun), so one that fails or does not fit costs only
itself. All ends by ``--deadline`` seconds: rows are printed and appended to ``layouts.jsonl`` as
they are known, and a case that is cut short leaves what it had measured. Without GPUs the same
code runs on CPU ranks (gloo, fp32 masters with bf16 compute): ``--processes 8 --geometry small
--latent 16x2x16x16``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from components.training.launch.interface import guide_environment
from tests.benchmarks.gpu.agreement import compare
from tests.benchmarks.gpu.common import PEAK_BF16, spell
from tests.benchmarks.gpu.dit_step import parse_shape
from tests.benchmarks.gpu.random_dit import GEOMETRIES, LATENT, Shape

#: Seconds that a case needs at least: starting processes, compiling, two steps.
LEAST_SECONDS = 45.0
#: bf16 rounds differently where sums are cut differently.
LOSS_TOLERANCE = 5e-3


class Cut(NamedTuple):
    """``tp`` ranks share each layer, ``dp`` groups share the state."""

    tp: int
    dp: int

    @property
    def name(self) -> str:
        """TP8, FSDP8, TP2xFSDP4, or 1 GPU."""
        parts = [f"TP{self.tp}"] * (self.tp > 1) + [f"FSDP{self.dp}"] * (self.dp > 1)
        return "x".join(parts) or "1 GPU"


def all_cuts(world: int) -> list[Cut]:
    """Every layout of ``world`` ranks: the guides' tensor parallel first, fully sharded second."""
    cuts = [Cut(tp, world // tp) for tp in range(1, world + 1) if world % tp == 0]
    return sorted(cuts, key=lambda cut: (0 if cut.dp == 1 else 1 if cut.tp == 1 else 2, cut.tp))


def parse_cut(name: str, world: int) -> Cut:
    """The layout of that name. ValueError when it does not fill ``world`` ranks."""
    for cut in all_cuts(world):
        if cut.name == name:
            return cut
    names = ", ".join(cut.name for cut in all_cuts(world))
    raise ValueError(f"{name} is no layout of {world} processes; there are {names}")


class Case(NamedTuple):
    """What one set of processes does.

    ``mode``: reference (of the comparison with the CPU), speed, save (a checkpoint), restore (it).
    """

    geometry: str
    layers: int
    cut: Cut
    mode: str
    latent: Shape
    folder: str
    batch: int
    settings: dict[str, Any]
    agreement: str = ""  # folder of the model that is compared with the CPU first
    breakdown: bool = True
    checkpoint: bool = False


def run_case(case: Case, report: Path) -> None:
    """The work of one rank; the first one keeps ``report`` up to date."""
    from components.lib.cosmos.flops import dit_forward_flops
    from components.lib.train.parallel.layout import start_processes, stop_processes
    from components.lib.train.settings.config import DiffusionTrainingConfig
    from tests.benchmarks.gpu.agreement import first_steps, write_model
    from tests.benchmarks.gpu.common import allocator_retries, breakdown, peak_gib, reset
    from tests.benchmarks.gpu.random_dit import build, plan, tokens_of

    strategy = {
        "tensor_model_parallel_size": case.cut.tp,
        "sequence_parallel": True,
        "reshard_after_forward": case.settings.get("reshard_after_forward", True),
    }
    trainer = {k: v for k, v in case.settings.items() if k != "reshard_after_forward"}
    small = Path(case.agreement)
    if case.mode == "reference":
        write_model(small)
        trainer = {"precision": "32-true", "accelerator": "cpu"}
    config = DiffusionTrainingConfig.model_validate(
        {
            "model": {"preset": case.geometry},
            "data": {"global_batch_size": case.batch},
            "trainer": {"max_steps": 1000, "strategy": strategy, **trainer},
        }
    )
    layout = start_processes(config.trainer, model_parallel=True)
    found: dict[str, Any] = {}

    def tell(**values: Any) -> None:
        found.update(values)
        if layout.is_main:
            partial = report.with_suffix(".part")
            partial.write_text(json.dumps(found))
            partial.replace(report)

    if case.agreement:
        if case.mode != "reference":  # as large models do for want of memory, which this one has
            place = "host" if trainer["compile"] else "auto"
            trainer |= {"recompute": "light", "optimizer_state": "host", "activations": place}
        tell(steps=first_steps(strategy, trainer, layout, small))
        reset()  # the compiler would generalise the sizes of this network to the large one's
    if case.mode == "reference":
        stop_processes()
        return
    geometry = GEOMETRIES[case.geometry].model_copy(update={"layers": case.layers})
    engine = build(config, geometry, layout, case.latent)
    found |= {"global_batch": engine.global_batch, "seconds": []}
    if case.mode != "speed":
        tell(**_across_layouts(engine, case))
        stop_processes()
        return
    engine.start_data()
    began = time.perf_counter()
    engine.train_step()
    tell(first_step=time.perf_counter() - began, plan=plan(engine))
    engine.train_step()
    flops = 3.0 * dit_forward_flops(geometry, tokens_of(geometry, case.latent))
    waits: list[float] = []
    for _ in range(3):
        values = engine.train_step()
        waits.append(values["data_wait_seconds"])
        found["seconds"].append(values["step_seconds"])
        middle = sorted(found["seconds"])[len(found["seconds"]) // 2]
        tell(
            mfu=flops * engine.global_batch / middle / layout.world / PEAK_BF16,
            peak_gib=peak_gib(),
            data_wait=sorted(waits)[len(waits) // 2],
            loss=values["loss"],
            retries=allocator_retries(),
        )
    if case.breakdown:
        parts: dict[str, float] = {}
        # Every rank steps; one looks.
        if layout.is_main:
            parts = breakdown(engine.train_step)
        else:
            engine.train_step()
        tell(breakdown=parts)
    if case.checkpoint:
        _stopped_by_a_checkpoint(engine, case, tell)
    engine.stop_data()
    stop_processes()


def _stopped_by_a_checkpoint(engine: Any, case: Case, tell: Callable[..., None]) -> None:
    """Save as a session does; how long the loop stood still, the step beside it, the whole."""
    from components.lib.train.checkpoint.checkpoint import Checkpoints
    from components.lib.train.checkpoint.storage import FolderStorage
    from components.lib.train.settings.config import CheckpointConfig

    folder = Path(case.folder)
    saves = Checkpoints(FolderStorage(folder), engine.layout, CheckpointConfig(), folder / "work")
    began = time.perf_counter()
    engine.prepare_saves()
    prepared = time.perf_counter() - began
    began = time.perf_counter()
    saves.save(engine.step, engine.tensors(), engine.state(), "", engine.copies.wait)
    stopped = time.perf_counter() - began
    tell(checkpoint_prepare=prepared, checkpoint_stopped=stopped)
    beside = engine.train_step()["step_seconds"]
    tell(step_beside_checkpoint=beside)
    begun_waiting = time.perf_counter()
    saves.wait()
    tell(
        checkpoint_seconds=stopped + beside + time.perf_counter() - begun_waiting,
        checkpoint_gib=saves.bytes_written / 2**30,
    )


def _across_layouts(engine: Any, case: Case) -> dict[str, Any]:
    """Save after two steps, or restore that; then the loss of the next step."""
    from components.lib.train.checkpoint.checkpoint import Checkpoints
    from components.lib.train.checkpoint.storage import FolderStorage
    from components.lib.train.settings.config import CheckpointConfig

    folder = Path(case.folder)
    work = folder / "work" / case.cut.name
    saves = Checkpoints(FolderStorage(folder / "saved"), engine.layout, CheckpointConfig(), work)
    if case.mode == "save":
        engine.start_data()
        for _ in range(2):
            engine.train_step()
        saves.save(engine.step, engine.tensors(), engine.state(), "", engine.copies.wait)
        saves.wait()
        taken = 0.0
    else:
        newest = saves.newest()
        assert newest is not None, "the checkpoint to restore is missing"
        began = time.perf_counter()
        views = engine.tensors()
        engine.copies.wait()
        saves.load(*newest, views, int(os.environ.get("LOCAL_RANK", "0")))
        engine.load_tensors(views)
        engine.load_state(newest[1].state)
        taken = time.perf_counter() - began
        engine.start_data()
    values = engine.train_step()
    engine.stop_data()
    return {
        "next_loss": values["loss"],
        "grad_norm": values["grad_norm"],
        "step": engine.step,
        "restore_seconds": taken,
        "gib": saves.bytes_written / 2**30,
    }


def launch(case: Case, processes: int, limit: float) -> dict[str, Any]:
    """Run a case on that many ranks. The result has ``error`` when it did not finish."""
    with tempfile.TemporaryDirectory() as folder:
        report, log = Path(folder) / "report.json", Path(folder) / "log"
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(processes), "-m", "tests.benchmarks.gpu.layouts"),
            *("--case", json.dumps(case._asdict() | {"cut": list(case.cut)}), str(report)),
        ]
        error = ""
        environment = guide_environment(torch.cuda.device_count(), case.cut.tp)
        with log.open("w") as stream:
            child = subprocess.Popen(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**environment, **os.environ},
                start_new_session=True,
            )
            try:
                code = child.wait(limit)
                error = _last_words(log.read_text()) if code else ""
            except subprocess.TimeoutExpired:
                error = f"stopped after {limit:.0f} s, at the deadline"
            finally:
                # torchrun and all of its ranks are one process group, which is ours to end
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
        found: dict[str, Any] = json.loads(report.read_text()) if report.is_file() else {}
    return found | ({"error": error} if error else {})


def _last_words(log: str) -> str:
    """The line of a log that says what went wrong."""
    lines = [line.strip() for line in log.splitlines()]
    errors = [line for line in lines if "Error" in line and "ChildFailedError" not in line]
    memory = [line for line in errors if "OutOfMemory" in line]
    return ([*memory, *errors, *lines[-1:], "no output"])[0][-300:]


class Run(NamedTuple):
    """One call of the command."""

    options: argparse.Namespace
    world: int
    began: float
    write: Callable[[dict[str, Any]], None]

    def left(self) -> float:
        """Seconds to the deadline, which counts from the start of this process."""
        return float(self.options.deadline) - (time.monotonic() - self.began)

    def measure(self, case: Case, processes: int) -> dict[str, Any]:
        """Run the case in the time that is left and note what came out."""
        if self.left() < self.options.least:
            found: dict[str, Any] = {"error": "not begun: no time left"}
        else:
            found = launch(case, processes, self.left())
        what = {"geometry": case.geometry, "layers": case.layers, "layout": case.cut.name}
        self.write({**what, "mode": case.mode, "latent": list(case.latent), **found})
        return found

    def case(self, geometry: str, layers: int, cut: Cut, **more: Any) -> Case:
        """A case of these options."""
        cuda = torch.cuda.is_available()
        settings = {"recompute": "auto", "compile": cuda} | self.options.set
        fields: dict[str, Any] = {
            "mode": "speed",
            "folder": "",
            "batch": 0,
            "settings": settings,
            **more,
        }
        return Case(geometry, layers, cut, latent=self.options.latent, **fields)


def rows(run: Run) -> Iterator[str]:
    """The table, line by line."""
    options = run.options
    with tempfile.TemporaryDirectory(dir=options.scratch) as model:
        wanted: list[list[float]] = []
        if not options.no_agreement:
            reference = run.case("small", 0, Cut(1, 1), mode="reference", agreement=model)
            wanted = run.measure(reference, 1).get("steps", [])
        yield from timed(run, model if wanted else "", wanted)


def timed(run: Run, agreement: str, wanted: list[list[float]]) -> Iterator[str]:
    """The rows. ``wanted``: steps of the model in the folder ``agreement`` on the CPU."""
    options = run.options
    yield "layout\tstep\tMFU\tefficiency\tpeak memory\twhere the time goes"
    for geometry in options.models:
        layers = options.layers or GEOMETRIES[geometry].layers
        base = options.baseline_mfu
        if options.baseline_layers:
            alone = run.case(geometry, options.baseline_layers, Cut(1, 1), breakdown=False)
            found = run.measure(alone, 1)
            base = found.get("mfu", 0.0)
            yield line(f"{geometry}, {options.baseline_layers} layers, 1 GPU", found, base)
        for cut in options.cuts:
            more = {"breakdown": not options.no_breakdown, "checkpoint": options.checkpoint}
            with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
                case = run.case(geometry, layers, cut, folder=folder, agreement=agreement, **more)
                found = run.measure(case, run.world)
            yield line(f"{geometry}, {layers} layers, {cut.name}", found, base)
            if wanted and "steps" in found:
                same, sentence = compare(found["steps"], wanted)
                yield f"a small model in {cut.name}\t{sentence}"
                if not same:
                    run.write({"failed": f"{cut.name} {sentence}"})
        if options.restore_layers:
            yield from restores(run, geometry)


def restores(run: Run, geometry: str) -> Iterator[str]:
    """A checkpoint of the first layout, read in each of the others and on one process."""
    with tempfile.TemporaryDirectory(dir=run.options.scratch) as folder:
        expected = None
        for number, cut in enumerate([*run.options.cuts, Cut(1, 1)]):
            mode = "restore" if number else "save"
            if cut == run.options.cuts[0] and number:
                continue
            found = run.measure(
                run.case(
                    geometry,
                    run.options.restore_layers,
                    cut,
                    mode=mode,
                    folder=folder,
                    batch=run.world,
                ),
                cut.tp * cut.dp,
            )
            loss = found.get("next_loss")
            if loss is None:
                yield f"{geometry}, {mode} in {cut.name}\t{found.get('error', 'no result')}"
                if not number:
                    return
                continue
            expected = loss if expected is None else expected
            off = abs(loss / expected - 1)
            verdict = "equal" if off <= LOSS_TOLERANCE else "DIFFERENT"
            yield (
                f"{geometry}, {run.options.restore_layers} layers, {mode} in {cut.name}\t"
                f"next loss {loss:.6f}\t{verdict} within {LOSS_TOLERANCE:g} ({off:.1e})\t"
                f"gradient norm {found['grad_norm']:.6f}\tread in {found['restore_seconds']:.1f} s"
            )
            if off > LOSS_TOLERANCE:
                run.write({"failed": f"{geometry} {cut.name} restored: next loss differs"})


def line(name: str, found: dict[str, Any], base: float) -> str:
    """One row of the table."""
    if not found.get("seconds"):
        return f"{name}\t{found.get('error', 'no result')}"
    middle = sorted(found["seconds"])[len(found["seconds"]) // 2]
    efficiency = f"{found['mfu'] / base:.0%} of one GPU's" if base else "-"
    note = spell(found.get("breakdown", {}))
    note += f", data wait {found['data_wait'] * 1e3:.0f} ms; {found['plan']}"
    if found["retries"]:
        note += f"; the allocator started over {found['retries']} times"
    if "checkpoint_stopped" in found:
        note += (
            f"; a checkpoint stopped training for {found['checkpoint_stopped']:.2f} s (buffers "
            f"made ready in {found['checkpoint_prepare']:.1f} s before"
        )
        if "step_beside_checkpoint" in found:
            note += f", the step beside it {found['step_beside_checkpoint']:.2f} s"
        if "checkpoint_gib" in found:
            size, took = found["checkpoint_gib"], found["checkpoint_seconds"]
            note += f", {size:.1f} GiB written in {took:.0f} s"
        note += ")"
    if "error" in found:
        note += f"; then: {found['error']}"
    return (
        f"{name}, {found['global_batch']} samples\t{middle:.3f} s\t{found['mfu']:.1%}\t"
        f"{efficiency}\t{found['peak_gib']:.1f} GiB\t{note}"
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser("layouts")
    gpus = torch.cuda.device_count()
    parser.add_argument("models", nargs="*", default=["7B"], choices=sorted(GEOMETRIES))
    parser.add_argument("--processes", type=int, default=gpus or 2, help="ranks; default: GPUs")
    parser.add_argument("--layouts", default="", help="such as TP8,FSDP8; default: all")
    parser.add_argument("--layers", type=int, default=0, help="0: the whole model")
    parser.add_argument("--latent", type=parse_shape, default=LATENT)
    parser.add_argument("--baseline-layers", type=int, default=4, help="0: none on one GPU")
    parser.add_argument("--baseline-mfu", type=float, default=0.0, help="of an earlier run")
    parser.add_argument("--restore-layers", type=int, default=2, help="0: restore nothing")
    parser.add_argument("--checkpoint", action="store_true", help="also save the whole model")
    parser.add_argument("--no-breakdown", action="store_true")
    parser.add_argument("--no-agreement", action="store_true", help="time without comparing")
    parser.add_argument("--deadline", type=float, default=540.0, help="seconds for everything")
    parser.add_argument("--least", type=float, default=LEAST_SECONDS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    parser.add_argument("--scratch", default=tempfile.gettempdir(), help="for checkpoints")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a trainer setting: recompute=…, attention=…, compile=…, reshard_after_forward=…",
    )
    options = parser.parse_intermixed_args(arguments)
    options.set = dict(setting.split("=", 1) for setting in options.set)
    names = [name for name in options.layouts.split(",") if name]
    options.cuts = [parse_cut(n, options.processes) for n in names] or all_cuts(options.processes)
    return options


def main(arguments: Sequence[str]) -> int:
    """Print the table; 1 when a layout computes something else than it should."""
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    failures: list[str] = []

    def write(record: dict[str, Any]) -> None:
        failures.extend([record["failed"]] if "failed" in record else [])
        with (options.out / "layouts.jsonl").open("a") as stream:
            stream.write(json.dumps(record) + "\n")

    # Importing torch took time of the caller's limit too.
    began = time.monotonic() - time.process_time()
    # In a process of its own: what it leaves on a GPU would be missing to the ranks.
    subprocess.run(
        [sys.executable, "-c", "from tests.benchmarks.gpu.common import header; header()"],
        check=True,
    )
    for text in rows(Run(options, options.processes, began, write)):
        print(text, flush=True)
    return bool(failures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        fields = json.loads(sys.argv[2])
        cut, latent = Cut(*fields.pop("cut")), tuple(fields.pop("latent"))
        run_case(Case(cut=cut, latent=latent, **fields), Path(sys.argv[3]))
        sys.exit(0)
    sys.exit(main(sys.argv[1:]))
