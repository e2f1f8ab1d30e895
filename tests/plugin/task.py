"""A task: the bias of a coin."""

import dataclasses

from train.tasks import Task


@dataclasses.dataclass(frozen=True)
class Bias(Task):
    """side: the side of a coin that counts."""

    name = "bias"
    side: str
