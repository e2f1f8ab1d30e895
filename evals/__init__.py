"""Evaluation: metrics, reports, predictions, the results ledger, benchmarks.

    import evals

    # What ``zoo-evals runs/convnet-digits`` does, without writing files.
    evaluation = evals.evaluate("runs/convnet-digits")
    evaluation.metrics    # {"test loss nats": ..., "test accuracy %": ..., ...}

    # [("seven.png", probabilities [classes])]
    evals.predict("runs/convnet-digits", ["seven.png"])

Names are loaded on first use, to keep the import fast.
"""

import os
import runpy

# Loaded by path: another package called ``train`` may come first on sys.path.
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
