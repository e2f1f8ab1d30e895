"""Training: recipes, the loop, checkpoints, data.

    import train, zoo

    result = train.fit(*zoo.create("mlp/digits"), "digits", epochs=20)  # in memory
    module, cfg, params = train.load("runs/digits")  # a run of ``zoo-train``

Names are loaded on first use, so that importing the package stays fast.
"""

from train.ours import begin as _begin

_begin("zoo")

import importlib  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from train.data import DataError as DataError
    from train.data import load_data as load_data
    from train.dataset import Dataset as Dataset
    from train.engine.checkpoint import CheckpointError as CheckpointError
    from train.engine.loop import Diverged as Diverged
    from train.engine.optimizer import Optimizer as Optimizer
    from train.engine.run_folder import RunError as RunError
    from train.engine.run_folder import load as load
    from train.engine.step import TrainState as TrainState
    from train.engine.step import init_state as init_state
    from train.engine.step import make_evaluate as make_evaluate
    from train.engine.step import make_step as make_step
    from train.engine.trainer import Result as Result
    from train.engine.trainer import fit as fit
    from train.engine.trainer import run as run
    from train.recipe import Recipe as Recipe
    from train.recipe import Target as Target
    from train.recipes import RECIPES as RECIPES

_HOMES = {
    "engine.checkpoint": ["CheckpointError"],
    "data": ["DataError", "load_data"],
    "dataset": ["Dataset"],
    "engine.loop": ["Diverged"],
    "engine.optimizer": ["Optimizer"],
    "recipe": ["Recipe", "Target"],
    "recipes": ["RECIPES"],
    "engine.run_folder": ["RunError", "load"],
    "engine.step": ["TrainState", "init_state", "make_evaluate", "make_step"],
    "engine.trainer": ["Result", "fit", "run"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'train' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"train.{_HOME[name]}"), name)
    globals()[name] = value
    return value
