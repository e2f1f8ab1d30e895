"""Contenders: training steps of the zoo, flax and torch, the trainer's loop, convolutions."""

import functools
import importlib.util
import math
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState as FlaxState
from jax import Array

from evals.speed.workloads import Workload
from train.augment import Augment, deform
from train.engine.loop import LOGS_PER_EVALUATION
from train.engine.optimizer import Optimizer
from train.engine.parallel import Layout, Parallel
from train.engine.step import TrainState, init_state, make_step
from train.engine.trainer import fit
from zoo.base import Batch, Model, Params
from zoo.parts.convolution import Formulation, Geometry, Pass, formulate

RATE, MOMENTUM = 1e-6, 0.9
"""The rate is so small that thousands of steps on one batch hardly change the parameters."""
TORCH_THREADS = 2


class Program(NamedTuple):
    """A training step in JAX: step(state, *arguments) -> (state, outputs).

    start(params) -> state; params=None draws fresh ones.
    """

    step: Callable[..., tuple[Any, Any]]
    start: Callable[[Params | None], Any]
    arguments: tuple[Any, ...]


def zoo_program(module: Model, cfg: Any, batch: Batch, rate: float = RATE) -> Program:
    """The trainer's step."""
    key = jax.random.key(0)
    optimizer = Optimizer(learning_rate=rate, momentum=MOMENTUM).build(
        total_steps=1, steps_per_epoch=1
    )

    def start(params: Params | None) -> TrainState:
        return init_state(module, cfg, optimizer, key, len(batch["mask"]), params)

    return Program(make_step(module, cfg, optimizer), start, (batch, key))


def flax_program(work: Workload, rate: float = RATE) -> Program:
    """Linen with its TrainState and optax.sgd, as in flax's own examples."""
    optimizer = optax.sgd(rate, MOMENTUM)

    def start(params: Params | None) -> FlaxState:
        drawn = (
            None if params else work.network.init(jax.random.key(0), work.batch["inputs"])["params"]
        )
        given: Any = work.flax_params(params) if params else drawn
        return FlaxState.create(apply_fn=work.network.apply, params=given, tx=optimizer)

    def step(state: FlaxState, batch: Batch, *lengths: Array) -> tuple[FlaxState, Array]:
        def objective(params: Params) -> Array:
            logits = state.apply_fn({"params": params}, batch["inputs"], *lengths)
            return work.flax_loss(logits, batch)

        loss, gradients = jax.value_and_grad(objective)(state.params)
        return state.apply_gradients(grads=gradients), loss

    return Program(
        step, start, (work.batch,) if work.lengths is None else (work.batch, work.lengths)
    )


def programs(work: Workload, rate: float = RATE) -> dict[str, Program]:
    """The contenders in JAX: {name: Program}."""
    return {
        "zoo": zoo_program(work.module, work.cfg, work.batch, rate),
        "flax": flax_program(work, rate),
    }


class BackToBack:
    """A contender that calls ``step`` repeatedly, then ``wait`` once."""

    outputs: Any = None
    """Outputs of the last step."""

    def step(self) -> None:
        """Starts a step."""
        raise NotImplementedError

    def wait(self) -> None:
        """Waits until the last step is finished."""

    def __call__(self, count: int) -> float:
        """Seconds per step over ``count`` steps, after a warm-up."""
        for _ in range(1 + count // 10):
            self.step()
        self.wait()
        started = time.perf_counter()
        for _ in range(count):
            self.step()
        self.wait()
        return (time.perf_counter() - started) / count


class Jitted(BackToBack):
    """A program's jitted step with donated state."""

    def __init__(self, program: Program, params: Params | None = None) -> None:
        """params: copied, because the state's buffers are donated."""
        self.jitted, self.arguments = jax.jit(program.step, donate_argnums=0), program.arguments
        self.state = program.start(jax.tree.map(jnp.copy, params))

    def step(self) -> None:
        """Dispatches a step."""
        self.state, self.outputs = self.jitted(self.state, *self.arguments)

    def wait(self) -> None:
        """Waits until the device is idle."""
        jax.block_until_ready((self.state, self.outputs))


class Spread(BackToBack):
    """The trainer's step as ``train.engine.parallel`` compiles it for one device."""

    def __init__(self, module: Model, cfg: Any, batch: Batch) -> None:
        """batch: on one device."""
        layout, rows = Layout(Parallel(devices=1)), len(batch["mask"])
        optimizer = Optimizer(learning_rate=RATE, momentum=MOMENTUM).build(
            total_steps=1, steps_per_epoch=1
        )

        def build(**options: Any) -> Callable:
            return make_step(module, cfg, optimizer, load=lambda source: source[1], **options)

        key = jax.random.key(0)
        state = init_state(module, cfg, optimizer, key, rows)
        shapes = jax.eval_shape(make_step(module, cfg, optimizer), state, batch, key)[1]
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        self.state, self.outputs = layout.place_state(state, rows), layout.replicate(zeros)
        self.entries = layout.shard(jax.tree.map(lambda leaf: leaf[None], batch), axis=1)
        self.count, self.key = layout.replicate((np.int32(1), key))
        # The step number selects an entry; the only one here serves every step.
        self.places = layout.replicate(np.int32(0))
        self.jitted = layout.steps(build, False, rows)

    def step(self) -> None:
        """Dispatches a step."""
        plan = self.entries, self.places
        self.state, self.outputs = self.jitted(
            self.state, self.outputs, (), plan, self.count, self.key
        )

    def wait(self) -> None:
        """Waits until the device is idle."""
        jax.block_until_ready((self.state, self.outputs))


class Command:
    """Whole processes, one after the other; their total seconds, whatever ``count`` is."""

    def __init__(
        self, *commands: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        """environment: variables in addition to this process's own."""
        self.commands, self.environment = commands, os.environ | dict(environment or {})

    def __call__(self, count: int) -> float:
        """Runs all commands.  Raises subprocess.CalledProcessError if one fails."""
        started = time.perf_counter()
        for command in self.commands:
            subprocess.run(command, env=self.environment, check=True, capture_output=True)
        return time.perf_counter() - started


class ConvolutionPass(BackToBack):
    """One pass of a convolution in one formulation, jitted, on random values."""

    def __init__(self, shape: Geometry, which: Pass, formulation: Formulation) -> None:
        """which: forward, or the gradient with respect to the inputs or the kernel.

        Gradients take the error at the outputs as an additional argument.
        """
        ends = shape.channels_in, shape.channels_out
        sizes = [
            (shape.batch, *shape.space, ends[0]),
            (*shape.window, *ends),
            (shape.batch, *shape.outputs, ends[1]),
        ]
        draw = np.random.default_rng(0).standard_normal  # nothing to compile
        self.arguments = [
            jnp.asarray(draw(size, np.float32)) for size in sizes[: 2 if which == "forward" else 3]
        ]
        run = functools.partial(
            formulate, which, formulation, strides=shape.strides, pads=shape.pads
        )
        self.jitted = jax.jit(run)

    def step(self) -> None:
        """Runs the pass and waits for it, because otherwise the next one would run concurrently."""
        self.outputs = jax.block_until_ready(self.jitted(*self.arguments))


class Torch(BackToBack):
    """The same step in torch."""

    def __init__(self, work: Workload, params: Params, rate: float = RATE) -> None:
        """params: initial parameters in the zoo's form."""
        import torch  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(TORCH_THREADS)
        self.inputs = jax.tree.map(
            lambda leaf: torch.tensor(np.asarray(leaf)), work.batch["inputs"]
        )
        self.network = work.torch_network()
        with torch.no_grad():
            for tensor, array in zip(self.trained(), work.torch_params(params), strict=True):
                tensor.copy_(torch.tensor(np.asarray(array)))
        self.optimizer = torch.optim.SGD(self.trained(), lr=rate, momentum=MOMENTUM)
        self.loss = work.torch_loss(work.batch)

    def trained(self) -> list[Any]:
        """The network's trainable parameters."""
        return [leaf for leaf in self.network.parameters() if leaf.requires_grad]

    def step(self) -> None:
        """Runs a step."""
        self.optimizer.zero_grad()
        self.outputs = self.loss(self.network(self.inputs))
        self.outputs.backward()
        self.optimizer.step()


def example_images(shape: tuple[int, ...]) -> Array:
    """Noise [batch, height, width, channels]."""
    return jax.random.uniform(jax.random.key(3), shape)


class Deform(BackToBack):
    """Random deformation of a batch of images by ``train.augment``."""

    def __init__(self, augment: Augment, shape: tuple[int, ...]) -> None:
        """shape: [batch, height, width, channels]."""
        self.images, self.keys = (
            example_images(shape),
            jax.random.split(jax.random.key(0), shape[0]),
        )
        self.jitted = jax.jit(functools.partial(deform, augment))

    def step(self) -> None:
        """Dispatches a deformation of the batch."""
        self.outputs = self.jitted(self.images, self.keys)

    def wait(self) -> None:
        """Waits until the device is idle."""
        jax.block_until_ready(self.outputs)


class TorchDeform(BackToBack):
    """The same in torch: affine grid, displacements as in ElasticTransform, grid_sample."""

    def __init__(self, augment: Augment, shape: tuple[int, ...]) -> None:
        """shape: [batch, height, width, channels]."""
        import torch  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(TORCH_THREADS)
        self.torch, self.augment = torch, augment
        _, self.height, self.width, _ = shape
        self.images = torch.tensor(np.asarray(example_images(shape))).movedim(-1, 1)
        reach = round(3 * augment.smoothness)
        taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / augment.smoothness) ** 2)
        self.taps = (taps / taps.norm()).repeat(2, 1)[:, None]

    def step(self) -> None:
        """Deforms the batch."""
        torch, batch = self.torch, len(self.images)
        functional = torch.nn.functional
        angles, factors, shears = (torch.rand(batch) * 2 - 1 for _ in range(3))
        angles, shears = (
            angles * math.radians(self.augment.rotate),
            torch.tan(shears * math.radians(self.augment.shear)),
        )
        factors = torch.exp(factors * self.augment.scale)
        maps = torch.zeros(batch, 2, 3)
        maps[:, 0, 0], maps[:, 0, 1] = factors * torch.cos(angles), shears - torch.sin(angles)
        maps[:, 1, 0], maps[:, 1, 1] = torch.sin(angles), factors * torch.cos(angles)
        maps[:, :, 2] = (torch.rand(batch, 2) * 2 - 1) * self.augment.shift * 2 / self.width
        grid = functional.affine_grid(maps, list(self.images.shape), align_corners=True)
        if self.augment.elastic:
            noise = torch.randn(batch, 2, self.height, self.width)
            for taps in (self.taps[..., None], self.taps[..., None, :]):
                noise = functional.conv2d(noise, taps, padding="same", groups=2)
            grid = grid + noise.permute(0, 2, 3, 1) * (self.augment.elastic * 2 / self.width)
        self.outputs = functional.grid_sample(
            self.images, grid, padding_mode="border", align_corners=True
        )


def has_torch() -> bool:
    """Whether torch is installed."""
    return importlib.util.find_spec("torch") is not None


def contenders(work: Workload, rate: float = RATE) -> dict[str, Any]:
    """The zoo, flax, and torch if installed, all with the same parameters."""
    params = work.module.init(work.cfg, jax.random.key(1))
    timed: dict[str, Any] = {
        name: Jitted(program, params) for name, program in programs(work, rate).items()
    }
    return timed | ({"torch": Torch(work, params, rate)} if has_torch() else {})


class Fit:
    """``train.fit`` in memory, timed by its own history, from the first log to the second to last.

    This excludes compilation and includes the host's work for every step, log and epoch.
    """

    def __init__(self, module: Model, cfg: Any, batch_size: int, steps_per_dispatch: int) -> None:
        """Epochs have 100 steps; logs come every 50 steps, as for MNIST, or every dispatch."""
        self.module, self.cfg, self.interval = module, cfg, max(50, steps_per_dispatch)
        self.data = module.example_batch(cfg, jax.random.key(0), 100 * batch_size)
        self.settings = {
            "optimizer": Optimizer(learning_rate=RATE, momentum=MOMENTUM),
            "batch_size": batch_size,
            "steps_per_dispatch": steps_per_dispatch,
            "eval_every": LOGS_PER_EVALUATION * self.interval / 100,
        }

    def __call__(self, count: int) -> float:
        """Seconds per step over at least ``count`` steps."""
        logs = 2 + math.ceil(count / self.interval)
        result = fit(self.module, self.cfg, self.data, steps=logs * self.interval, **self.settings)
        if not result.complete:  # the trainer catches Ctrl-C and ends cleanly
            raise KeyboardInterrupt
        history = result.history
        # Every log but the last waits for a later dispatch, so the last one is not comparable.
        first, last = history[0], history[-2]
        return (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
