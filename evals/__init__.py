"""Evaluation: metrics, reports, predictions, the ledger of results, speed.

    import evals

    evaluation = evals.evaluate("runs/convnet-digits")      # what ``zoo-evals runs/convnet-digits`` does, without the files
    evaluation.metrics                                      # {"test loss nats": ..., "test accuracy %": ..., ...}
    evals.predict("runs/convnet-digits", ["seven.png"])     # [("seven.png", probabilities [classes])]

Names are loaded on first use, so that importing the package stays fast.
"""

import os
import runpy

# By its place, as the name may lead to another ``train``.
runpy.run_path(os.path.join(os.path.dirname(__path__[0]), "train", "ours.py"))["begin"](
    "train", "zoo"
)

import importlib  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from evals.base import Evaluation as Evaluation
    from evals.evaluation import evaluate as evaluate
    from evals.evaluation import write_evaluation as write_evaluation
    from evals.metrics import confusion_matrix as confusion_matrix
    from evals.report.document import write_report as write_report
    from evals.tasks.classification import predict as predict

_HOMES = {
    "base": ["Evaluation"],
    "evaluation": ["evaluate", "write_evaluation"],
    "metrics": ["confusion_matrix"],
    "tasks.classification": ["predict"],
    "report.document": ["write_report"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = [
    "Evaluation",
    "confusion_matrix",
    "evaluate",
    "predict",
    "write_evaluation",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'evals' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"evals.{_HOME[name]}"), name)
    globals()[name] = value
    return value
