"""Any model of the zoo as a ``jax.export`` artefact, which runs without this package.

from zoo import interop

data = interop.export(mlp, cfg, params=params).serialize()
"""

from functools import partial
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from zoo.base import Model, Params
from zoo.interop.shapes import require_fit, shapes_of

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(
    module: Model,
    cfg: Any,
    *,
    params: Params | None = None,
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu"),
) -> jax.export.Exported:
    """The deterministic model as an artefact for ``platforms`` and any batch size.

    ``data = export(...).serialize()`` gives bytes; ``jax.export.deserialize(data).call(inputs)``
    runs them, without this package.
    params: stored in the artefact.  If None, they are an argument, ``.call(params, inputs)``, with
    the shapes and types that ``module.init`` draws.
    Inputs have the shapes of ``example_batch``; only the batch axis is free.
    Raises ValueError for an unknown platform, and one naming every parameter that is missing,
    unknown or has another shape.
    """
    if isinstance(platforms, str) or not platforms or not set(platforms) <= set(PLATFORMS):
        raise ValueError(
            f"platforms={platforms!r}, allowed: a tuple of {', '.join(map(repr, PLATFORMS))}"
        )
    shapes = shapes_of(module.init, cfg)
    example = jax.eval_shape(partial(module.example_batch, cfg, batch_size=2), jax.random.key(0))[
        "inputs"
    ]
    (batch,) = jax.export.symbolic_shape("batch")
    inputs = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype), example
    )
    # The Config stays in the closure: if it were an argument, its pytree type would have to be
    # registered where the artefact is loaded.
    if params is None:
        run = jax.jit(lambda params, inputs: module.apply(cfg, params, inputs))
        return jax.export.export(run, platforms=platforms)(shapes, inputs)
    require_fit("params", params, shapes, dtypes=False)
    arrays = jax.tree.map(jnp.asarray, params)  # NumPy arrays cannot be indexed with tracers
    run = jax.jit(lambda inputs: module.apply(cfg, arrays, inputs))
    return jax.export.export(run, platforms=platforms)(inputs)
