"""The kinds of jobs that training can run as, by the launcher that makes them.

A launcher is a module of this folder with the function ``launch(request, progress)``; those that
make jobs on Kubernetes have a line here, from which rights, clean-up and `doctor` follow.
"""

from __future__ import annotations

import importlib
from typing import Annotated

from pydantic import AfterValidator

from components.lib.contract import Frozen
from components.training.launch.interface import Launcher


class JobKind(Frozen):
    """A custom resource; ``install`` is what to do where the cluster does not know it."""

    group: str
    version: str
    plural: str
    install: str

    @property
    def path(self) -> tuple[str, str, str]:
        """Group, version and plural, as the API has them."""
        return self.group, self.version, self.plural


JOB_KINDS = {
    "pytorchjob": JobKind(
        group="kubeflow.org",
        version="v1",
        plural="pytorchjobs",
        install="Install the training-operator (branch release-1.9).",
    ),
    "trainjob": JobKind(
        group="trainer.kubeflow.org",
        version="v1alpha1",
        plural="trainjobs",
        install="Install Kubeflow Trainer 2.2 or newer.",
    ),
}
#: `process` runs torchrun where the step runs.
LAUNCHERS = ("process", *JOB_KINDS)


def _known(name: str) -> str:
    if name not in LAUNCHERS:
        raise ValueError(f"must be one of {', '.join(LAUNCHERS)}")
    return name


LauncherName = Annotated[str, AfterValidator(_known)]


def launcher_named(name: str) -> Launcher:
    """The launcher's function. Its libraries are imported only here."""
    launcher: Launcher = importlib.import_module(f"components.training.launch.{name}").launch
    return launcher
