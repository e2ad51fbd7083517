"""The bare loop: oracle of the tests, loop of benchmarks, fast start of tiny runs."""

from __future__ import annotations

from components.lib.train.session import Session


def run(session: Session) -> None:
    """Step until ``trainer.max_steps``."""
    engine = session.engine
    while engine.step < session.max_steps:
        session.after_step(engine.train_step())
