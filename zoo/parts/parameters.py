"""Parameters as leaves with names, and those of one model that fit another."""

from typing import Any

import jax

from zoo.base import Params


def restore_matching(earlier: Params, fresh: Params) -> Params:
    """``fresh`` with every leaf that has the same path and shape in ``earlier`` taken from there.

    So an MLP or a ConvNet starts from a deep belief net or an autoencoder, whose encoders have the names of its layers, and keeps
    its fresh output layer.  Raises ValueError when nothing is taken.
    """
    known, takes = leaves_by_path(earlier), shared(earlier, fresh)
    if not any(takes.values()):
        there = ", ".join(f"{path} {list(leaf.shape)}" for path, leaf in known.items())
        raise ValueError(
            f"transfer: no earlier parameter has the path and shape of one of the model's; there are {there}"
        )
    flat, structure = jax.tree.flatten(fresh)
    taken = [
        known[path].astype(leaf.dtype) if takes[path] else leaf
        for path, leaf in zip(takes, flat, strict=True)
    ]
    return jax.tree.unflatten(structure, taken)


def shared(earlier: Params, fresh: Params) -> dict[str, bool]:
    """{path of every fresh leaf: whether ``restore_matching`` takes it from ``earlier``}."""
    known = leaves_by_path(earlier)
    return {
        path: path in known and known[path].shape == leaf.shape
        for path, leaf in leaves_by_path(fresh).items()
    }


def leaves_by_path(params: Params) -> dict[str, Any]:
    """{"layer_0.kernel": leaf, ...}."""
    named = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in named}
