"""Algorithmic tasks: output sequences that follow from input sequences by a rule (e.g. copying)."""

from evals.base import Measured, Subject
from train import tasks

TASK = tasks.Algorithm


def measure(subject: Subject) -> Measured:
    """The metrics of the loss, in nats per symbol."""
    return Measured(metrics=subject.losses)


SECTIONS = ()
VERBS = {}
