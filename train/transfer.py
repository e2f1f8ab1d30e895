"""How the parameters of one stage, or of a file, initialise the next.

A transfer is a pure function (earlier Config, earlier params, Config, fresh params) -> params.  A recipe names it.
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from zoo.base import Params

Transfer = Callable[[Any, Params, Any, Params], Params]


def shared(earlier: Params, fresh: Params) -> dict[str, bool]:
    """{path of every fresh leaf: whether there is an earlier one with the same path and shape}."""
    known = _leaves(earlier)
    return {path: path in known and known[path].shape == leaf.shape for path, leaf in _leaves(fresh).items()}


def matching(earlier_cfg: Any, earlier: Params, cfg: Any, fresh: Params) -> Params:
    """Takes every leaf that has the same path and shape in the earlier stage, and keeps the fresh one elsewhere.

    Raises ValueError when nothing matches.
    """
    known, takes = _leaves(earlier), shared(earlier, fresh)
    if not any(takes.values()):
        there = ", ".join(f"{path} {list(leaf.shape)}" for path, leaf in known.items())
        raise ValueError(f"transfer: no earlier parameter has the path and shape of one of the model's; there are {there}")

    def choose(path: Any, leaf: Any) -> Any:
        return known[_name(path)].astype(leaf.dtype) if takes[_name(path)] else leaf

    return jax.tree_util.tree_map_with_path(choose, fresh)


TRANSFERS: dict[str, Transfer] = {"matching": matching}


def load_params(source: str | os.PathLike[str], cfg: Any) -> Params:
    """Parameters of a run folder's best checkpoint, or of a file: ``zoo.interop.save_safetensors``'s, or torchvision's.

    cfg: of the model that they are for; of torchvision's weights only what fits it is read.
    Raises ValueError, RunError, CheckpointError or FileNotFoundError naming the source and what is wrong with it.
    """
    from train.run_folder import load
    from zoo.interop import load_safetensors
    from zoo.torchvision import is_torchvision, load_torchvision

    path = pathlib.Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{source}: no such run folder or file")
    if path.is_dir():
        return load(path)[2]
    return load_torchvision(path, cfg, strict=False) if is_torchvision(path) else load_safetensors(path)


def _leaves(params: Params) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
