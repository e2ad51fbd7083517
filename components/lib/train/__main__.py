"""``python -m components.lib.train --yes --factory NAME group.field=value …`` (under torchrun).

Exit codes: 0 finished; 75 stopped by SIGTERM with every step made so far in a checkpoint, start the
same command again to go on; 1 a mistake or a failure, told in the last line.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from components.lib.contract import UserError
from components.lib.logs import configure_logging
from components.lib.run_files import EXIT_RESUME
from components.lib.train.settings.config import TrainConfig
from components.lib.train.settings.overrides import apply_overrides, describe
from components.lib.train.settings.recipes import recipe, recipes

log = logging.getLogger("cosmos.train")
_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    configure_logging()
    _die_with_launcher()
    signal.signal(signal.SIGTERM, _stop_before_start)
    try:
        config = parse(arguments)
        if config is None:
            return 0
        from components.lib.train.run import train

        return train(config)
    except UserError as error:
        log.error("error: %s", error)
        return 1


def _die_with_launcher() -> None:
    """Under torchrun, ask Linux to end this rank when torchrun dies, however it dies."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _stop_before_start(number: int, frame: FrameType | None) -> None:
    """SIGTERM while libraries load or weights come down: there is no step to save yet.

    Ends the process at once. An exception would come up in the middle of somebody's code, whose
    ``finally`` may well replace it by another.
    """
    log.warning("stopped by SIGTERM before the first step; start again to go on")
    os._exit(EXIT_RESUME)


def parse(arguments: Sequence[str]) -> TrainConfig | None:
    """The resolved config, or None when help was printed. Raises UserError."""
    parser = argparse.ArgumentParser("components.lib.train", add_help=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--yes", "-y", action="store_true")
    parser.add_argument("--factory", default="cosmos_diffusion_7b_text2world_finetune")
    parser.add_argument("overrides", nargs="*")
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise UserError(f"Unknown option {unknown[0]}. Options: --yes, --factory NAME, --help.")
    config = recipe(options.factory)
    if options.help:
        sys.stdout.write(_help(options.factory, config))
        return None
    config = apply_overrides(config, options.overrides)
    if not options.yes and sys.stdin.isatty() and "RANK" not in os.environ:
        sys.stdout.write(describe(config) + "\nStart this run? [y/N] ")
        sys.stdout.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return None
    return config


def _help(factory: str, config: TrainConfig) -> str:
    names = "\n".join(
        f"  {name}\n      {(function.__doc__ or '').splitlines()[0]}"
        for name, function in recipes().items()
    )
    return (
        "usage: torchrun … -m components.lib.train --yes --factory NAME group.field=value …\n\n"
        f"--yes starts without asking. Recipes (--factory):\n{names}\n\n"
        f"Settings of {factory} and their values:\n{describe(config)}\n"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
