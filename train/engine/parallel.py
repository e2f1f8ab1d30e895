"""Parallel training: the only module that depends on the number of devices.

All strategies train on the same batches with the same keys and compute the same sums.  A run may
therefore resume with another strategy or number of devices; its losses and parameters then differ
only by rounding.

jit        arrays with a ``NamedSharding`` and one program, partitioned by XLA.  Only the gradient
           is a ``jax.shard_map`` over parts of the batch: XLA's partitioner would reduce it in the
           compute type (bfloat16) and, for convolutions, in the layout of the convolution, which
           may be larger than the kernel
shard_map  the whole step, or loop of steps, as a program per device
pmap       the same with the older ``jax.pmap``: single process, without accumulation
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train.engine.step import Metrics, TrainState, make_steps
from train.settings import settle

AXIS = "data"
"""The mesh axis along which the batch, or the replicas, are sharded."""
Strategy = Literal["auto", "jit", "shard_map", "pmap"]
EVERYWHERE, SPREAD = PartitionSpec(), PartitionSpec(AXIS)


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How to distribute a run over devices; changes its result only by rounding.

    strategy: auto means jit.
    devices: number of devices to use; all by default, and always all with several processes.
    accumulate: number of parts of a batch, computed one after the other to save memory.
    remat: recompute activations in the backward pass.
    """

    strategy: Strategy = "auto"
    devices: int | None = None
    accumulate: int = 1
    remat: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        if self.strategy not in ("auto", "jit", "shard_map", "pmap"):
            raise ValueError(f"parallel={self.strategy!r}, allowed: auto, jit, shard_map, pmap")
        settle(self, "")
        for field in ("devices", "accumulate"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field}={value!r}, allowed: a positive integer")
        if self.strategy == "pmap" and self.accumulate > 1:
            raise ValueError(
                f"accumulate={self.accumulate}, allowed with parallel='pmap': 1; "
                "the other strategies accumulate"
            )


class Layout:
    """A one-dimensional device mesh; shards batches, or else replicas, and replicates the rest."""

    def __init__(
        self, parallel: Parallel = Parallel(), replicas: int = 1, devices: Any = None
    ) -> None:
        """Creates the mesh.

        replicas: number of runs trained in parallel; the number of devices is reduced to a divisor.
        devices: used instead of ``jax.devices()``.
        Raises ValueError if there are fewer devices than ``parallel`` requests, or if its options
        cannot be combined with replicas or several processes.
        """
        devices = jax.devices() if devices is None else list(devices)
        processes = len({device.process_index for device in devices})
        if processes > 1 and parallel.strategy == "pmap":
            raise ValueError(
                f"parallel='pmap', allowed with {processes} processes: auto, jit, shard_map"
            )
        if processes > 1 and parallel.devices not in (None, len(devices)):
            raise ValueError(
                f"devices={parallel.devices}, "
                f"allowed with {processes} processes: all {len(devices)}"
            )
        if parallel.devices is not None:
            if parallel.devices > len(devices):
                raise ValueError(
                    f"devices={parallel.devices}, allowed: 1 to {len(devices)}, those available"
                )
            devices = devices[: parallel.devices]
        if replicas > 1:
            if processes > 1:
                raise ValueError(f"replicas: {replicas}, allowed with {processes} processes: 1")
            if parallel.strategy == "pmap":
                raise ValueError(f"replicas: {replicas}, allowed with parallel='pmap': 1")
            devices = devices[
                : max(count for count in range(1, len(devices) + 1) if replicas % count == 0)
            ]
        self.parallel, self.replicas, self.processes = parallel, replicas, processes
        self.mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
        self.parts = 1 if replicas > 1 else len(devices)
        """Number of shards of a batch."""

    @property
    def single(self) -> bool:
        """Whether the mesh has only one device."""
        return self.mesh.size == 1

    def describe(self) -> str:
        """One line, such as "8 devices (jit)"."""
        if self.single:
            return "1 device"
        name = "jit" if self.parallel.strategy == "auto" else self.parallel.strategy
        among = f" of {self.processes} processes" if self.processes > 1 else ""
        return f"{self.mesh.size} devices{among} ({name})"

    def rows(self, batch_size: int) -> int:
        """``batch_size`` rounded up to a divisible number of rows; additional rows are masked."""
        parts = self.parts * self.parallel.accumulate
        return math.ceil(batch_size / parts) * parts

    def replicate(self, tree: Any) -> Any:
        """Puts arrays, identical in all processes, on every device."""
        return self._put(tree, EVERYWHERE)

    def shard(self, tree: Any, axis: int = 0) -> Any:
        """Shards arrays, identical in all processes, along the axis of replicas or rows."""
        return self._put(tree, PartitionSpec(*[None] * axis, AXIS))

    def shard_rows(self, tree: Any, axis: int = 0) -> Any:
        """Shards rows of batches, or replicates them for replicas, which each need all rows."""
        return self.replicate(tree) if self.replicas > 1 else self.shard(tree, axis)

    def _put(self, tree: Any, spec: PartitionSpec) -> Any:
        if self.single:
            return jax.device_put(tree)
        sharding = NamedSharding(self.mesh, spec)
        if self.processes == 1:
            return jax.device_put(tree, sharding)
        return jax.tree.map(functools.partial(_global, sharding), tree)

    def local(self, tree: Any) -> Any:
        """Moves arrays to this process's first device, except those it holds only in part."""
        if self.single:
            return tree
        first = jax.local_devices()[0]

        def fetch(leaf: jax.Array) -> jax.Array:
            if leaf.is_fully_replicated:
                return next(
                    shard.data for shard in leaf.addressable_shards if shard.device == first
                )
            return jax.device_put(leaf, first) if leaf.is_fully_addressable else leaf

        return jax.tree.map(fetch, tree)

    def local_rows(self, rows: int) -> slice:
        """The range of a batch's rows on this process's devices."""
        indices = NamedSharding(self.mesh, SPREAD).addressable_devices_indices_map((rows,)).values()
        ends = [index[0].indices(rows)[:2] for index in indices if index is not None]
        return slice(min(start for start, _ in ends), max(stop for _, stop in ends))

    def from_process_local(self, tree: Any, rows: int) -> Any:
        """[steps, local rows, ...] of each process -> [steps, rows, ...], sharded along rows."""
        if self.single:
            return jax.device_put(tree)
        sharding = NamedSharding(self.mesh, PartitionSpec(None, AXIS))

        def put(leaf: np.ndarray) -> jax.Array:
            shape = (leaf.shape[0], rows, *leaf.shape[2:])
            return jax.make_array_from_process_local_data(sharding, leaf, shape)

        return jax.tree.map(put, tree)

    def state_shardings(self, batch_size: int) -> TrainState | NamedSharding | None:
        """The shardings of a state's leaves; None on one device."""
        if self.single:
            return None
        if self.replicas > 1:
            return NamedSharding(self.mesh, SPREAD)
        everywhere = NamedSharding(self.mesh, EVERYWHERE)
        # A carry with an indivisible number of rows is stored replicated; each dispatch pads and
        # shards it (_with_padded_carry).
        carry = SPREAD if batch_size % self.parts == 0 else EVERYWHERE
        return _state_of(everywhere, NamedSharding(self.mesh, carry))

    def place_state(self, state: TrainState, batch_size: int) -> TrainState:
        """Puts a state, identical in all processes, on the devices by ``state_shardings``."""
        shardings = self.state_shardings(batch_size)
        if shardings is None:
            return jax.tree.map(jnp.asarray, state)
        if not isinstance(shardings, TrainState):
            return jax.device_put(state, shardings)
        carry = self._put(state.carry, shardings.carry.spec)
        return self.replicate(state._replace(carry=()))._replace(carry=carry)

    def steps(self, build: Callable[..., Callable], many: bool, batch_size: int) -> Callable:
        """A compiled ``train.engine.step.make_steps``, which donates its state.

        build(**how) -> step: ``make_step`` without the options decided here; build(index, **how)
        with replicas.  With replicas, state, metrics, plan entries and key have a leading
        [replicas] axis.
        """
        options = {"accumulate": self.parallel.accumulate, "remat": self.parallel.remat}
        if self.replicas > 1:
            return self._replicated(functools.partial(build, **options), many)
        if self.single:
            run = make_steps(build(**options), many)
        elif self.parallel.strategy in ("auto", "jit"):
            run = make_steps(build(**options, axis=AXIS, spread=self._spread), many)
        else:
            run = make_steps(build(**options, axis=AXIS), many)
            run = self._mapped(run) if self.parallel.strategy == "pmap" else self._sharded(run)
        run = _with_padded_carry(run, batch_size, self.rows(batch_size))
        if self.single:
            return jax.jit(run, donate_argnums=0)
        shardings = (self.state_shardings(batch_size), NamedSharding(self.mesh, EVERYWHERE))
        return jax.jit(run, donate_argnums=0, out_shardings=shardings)

    def _spread(self, gradients: Callable) -> Callable:
        # Arguments: (params, carry, (arrays, entry), key, step).  check_vma=False, because
        # make_gradients reduces over devices itself.
        source = (EVERYWHERE, SPREAD)
        inputs, outputs = (
            (EVERYWHERE, SPREAD, source, EVERYWHERE, EVERYWHERE),
            (EVERYWHERE, EVERYWHERE, SPREAD),
        )
        return jax.shard_map(
            gradients, mesh=self.mesh, in_specs=inputs, out_specs=outputs, check_vma=False
        )

    def _sharded(self, run: Callable) -> Callable:
        state, plan = _state_of(EVERYWHERE, SPREAD), (PartitionSpec(None, AXIS), EVERYWHERE)
        inputs = (state, EVERYWHERE, EVERYWHERE, plan, EVERYWHERE, EVERYWHERE)
        return jax.shard_map(
            run, mesh=self.mesh, in_specs=inputs, out_specs=(state, EVERYWHERE), check_vma=False
        )

    def _mapped(self, run: Callable) -> Callable:
        state: Any = _state_of(None, 0)
        inputs = (state, None, None, (1, None), None, None)
        mapped = jax.pmap(
            run, AXIS, in_axes=inputs, out_axes=(state, None), devices=list(self.mesh.devices.flat)
        )

        # pmap needs an explicit leading device axis where shard_map divides rows.
        def divide(tree: Any, axis: int) -> Any:
            return jax.tree.map(
                lambda leaf: leaf.reshape(
                    *leaf.shape[:axis], self.parts, -1, *leaf.shape[axis + 1 :]
                ),
                tree,
            )

        def steps(
            state: TrainState, metrics: Metrics, arrays: Any, plan: Any, count: Any, key: Any
        ) -> tuple[TrainState, Metrics]:
            state, plan = (
                state._replace(carry=divide(state.carry, 0)),
                (divide(plan[0], 1), plan[1]),
            )
            state, metrics = mapped(state, metrics, arrays, plan, count, key)
            return state._replace(
                carry=jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), state.carry)
            ), metrics

        return steps

    def _replicated(self, build: Callable[..., Callable], many: bool) -> Callable:
        def one(
            state: TrainState,
            metrics: Metrics,
            arrays: Any,
            plan: Any,
            count: Any,
            key: Any,
            index: Any,
        ) -> Any:
            return make_steps(build(index), many)(state, metrics, arrays, plan, count, key)

        def run(
            state: TrainState, metrics: Metrics, arrays: Any, plan: Any, count: Any, key: Any
        ) -> Any:
            indices = jnp.arange(self.replicas)
            return jax.vmap(one, (0, 0, None, (0, None), None, 0, 0))(
                state, metrics, arrays, plan, count, key, indices
            )

        if self.single:
            return jax.jit(run, donate_argnums=0)
        return jax.jit(run, donate_argnums=0, out_shardings=NamedSharding(self.mesh, SPREAD))


def _state_of(rest: Any, carry: Any) -> TrainState:
    """A TrainState with ``carry`` as its carry and ``rest`` in all other fields."""
    return TrainState(
        **{field: carry if field == "carry" else rest for field in TrainState._fields}
    )


def _global(sharding: NamedSharding, leaf: Any) -> jax.Array:
    """An array sharded over several processes, given all of its values in each."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(
            _global(sharding, jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
        )
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def _with_padded_carry(run: Callable, batch_size: int, rows: int) -> Callable:
    """Pads the carry to ``rows`` within ``run`` only, so that it is saved as on one device."""
    if rows == batch_size:
        return run

    def steps(state: TrainState, *arguments: Any) -> tuple[TrainState, Metrics]:
        def pad(leaf: jax.Array) -> jax.Array:
            return jnp.concatenate(
                [leaf, jnp.broadcast_to(leaf[:1], (rows - batch_size, *leaf.shape[1:]))]
            )

        state, metrics = run(state._replace(carry=jax.tree.map(pad, state.carry)), *arguments)
        return state._replace(
            carry=jax.tree.map(lambda leaf: leaf[:batch_size], state.carry)
        ), metrics

    return steps
