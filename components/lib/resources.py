"""What a stage asks of a cluster, as plain values in its config.py.

`pipelines.profiles` turns them into KFP's calls; nothing here knows KFP, so a stage's image needs
none of it.
"""

from __future__ import annotations

from typing import Literal

from components.lib.contract import Frozen

#: Credentials beside those of the object store, which every stage gets.
Secret = Literal["huggingface", "wandb"]


class Resources(Frozen):
    """Requests of one task. ``memory`` is also the limit; CPU, which throttles, has none.

    ``cached`` says whether KFP may answer from its cache. Its key covers neither the contents of a
    bucket nor what is in production, so a stage whose result the world decides says False.
    """

    cpu: str
    memory: str
    gpus: int = 0
    retries: int = 2
    timeout_hours: int = 24
    cached: bool = True
    secrets: tuple[Secret, ...] = ()
