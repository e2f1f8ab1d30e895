"""Evaluations of modified runs and tables."""

import dataclasses
from typing import Any

from evals.base import Evaluation


def changed(evaluation: Evaluation, **fields: Any) -> Evaluation:
    """The evaluation with some fields of its Subject replaced: run, table, means, ..."""
    return dataclasses.replace(evaluation, subject=evaluation.subject._replace(**fields))
