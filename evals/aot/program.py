"""Compiles a recipe's training step as the trainer does, without its devices and without data."""

import dataclasses
import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from evals.aot.operations import Operation, operations, size
from evals.hlo import Collective, collectives
from train.augment import deform_batch
from train.engine.parallel import AXIS, EVERYWHERE, Layout, Parallel
from train.engine.step import example_keys, free, init_state, make_step, root_key
from train.recipe import Recipe, module_of
from zoo.base import Conditional, Model, Params, Recurrent

Platform = Literal["tpu", "cuda"]
PACKAGES = {
    "tpu": (("libtpu",), "pip install 'purezoo[tpu]'"),
    "cuda": (
        ("jax_cuda12_plugin", "jax_plugins.xla_cuda12"),
        "pip install jax-cuda12-plugin jax-cuda12-pjrt, of jax's version",
    ),
}
"""{platform: (modules of its compiler, how to install it)}."""


ONCE = "float32, once"
"""The expected reduction of gradients over devices."""
LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",  # otherwise it queries the metadata server
    "TPU_ACCELERATOR_TYPE": "v5litepod-256",  # for this, and warns if there is no answer
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # otherwise only one process at a time may load it
}
"""Environment for libtpu to compile without hardware; the topology determines the chips."""
OVERLAP = {
    "tpu": {
        # Run all-reduces asynchronously behind products; not XLA's default.
        "xla_enable_async_all_reduce": True,
        "xla_tpu_enable_async_collective_fusion": True,
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
        "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
        "xla_tpu_overlap_compute_collective_tc": True,
        # One all-reduce per parameter: a combined one would wait for the last gradient, with
        # nothing left to overlap.
        "xla_jf_crs_combiner_threshold_in_bytes": 0,
        "xla_jf_crs_combiner_threshold_count": 1,
    },
    "cuda": {},
}
"""{platform: compiler options} that overlap gradient reduction with the backward pass."""


class MissingCompilerError(RuntimeError):
    """The packages that compile for a platform are not installed."""


class Step(NamedTuple):
    """A traced step, to be lowered and compiled, and the work of one device in it.

    forward: operations of augmentation and loss alone.  moved: bytes of arguments and results (the
    state in and out, the batch in).  params, metrics: bytes of the trained parameters, and of the
    metric sums that are reduced along with the gradients.
    """

    traced: Any
    operations: list[Operation]
    forward: list[Operation]
    moved: int
    params: int
    metrics: int


class Program(NamedTuple):
    """A compiled step.

    memory: bytes on one device: arguments, results, intermediate results and code.
    """

    memory: int
    collectives: list[Collective]


def devices_of(
    platform: Platform, topology: str, target: pathlib.Path | None = None
) -> Sequence[Any]:
    """Devices of TPUs ("v5e:16x16") or GPUs ("1x32x8": slices, machines, GPUs per machine).

    target: text file with XLA's GpuTargetConfigProto that describes the GPUs.
    Raises MissingCompilerError, or ValueError for a topology that does not exist.
    """
    from jax.experimental import topologies

    modules, install = PACKAGES[platform]
    if not any(_importable(module) for module in modules):
        raise MissingCompilerError(
            f"--platform {platform} needs its compiler, which needs no hardware: {install}"
        )
    if platform == "tpu":
        for name, value in LIBTPU.items():
            os.environ.setdefault(name, value)
    try:
        if target is not None:
            text = target.read_text("utf-8")
            return topologies.get_topology_desc(
                platform=platform, target_config=text, topology=topology
            ).devices
        # By default each of a v4 chip's two cores is a device.
        options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
        return topologies.get_topology_desc(
            platform=platform, topology_name=topology, **options
        ).devices
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(f"--topology {topology}: {str(error).splitlines()[0]}") from None


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def make(
    recipe: Recipe[Any, Any],
    batch: int,
    devices: Sequence[Any],
    platform: str,
    length: int | None = None,
    labels: int | None = None,
) -> Step:
    """The step of a recipe, sharded over devices as the trainer does by default.

    batch: total examples, instead of the recipe's; shapes come from the model's example batch,
    which the plan of steps contains directly.  length: of its sequences; None keeps the example
    batch's.  labels: of a sequence whose targets are a labelling (``zoo.base.Outputs.aligned``);
    None keeps the example batch's proportion to the length.
    """
    cfg, module = recipe.model, module_of(recipe.model)
    layout = Layout(Parallel(), devices=devices)
    optimizer = recipe.optimizer.build(recipe.steps or 1000, 100)

    def build(**options: Any) -> Any:
        nonfinite = "skip" if recipe.on_nonfinite == "skip" else "note"
        settings = {"nonfinite": nonfinite, "only": recipe.optimizer.only, **options}
        return make_step(
            module, cfg, optimizer, recipe.augment, load=lambda source: source[1], **settings
        )

    key = jax.eval_shape(lambda: root_key(0))
    state = jax.eval_shape(lambda key: init_state(module, cfg, optimizer, key, batch), key)
    examples = jax.eval_shape(lambda key: module.example_batch(cfg, key, layout.rows(batch)), key)
    if isinstance(module, Recurrent | Conditional):
        examples = _of_length(examples, length, labels, aligned=cfg.outputs.aligned)
    _, metrics = jax.eval_shape(build(), state, ((), examples), key)
    plan = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), examples)
    number = jax.ShapeDtypeStruct((), jnp.int32)

    def put(tree: Any, spec: PartitionSpec = EVERYWHERE) -> Any:
        sharding = None if layout.single else NamedSharding(layout.mesh, spec)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )

    sharded = put(plan, PartitionSpec(None, AXIS))
    steps: Any = layout.steps(build, recipe.steps_per_dispatch > 1, batch)
    traced = steps.trace(
        put(state), put(metrics), (), (sharded, put(number)), put(number), put(key)
    )
    share, carry = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (leaf.shape[0] // layout.parts, *leaf.shape[1:]), leaf.dtype
        ),
        (examples, state.carry),
    )
    return Step(
        traced,
        operations(traced.jaxpr, platform),
        operations(_forward(recipe, module, state.params, carry, share, key), platform),
        2 * size(state) + size(share),
        size(free(state.params, recipe.optimizer.only)),
        size(metrics),
    )


def _of_length(
    examples: dict[str, Any], length: int | None, labels: int | None, *, aligned: bool
) -> dict[str, Any]:
    """Shapes of a batch whose sequences, along axis 1, have ``length`` steps; None keeps them.

    Images and per-sequence targets keep their shapes.  Targets that are not aligned with the
    outputs have ``labels`` places; by default as many for each step as in the examples.
    """
    steps = max(leaf.shape[1] for leaf in jax.tree.leaves(examples["inputs"]) if leaf.ndim > 1)
    factor = (length or steps) / steps

    def resized(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        of_targets = path[0].key in ("targets", "mask")
        once = of_targets and examples["mask"].ndim == 1
        if once or leaf.ndim == 1 or path[-1].key == "image":
            return leaf
        rows, size, *rest = leaf.shape
        if of_targets and not aligned:
            size = labels or max(round(factor * size), 1)
        else:
            size = length or size
        return jax.ShapeDtypeStruct((rows, size, *rest), leaf.dtype)

    return jax.tree_util.tree_map_with_path(resized, examples)


def _forward(
    recipe: Recipe[Any, Any], module: Model, params: Params, carry: Any, batch: Any, key: Any
) -> Any:
    def loss(params: Params, carry: Any, batch: Any, key: jax.Array) -> Any:
        keys = example_keys(key, jnp.int32(0), batch["mask"].shape[0])
        batch = deform_batch(recipe.augment, batch, keys)
        return module.loss(recipe.model, params, batch, key=keys, carry=carry)[0]

    return jax.make_jaxpr(loss)(params, carry, batch, key)


def compile_step(step: Step, platform: str, options: dict[str, Any] | None = None) -> Program:
    """Compiles the step with compiler ``options``.

    Raises RuntimeError if the compiler refuses, for example because the step does not fit into
    memory.
    """
    compiled = step.traced.lower(lowering_platforms=(platform,)).compile(compiler_options=options)
    memory = compiled.memory_analysis()
    arrays = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    return Program(arrays + memory.generated_code_size_in_bytes, collectives(compiled.as_text()))


def reduced(found: Sequence[Collective], params: float, metrics: float) -> str:
    """How gradients are reduced: ONCE, or a description of the difference.

    params, metrics: bytes to reduce; the compiler may merge equal metrics.
    """
    sums = reductions(found)
    narrow = [
        f"{dtype} {volume / 1e6:,.1f} MB"
        for dtype, volume in sums.items()
        if dtype in ("bf16", "f16")
    ]
    if narrow:
        return ", ".join(narrow)
    volume = sums.get("f32", 0)
    return ONCE if params <= volume <= params + metrics else f"float32, {volume / params:.2f} times"


def reductions(found: Sequence[Collective], asynchronous: bool = False) -> dict[str, float]:
    """{element type: bytes} reduced over devices in a step; asynchronous: only overlapped ones."""
    operations = [each for each in found if each.kind in ("all-reduce", "reduce-scatter")]
    return volumes([each for each in operations if each.asynchronous or not asynchronous])


def volumes(found: Sequence[Collective]) -> dict[str, float]:
    """{element type: bytes} of collectives in one step.

    The trainer's loop over steps has a data-dependent trip count; its body counts once.
    """
    sums: dict[str, float] = {}
    for each in found:
        for dtype, volume in each.sizes.items():
            sums[dtype] = sums.get(dtype, 0) + volume * (1 if each.times is None else each.times)
    return sums


def with_type(recipe: Recipe[Any, Any], compute_dtype: str | None) -> Recipe[Any, Any]:
    """The recipe with this compute type; unchanged if None."""
    if compute_dtype is None:
        return recipe
    return dataclasses.replace(
        recipe, model=dataclasses.replace(recipe.model, compute_dtype=compute_dtype)
    )
