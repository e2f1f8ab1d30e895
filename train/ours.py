"""Whether ``zoo``, ``train`` and ``evals`` are ours: a file or folder of the user's of that name hides our package.

It imports nothing of ours: ``evals`` runs this file by its place, before it trusts ``train``.
"""

import importlib.util
import os
import sys

PROGRAMS = ("zoo-train", "zoo-evals")


def require_ours(*names: str) -> None:
    """Raises ImportError that names what hides one of these packages of ours, which is not run; a program ends with that line."""
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    for name in names:
        loaded = sys.modules.get(name)
        spec = importlib.util.find_spec(name) if loaded is None else None
        places = [getattr(loaded, "__file__", None), spec and spec.origin, *((spec and spec.submodule_search_locations) or ())]
        there = next(filter(None, places), None)
        if there is None or os.path.dirname(os.path.realpath(there)) == os.path.join(root, name):
            continue  # of what is not there at all, the import that follows tells
        message = f"{name} is {there}, not purezoo's package of that name: rename it, or run {' and '.join(PROGRAMS)} instead"
        if sys.argv[0] == "-m" or os.path.basename(sys.argv[0]) in PROGRAMS:  # python -m, which has not yet found its module
            sys.exit(f"error: {message}")
        raise ImportError(message)
