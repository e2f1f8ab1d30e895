"""Algorithms: sequences of symbols that follow from other sequences by a rule, such as copying."""

from evals.base import Measured, Subject
from train import tasks

TASK = tasks.Algorithm


def measure(subject: Subject) -> Measured:
    """The metrics of the loss: nats for each symbol."""
    return Measured(metrics=subject.losses)


SECTIONS = ()
VERBS = {}
