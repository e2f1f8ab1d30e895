"""The command zoo-evals; see ``train.entry``."""

from typing import Any

from train.entry import run


def zoo_evals() -> Any:
    """Also ``python -m evals``."""
    return run("evals.__main__")
