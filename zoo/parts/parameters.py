"""Parameters by name, and their transfer from one model to another."""

from typing import Any

import jax

from zoo.base import Params


def restore_matching(earlier: Params, fresh: Params) -> Params:
    """``fresh``, with every leaf replaced by the leaf of ``earlier`` with the same path and shape.

    Leaves without such a match stay fresh.  So an MLP or a ConvNet can start from a deep belief net
    or an autoencoder, whose encoders use the same layer names, and keep its fresh output layer.
    Raises ValueError if no leaf matches.
    """
    known, matches = leaves_by_path(earlier), shared(earlier, fresh)
    if not any(matches.values()):
        table = ", ".join(f"{path} {list(leaf.shape)}" for path, leaf in known.items())
        raise ValueError(
            f"transfer: no earlier parameter has the path and shape of one of the model's; "
            f"there are {table}"
        )
    flat, structure = jax.tree.flatten(fresh)
    restored = [
        known[path].astype(leaf.dtype) if matches[path] else leaf
        for path, leaf in zip(matches, flat, strict=True)
    ]
    return jax.tree.unflatten(structure, restored)


def shared(earlier: Params, fresh: Params) -> dict[str, bool]:
    """{path of a fresh leaf: whether ``restore_matching`` takes it from ``earlier``}."""
    known = leaves_by_path(earlier)
    return {
        path: path in known and known[path].shape == leaf.shape
        for path, leaf in leaves_by_path(fresh).items()
    }


def leaves_by_path(params: Params) -> dict[str, Any]:
    """{"layer_0.kernel": leaf, ...}."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
