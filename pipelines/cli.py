"""The command line. A command's module is imported only when it is asked for.

`--help` of the whole program lists one-line summaries without importing any command, so it
answers in a fraction of a second.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from components.lib.contract import UserError
from components.lib.logs import configure_logging

COMMANDS = {
    "demo": "Run both pipelines on a real clip with tiny models; nothing needed but this machine.",
    "run": "Run a pipeline on this machine.",
    "stage": "Run one stage alone from a config file.",
    "store": "Start a workspace's object store, for one command or until Ctrl-C.",
    "compile": "Write the YAML that the KFP UI and SDK take.",
    "submit": "Upload a pipeline to Kubeflow Pipelines and start a run.",
    "status": "The newest runs on a cluster, or the tasks of one.",
    "logs": "The log of a run's step.",
    "cancel": "Stop a run; its training job is deleted.",
    "schedule": "Recurring runs: create, list, pause, resume, delete.",
    "trigger": "Start a pipeline when new videos appear in a bucket.",
    "doctor": "Check KFP, Kubernetes, storage, GPUs, secrets; say what to do.",
    "make-checkpoint": "Write a tiny randomly initialised checkpoint in the official layouts.",
    "convert": "Convert checkpoints between the official, diffusers, jit and canonical forms.",
    "describe": "Parameters, shapes, FLOPs and memory of a model, without its weights.",
    "sample": "Make a video from a prompt with a Text2World model.",
    "report": "Compare the loss curves of runs in one HTML file.",
    "promote": "Ask the gate and make a trained model the one in production.",
    "rollback": "Put an earlier version back into production.",
    "erase": "Delete a fleet video; lists the models and data sets that used it.",
    "lineage": "Which videos, configs and runs a model version came from.",
}


class LazyGroup(TyperGroup):
    """Imports `pipelines.commands.<name>` when the command is called."""

    listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if self.listing or ctx.resilient_parsing:
            return _summary(cmd_name)
        module = importlib.import_module(f"pipelines.commands.{cmd_name.replace('-', '_')}")
        return _single(cmd_name, module.command)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.listing = True  # one-line summaries are enough here
        try:
            super().format_help(ctx, formatter)
        finally:
            self.listing = False


def _single(name: str, function: Any, help_text: str | None = None) -> Any:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(
        name=name, help=help_text, context_settings={"help_option_names": ["-h", "--help"]}
    )(function)
    return typer.main.get_command(app)


def _summary(name: str) -> Any:
    def nothing() -> None: ...

    return _single(name, nothing, COMMANDS[name])


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root() -> None:
    """Post-train NVIDIA Cosmos-1.0 models on fleet video with Kubeflow Pipelines."""


def main() -> None:
    """Entry point. A `UserError` ends as one sentence on stderr and exit status 1."""
    configure_logging()
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
