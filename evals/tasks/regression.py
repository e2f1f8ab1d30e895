"""Regression: predicts numbers for each example."""

from evals.base import Measured, Subject
from evals.gradients import through_time
from evals.report.maps import feature_maps, first_weights
from train import tasks

TASK = tasks.Regression


def measure(subject: Subject) -> Measured:
    """The metrics of the loss, such as "squared_error"."""
    return Measured(metrics=subject.losses)


SECTIONS = (feature_maps, first_weights, through_time)
VERBS = {}
