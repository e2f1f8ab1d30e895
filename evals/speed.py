"""Speed: ``python -m evals.speed [ROW ...]`` times whole training steps of the zoo and of its peers.

A step is forward, backward and the SGD-momentum update.  All contenders of a row start from the same parameters, see the same
batch and compute the same function, in interleaved blocks of one session: a ratio is the zoo's time over its peer's in the same
round, and what is reported is the median of the rounds and their extremes.  Below 1 the zoo is faster.

    mlp     784-800-800-10, batch 128: the step, the same with the batch and the width doubled, its compilation, the first step
    loop    the trainer's host loop over the jitted step alone, for a tiny model and for that of ``mlp``

The zoo's step is the trainer's own: it masks padding, counts, and reports accuracy as well.  The peers only train: flax linen
with optax.sgd in its TrainState, jitted, the state donated; torch with its modules and its SGD, on two threads.  Other work on
the machine slows torch most, whose threads wait for each other: there, look at the fastest rounds ("best").
"""

import dataclasses
import difflib
import functools
import importlib.metadata
import importlib.util
import inspect
import math
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax.training.train_state import TrainState as FlaxState
from jax import Array
from rich.console import Console
from rich.table import Table

import zoo
from train.loop import LOGS_PER_EVALUATION
from train.optimizer import Optimizer
from train.run_folder import hardware, today, versions, write_json
from train.step import TrainState, init_state, make_step
from train.trainer import fit
from zoo.base import Batch, Model, Params

RATE, MOMENTUM = 1e-6, 0.9
"""The learning rate is so small that thousands of steps on one batch leave the parameters as they were drawn."""
TORCH_THREADS = 2
LOOP_US_AT_MOST = 60.0
MOST_FRESH_ROUNDS = 5
"""Compilations take seconds: no more rounds of them than this."""

K = TypeVar("K")
Timed = Callable[[int], float]
"""``timed(count)``: seconds a step over ``count`` steps, the last one finished."""


@dataclass(frozen=True)
class Workload:
    """One model on one batch, three times: the zoo's, flax's and torch's.

    network: a linen module that takes the zoo's params as they are (name its layers alike).
    torch_network: makes a torch module from the same inputs to the same outputs.
    torch_params: the zoo's params in the order and the layout of that module's.
    """

    module: Model
    cfg: Any
    batch: Batch
    network: nn.Module
    torch_network: Callable[[], Any]
    torch_params: Callable[[Params], list[Array]]


class Program(NamedTuple):
    """A training step in JAX.

    step(state, *arguments) -> (state, outputs).  start(params) -> state; params=None draws fresh ones.
    """

    step: Callable[..., tuple[Any, Any]]
    start: Callable[[Params | None], Any]
    arguments: tuple[Any, ...]


def zoo_program(module: Model, cfg: Any, batch: Batch, rate: float = RATE) -> Program:
    """The trainer's step."""
    key = jax.random.key(0)
    optimizer = Optimizer(learning_rate=rate, momentum=MOMENTUM).build(total_steps=1, steps_per_epoch=1)

    def start(params: Params | None) -> TrainState:
        return init_state(module, cfg, optimizer, key, len(batch["mask"]), params)

    return Program(make_step(module, cfg, optimizer), start, (batch, key))


def flax_program(work: Workload, rate: float = RATE) -> Program:
    """Linen, its TrainState and optax.sgd, as flax's own examples train."""
    optimizer = optax.sgd(rate, MOMENTUM)

    def start(params: Params | None) -> FlaxState:
        fresh: Any = params or work.network.init(jax.random.key(0), work.batch["inputs"])["params"]
        return FlaxState.create(apply_fn=work.network.apply, params=fresh, tx=optimizer)

    def step(state: FlaxState, batch: Batch) -> tuple[FlaxState, Array]:
        def objective(params: Params) -> Array:
            logits = state.apply_fn({"params": params}, batch["inputs"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]).mean()

        loss, gradients = jax.value_and_grad(objective)(state.params)
        return state.apply_gradients(grads=gradients), loss

    return Program(step, start, (work.batch,))


class BackToBack:
    """A contender that calls ``step`` again and again, and ``wait`` for the last one."""

    outputs: Any = None
    """Of the last step."""

    def step(self) -> None:
        """Starts a step."""
        raise NotImplementedError

    def wait(self) -> None:
        """Until the last step is finished."""

    def __call__(self, count: int) -> float:
        """Seconds a step, after some that are not timed."""
        for _ in range(1 + count // 10):
            self.step()
        self.wait()
        started = time.perf_counter()
        for _ in range(count):
            self.step()
        self.wait()
        return (time.perf_counter() - started) / count


class Jitted(BackToBack):
    """A program's jitted step, the state donated."""

    def __init__(self, program: Program, params: Params | None = None) -> None:
        """params: copied, as the state's buffers are given away."""
        self.jitted, self.arguments = jax.jit(program.step, donate_argnums=0), program.arguments
        self.state = program.start(jax.tree.map(jnp.copy, params))

    def step(self) -> None:
        """Dispatches a step."""
        self.state, self.outputs = self.jitted(self.state, *self.arguments)

    def wait(self) -> None:
        """Until the device is idle."""
        jax.block_until_ready((self.state, self.outputs))


class Torch(BackToBack):
    """The same step in torch."""

    def __init__(self, work: Workload, params: Params, rate: float = RATE) -> None:
        """params: what the network starts from, as the zoo has them."""
        import torch

        torch.set_num_threads(TORCH_THREADS)
        self.inputs = torch.tensor(np.asarray(work.batch["inputs"]))
        self.targets = torch.tensor(np.asarray(work.batch["targets"])).long().flatten()
        self.network = work.torch_network()
        with torch.no_grad():
            for mine, given in zip(self.network.parameters(), work.torch_params(params), strict=True):
                mine.copy_(torch.tensor(np.asarray(given)))
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=rate, momentum=MOMENTUM)
        self.loss = torch.nn.functional.cross_entropy

    def step(self) -> None:
        """Runs a step."""
        self.optimizer.zero_grad()
        self.outputs = self.loss(self.network(self.inputs).flatten(0, -2), self.targets)
        self.outputs.backward()
        self.optimizer.step()


def programs(work: Workload, rate: float = RATE) -> dict[str, Program]:
    """Those in JAX."""
    return {"zoo": zoo_program(work.module, work.cfg, work.batch, rate), "flax": flax_program(work, rate)}


def contenders(work: Workload, rate: float = RATE) -> dict[str, Any]:
    """The zoo, flax, and torch where it is installed, all with the same parameters."""
    params = work.module.init(work.cfg, jax.random.key(1))
    found: dict[str, Any] = {name: Jitted(program, params) for name, program in programs(work, rate).items()}
    return found | ({"torch": Torch(work, params, rate)} if importlib.util.find_spec("torch") else {})


class Options(NamedTuple):
    """How long to measure: blocks of about ``seconds`` each, in ``rounds`` rounds."""

    rounds: int
    seconds: float


def interleave(timed: dict[K, Timed], options: Options) -> dict[K, np.ndarray]:
    """Seconds a step [rounds] of every contender: one block each in every round, every other round backwards.

    All contenders then see the same drifts of the machine.
    """
    counts = {name: max(round(options.seconds / contender(1)), 1) for name, contender in timed.items()}
    times = {name: np.empty(options.rounds) for name in timed}
    for turn in range(options.rounds):
        for name in list(timed)[:: -1 if turn % 2 else 1]:
            times[name][turn] = timed[name](counts[name])
    return times


@dataclass(frozen=True, kw_only=True)
class Line:
    """One comparison.  ratio: zoo's time / peer's in the same round, the median; ratio_min, ratio_max: the extremes.

    _ms: a step (or whatever the row times), the median; _best: the fastest round's.  growth: over the row's original size.
    overhead_us: zoo's time - peer's in the same round, the median.  at_most: what we promise.
    """

    row: str
    peer: str
    ratio: float
    ratio_min: float
    ratio_max: float
    zoo_ms: float
    peer_ms: float
    zoo_ms_best: float
    peer_ms_best: float
    at_most: float | None = None
    zoo_growth: float | None = None
    peer_growth: float | None = None
    overhead_us: float | None = None
    overhead_us_best: float | None = None


def line(row: str, peer: str, zoo_times: np.ndarray, peer_times: np.ndarray, **more: float | None) -> Line:
    """The comparison of two contenders' seconds a step [rounds]."""
    ratios = zoo_times / peer_times
    return Line(
        row=row,
        peer=peer,
        ratio=float(np.median(ratios)),
        ratio_min=float(ratios.min()),
        ratio_max=float(ratios.max()),
        zoo_ms=1e3 * float(np.median(zoo_times)),
        peer_ms=1e3 * float(np.median(peer_times)),
        zoo_ms_best=1e3 * float(zoo_times.min()),
        peer_ms_best=1e3 * float(peer_times.min()),
        **more,
    )


def step_row(row: str, make: Callable[..., Workload], at_most: dict[str, float], options: Options) -> list[Line]:
    """Lines of a workload: its step at its own size, with the batch and with the width doubled, and its compilation.

    make(batch=, width=): a Workload; both have defaults.  at_most: {peer: ratio}.
    """
    given = {name: parameter.default for name, parameter in inspect.signature(make).parameters.items()}
    sizes = {"": {}, ", batch x2": {"batch": 2 * given["batch"]}, ", width x2": {"width": 2 * given["width"]}}
    timed = {(size, name): one for size, change in sizes.items() for name, one in contenders(make(**change)).items()}
    times = interleave(timed, options)
    lines = []
    for size, peer in timed:
        if peer == "zoo":
            continue
        more: dict[str, float | None] = {"at_most": at_most.get(peer)}
        if size:
            growth = {name: float(np.median(times[size, name] / times["", name])) for name in ("zoo", peer)}
            more = {"zoo_growth": growth["zoo"], "peer_growth": growth[peer]}
        lines.append(line(row + size, peer, times[size, "zoo"], times[size, peer], **more))
    return lines + fresh_lines(row, make(), options)


def fresh_lines(row: str, work: Workload, options: Options) -> list[Line]:
    """Compilation, and the time to the first step: drawing the parameters, compiling, running it.  Nothing is cached."""

    def compile_step(program: Program) -> None:
        jax.jit(program.step, donate_argnums=0).lower(jax.eval_shape(lambda: program.start(None)), *program.arguments).compile()

    def first_step(program: Program) -> None:
        jax.block_until_ready(jax.jit(program.step, donate_argnums=0)(program.start(None), *program.arguments))

    def fresh(action: Callable[[Program], None], program: Program, _: int) -> float:
        jax.clear_caches()
        started = time.perf_counter()
        action(program)
        return time.perf_counter() - started

    lines = []
    for what, action in ((", compile", compile_step), (", first step", first_step)):
        timed = {name: functools.partial(fresh, action, program) for name, program in programs(work).items()}
        times = interleave(timed, Options(min(options.rounds, MOST_FRESH_ROUNDS), 0))
        lines.append(line(row + what, "flax", times["zoo"], times["flax"]))
    return lines


def mlp(batch: int = 128, width: int = 800) -> Workload:
    """784-800-800-10, ReLU."""
    cfg = zoo.mlp.Config(sizes=(784, width, width, 10))

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: Array) -> Array:
            for index in range(2):
                x = nn.relu(nn.Dense(width, name=f"layer_{index}")(x))
            return nn.Dense(10, name="layer_2")(x)

    def torch_network() -> Any:
        from torch.nn import Linear, ReLU, Sequential

        return Sequential(Linear(784, width), ReLU(), Linear(width, width), ReLU(), Linear(width, 10))

    def torch_params(params: Params) -> list[Array]:
        return [leaf for layer in params.values() for leaf in (layer["kernel"].T, layer["bias"])]

    batch_arrays = zoo.mlp.example_batch(cfg, jax.random.key(2), batch)
    return Workload(zoo.mlp, cfg, batch_arrays, Network(), torch_network, torch_params)


class Fit:
    """``train.fit`` in memory, timed by its own history from the first to the last but one of its logs.

    So compilation stays out, and whatever the host does for every step, log and epoch is in.
    """

    def __init__(self, module: Model, cfg: Any, batch_size: int, steps_per_dispatch: int) -> None:
        """Epochs of 100 steps; a log every 50, as with MNIST, or after every dispatch."""
        self.module, self.cfg, self.interval = module, cfg, max(50, steps_per_dispatch)
        self.data = module.example_batch(cfg, jax.random.key(0), 100 * batch_size)
        self.settings = {
            "optimizer": Optimizer(learning_rate=RATE, momentum=MOMENTUM),
            "batch_size": batch_size,
            "steps_per_dispatch": steps_per_dispatch,
            "eval_every": LOGS_PER_EVALUATION * self.interval / 100,
        }

    def __call__(self, count: int) -> float:
        """Seconds a step over at least ``count``."""
        logs = 2 + math.ceil(count / self.interval)
        history = fit(self.module, self.cfg, self.data, steps=logs * self.interval, **self.settings).history
        first, last = history[0], history[-2]  # the very last log does not wait for a later dispatch, as the others do
        return (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])


TINY = zoo.mlp.Config(sizes=(64, 32, 10))
DISPATCH = 100


def loop_row(cases: dict[str, tuple[Any, int]], options: Options) -> list[Line]:
    """The trainer's loop over its jitted step alone, which sees the same batch again and again.

    cases: {row: (a Config of the MLP, batch size)}.
    """
    lines = []
    for row, (cfg, batch_size) in cases.items():
        program = zoo_program(zoo.mlp, cfg, zoo.mlp.example_batch(cfg, jax.random.key(0), batch_size))
        timed: dict[int, Timed] = {0: Jitted(program)}
        timed |= {many: Fit(zoo.mlp, cfg, batch_size, many) for many in (1, DISPATCH)}
        times = interleave(timed, options)
        for many in (1, DISPATCH):
            more: dict[str, float | None] = {"overhead_us": 1e6 * float(np.median(times[many] - times[0]))}
            if many == 1:
                more["overhead_us_at_most"] = LOOP_US_AT_MOST
            name = row if many == 1 else f"{row}, {many} steps a dispatch"
            lines.append(line(name, "jitted step", times[many], times[0], **more))
    return lines


ROWS: dict[str, Callable[[Options], list[Line]]] = {
    "mlp": functools.partial(step_row, "mlp", mlp, {"flax": 1.05, "torch": 0.75}),
    "loop": functools.partial(loop_row, {"loop": (TINY, 32), "loop, mlp": (mlp().cfg, 128)}),
}
"""{name: function of Options}.  A further model is a function like ``mlp`` and a line here."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Times training steps of the zoo and of its peers: flax, and torch where it is installed."""

    rows: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which rows; all unless given."""
    rounds: int = 20
    """Blocks of steps of each contender; their times are paired by round."""
    seconds: float = 0.25
    """Length of a block, about."""
    json: pathlib.Path | None = None
    """Write the results there too."""


def main(arguments: list[str] | None = None) -> int:
    """Times the rows; returns the exit status: 0 complete, 2 a wrong command line."""
    command = tyro.cli(Command, prog="python -m evals.speed", description=f"Rows: {', '.join(ROWS)}", args=arguments)
    for row in command.rows:
        if row not in ROWS:
            near = difflib.get_close_matches(row, ROWS, n=1, cutoff=0)
            print(f"no row {row!r}; did you mean {near[0]}?  Rows: {', '.join(ROWS)}", file=sys.stderr)
            return 2
    if command.rounds < 1 or not command.seconds > 0:
        print("error: --rounds and --seconds must be positive", file=sys.stderr)
        return 2
    has_torch = importlib.util.find_spec("torch") is not None
    if not has_torch:
        print("torch is not installed: skipped (pip install 'purezoo[torch]')")
    about = {
        "date": today(),
        "hardware": hardware(),
        "versions": versions() | ({"torch": importlib.metadata.version("torch")} if has_torch else {}),
        "rounds": command.rounds,
        "seconds": command.seconds,
    }
    options = Options(command.rounds, command.seconds)
    lines = [line for row in command.rows or ROWS for line in ROWS[row](options)]
    show(lines, f"{about['hardware']}, {about['date']}")
    if command.json is not None:
        rows = [{name: value for name, value in dataclasses.asdict(line).items() if value is not None} for line in lines]
        write_json(command.json, about | {"rows": rows})
    return 0


def show(lines: Sequence[Line], title: str) -> None:
    """Prints the comparisons as a table."""
    table = Table("row", "peer", title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in ("zoo ms", "peer ms", "ratio", "of the rounds", "at most", ""):
        table.add_column(column, justify="right" if column else "left")
    for line in lines:
        note, bound = "", line.ratio_at_most
        if line.zoo_growth is not None:
            note = f"cost x {line.zoo_growth:.2f} (peer x {line.peer_growth:.2f})"
        if line.overhead_us is not None:
            note = f"{line.overhead_us:+.0f} us a step"
            note += f", at most {line.overhead_us_at_most:g}" if line.overhead_us_at_most is not None else ""
        spread = f"{line.ratio_min:.2f} - {line.ratio_max:.2f}"
        times = f"{line.zoo_ms:.3f}", f"{line.peer_ms:.3f}", f"{line.ratio:.3f}"
        table.add_row(line.row, line.peer, *times, spread, "" if bound is None else f"{bound:g}", note)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    sys.exit(main())
