"""How the parameters of one stage initialise the next.

A transfer is a pure function (earlier Config, earlier params, Config, fresh params) -> params.  A recipe names it.
"""

from collections.abc import Callable
from typing import Any

import jax

from zoo.base import Params

Transfer = Callable[[Any, Params, Any, Params], Params]


def matching(earlier_cfg: Any, earlier: Params, cfg: Any, fresh: Params) -> Params:
    """Takes every leaf that has the same path and shape in the earlier stage, and keeps the fresh one elsewhere.

    Raises ValueError when nothing matches.
    """
    known = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(earlier)}
    taken = 0

    def choose(path: Any, leaf: Any) -> Any:
        nonlocal taken
        candidate = known.get(jax.tree_util.keystr(path))
        if candidate is None or candidate.shape != leaf.shape:
            return leaf
        taken += 1
        return candidate.astype(leaf.dtype)

    params = jax.tree_util.tree_map_with_path(choose, fresh)
    if not taken:
        raise ValueError(f"transfer: no parameter of the earlier stage fits; it has {', '.join(known)}")
    return params


TRANSFERS: dict[str, Transfer] = {"matching": matching}
