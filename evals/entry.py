"""The command zoo-evals; see ``train.entry``."""

from typing import Any

from train.entry import run


def zoo_evals() -> Any:
    """Runs the command; ``python -m evals`` does too."""
    return run("evals.__main__")
