"""Several runs in one plot."""

import pathlib
from collections.abc import Sequence

from evals.run import Run, restore

COLORS = ("#4c8dff", "#e8743b", "#8a63d2", "#3fa45b")
"""Colours of the runs in a plot."""


def named(run_dirs: Sequence[pathlib.Path]) -> dict[str, Run]:
    """Runs by the names of their recipes, or by their folder names if several have the same recipe.

    Raises ValueError if two runs would have the same name, or if there are more runs than colours.
    """
    if not 1 <= len(run_dirs) <= len(COLORS):
        raise ValueError(
            f"{len(run_dirs)} runs, allowed: 1 to {len(COLORS)}, as many as the plot has colours"
        )
    runs = [restore(run_dir) for run_dir in run_dirs]
    recipes = [run.recipe.name for run in runs]
    by_name = {}
    for run, recipe in zip(runs, recipes, strict=True):
        name = recipe if recipes.count(recipe) == 1 else run.folder.path.resolve().name
        if name in by_name:
            raise ValueError(
                f"{run.folder.path}: another run is called {name!r} too; "
                "folders of one recipe need different names"
            )
        by_name[name] = run
    return by_name
