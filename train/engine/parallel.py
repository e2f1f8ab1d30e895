"""How a run uses the devices that are there.  Nothing else in the code knows how many there are.

Every strategy trains on the same batches with the same keys, and adds up the same sums, so that a run may go on with another
strategy or another number of devices: its losses and parameters then differ by rounding only.

jit        arrays with a ``NamedSharding``, one program for all devices, which XLA partitions; but for the gradient, which each
           device computes for its part of the batch, as XLA's partitioner would reduce it in the type of the computation
           (bfloat16), and before a convolution's kernel is brought into its form, which may be larger
shard_map  the whole step, and the loop over many, as one device's program
pmap       the same through ``jax.pmap``, as older code has it: for one process, without accumulation
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
"""The mesh axis along which a batch, or the replicas, are spread."""
Strategy = Literal["auto", "jit", "shard_map", "pmap"]
EVERYWHERE, SPREAD = PartitionSpec(), PartitionSpec(AXIS)


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How to spread a run; no setting changes its result but for rounding.

    strategy: auto is jit.  devices: how many to use, all unless given; of several processes always all.
    accumulate: parts that a batch is worked through in, one after the other, to take less memory.
    remat: keep less for the backward pass and compute it again.
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
                f"accumulate={self.accumulate}, allowed with parallel='pmap': 1; the other strategies accumulate"
            )


class Layout:
    """Devices in a row, and what lies where: a batch is spread over them, or else the replicas are; all the rest is on each."""

    def __init__(
        self, parallel: Parallel = Parallel(), replicas: int = 1, devices: Any = None
    ) -> None:
        """replicas: more than one are trained side by side, on as many devices as divide their number.

        devices: instead of those of this program.  Raises ValueError when there are fewer than ``parallel`` wants, or when what
        it wants does not go together with replicas or several processes.
        """
        devices = jax.devices() if devices is None else list(devices)
        processes = len({device.process_index for device in devices})
        if processes > 1 and parallel.strategy == "pmap":
            raise ValueError(
                f"parallel='pmap', allowed with {processes} processes: auto, jit, shard_map"
            )
        if processes > 1 and parallel.devices not in (None, len(devices)):
            raise ValueError(
                f"devices={parallel.devices}, allowed with {processes} processes: all {len(devices)}"
            )
        if parallel.devices is not None:
            if parallel.devices > len(devices):
                raise ValueError(
                    f"devices={parallel.devices}, allowed: 1 to {len(devices)}, as many as there are"
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
        """Parts that a batch is divided into."""

    @property
    def single(self) -> bool:
        """One device only."""
        return self.mesh.size == 1

    def describe(self) -> str:
        """One line, such as "8 devices (jit)"."""
        if self.single:
            return "1 device"
        name = "jit" if self.parallel.strategy == "auto" else self.parallel.strategy
        among = f" of {self.processes} processes" if self.processes > 1 else ""
        return f"{self.mesh.size} devices{among} ({name})"

    def rows(self, batch_size: int) -> int:
        """Rows of a batch that can be divided: ``batch_size``, or the next larger number; what is too many is masked."""
        parts = self.parts * self.parallel.accumulate
        return math.ceil(batch_size / parts) * parts

    def replicate(self, tree: Any) -> Any:
        """Arrays that this process has, the same in all processes -> on every device."""
        return self._put(tree, EVERYWHERE)

    def shard(self, tree: Any, axis: int = 0) -> Any:
        """Arrays that this process has, the same in all processes -> divided along an axis, that of replicas or of rows."""
        return self._put(tree, PartitionSpec(*[None] * axis, AXIS))

    def shard_rows(self, tree: Any, axis: int = 0) -> Any:
        """The same for rows of batches, which all replicas need where those are spread."""
        return self.replicate(tree) if self.replicas > 1 else self.shard(tree, axis)

    def _put(self, tree: Any, spec: PartitionSpec) -> Any:
        if self.single:
            return jax.device_put(tree)
        sharding = NamedSharding(self.mesh, spec)
        if self.processes == 1:
            return jax.device_put(tree, sharding)
        return jax.tree.map(functools.partial(_global, sharding), tree)

    def local(self, tree: Any) -> Any:
        """Arrays of a state, as plain ones of this process's first device, where it has all of their values."""
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
        """Of a batch's rows, those on this process's devices."""
        places = NamedSharding(self.mesh, SPREAD).addressable_devices_indices_map((rows,)).values()
        ends = [place[0].indices(rows)[:2] for place in places if place is not None]
        return slice(min(start for start, _ in ends), max(stop for _, stop in ends))

    def from_process_local(self, tree: Any, rows: int) -> Any:
        """Arrays [steps, rows of ``mine``, ...] of each process -> [steps, rows, ...], divided along their second axis."""
        if self.single:
            return jax.device_put(tree)
        sharding = NamedSharding(self.mesh, PartitionSpec(None, AXIS))

        def put(leaf: np.ndarray) -> jax.Array:
            shape = (leaf.shape[0], rows, *leaf.shape[2:])
            return jax.make_array_from_process_local_data(sharding, leaf, shape)

        return jax.tree.map(put, tree)

    def state_shardings(self, batch_size: int) -> TrainState | NamedSharding | None:
        """Where the leaves of a state lie; None on one device."""
        if self.single:
            return None
        if self.replicas > 1:
            return NamedSharding(self.mesh, SPREAD)
        everywhere = NamedSharding(self.mesh, EVERYWHERE)
        # What cannot be divided is divided within each dispatch only.
        carry = SPREAD if batch_size % self.parts == 0 else EVERYWHERE
        return _state_of(everywhere, NamedSharding(self.mesh, carry))

    def place_state(self, state: TrainState, batch_size: int) -> TrainState:
        """A state that this process has, the same in all processes -> where its leaves belong."""
        shardings = self.state_shardings(batch_size)
        if shardings is None:
            return jax.tree.map(jnp.asarray, state)
        if not isinstance(shardings, TrainState):
            return jax.device_put(state, shardings)
        carry = self._put(state.carry, shardings.carry.spec)
        return self.replicate(state._replace(carry=()))._replace(carry=carry)

    def steps(self, build: Callable[..., Callable], many: bool, batch_size: int) -> Callable:
        """A compiled ``train.engine.step.make_steps``, whose state is donated.

        build(**how) -> step: ``make_step`` but for the settings that are decided here; for replicas build(index, **how).  Of
        replicas state, metrics, plan entries and key lead with [replicas].
        """
        how = {"accumulate": self.parallel.accumulate, "remat": self.parallel.remat}
        if self.replicas > 1:
            return self._replicated(functools.partial(build, **how), many)
        if self.single:
            run = make_steps(build(**how), many)
        elif self.parallel.strategy in ("auto", "jit"):
            run = make_steps(build(**how, axis=AXIS, spread=self._spread), many)
        else:
            run = make_steps(build(**how, axis=AXIS), many)
            run = self._mapped(run) if self.parallel.strategy == "pmap" else self._sharded(run)
        run = _with_padded_carry(run, batch_size, self.rows(batch_size))
        if self.single:
            return jax.jit(run, donate_argnums=0)
        shardings = (self.state_shardings(batch_size), NamedSharding(self.mesh, EVERYWHERE))
        return jax.jit(run, donate_argnums=0, out_shardings=shardings)

    def _spread(self, gradients: Callable) -> Callable:
        # Of (params, carry, (arrays, entry), key, step).  check_vma=False: the reduction is our own.
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
    """A TrainState with one value for its carry and another for all the rest."""
    return TrainState(
        **{field: carry if field == "carry" else rest for field in TrainState._fields}
    )


def _global(sharding: NamedSharding, leaf: Any) -> jax.Array:
    """An array over several processes, of which each has all values."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(
            _global(sharding, jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
        )
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def _with_padded_carry(run: Callable, batch_size: int, rows: int) -> Callable:
    """The carry of a batch that is padded to be divided has as many rows within ``run`` only: it is saved as on one device."""
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
