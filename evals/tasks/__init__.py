"""One module per task, which measures its runs; all follow the protocol of ``evals.base``."""

from evals.base import TaskModule
from evals.tasks import (
    algorithm,
    captioning,
    classification,
    density,
    language,
    reconstruction,
    regression,
    segmentation,
    states,
    transcription,
    translation,
)
from train.tasks import Task

TASKS: dict[type[Task], TaskModule] = {
    classification.TASK: classification,
    regression.TASK: regression,
    segmentation.TASK: segmentation,
    reconstruction.TASK: reconstruction,
    density.TASK: density,
    language.TASK: language,
    algorithm.TASK: algorithm,
    translation.TASK: translation,
    captioning.TASK: captioning,
    transcription.TASK: transcription,
    states.TASK: states,
}
"""The module of every task in ``train.tasks.TASKS``."""


def module_of(task: Task) -> TaskModule:
    """The module that measures runs of a task."""
    return TASKS[type(task)]
