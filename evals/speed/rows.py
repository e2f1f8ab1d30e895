"""The measurements: interleaved times of contenders, and their comparisons."""

import functools
import inspect
import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from evals.speed.captions import CAPTIONS, pictures
from evals.speed.contenders import (
    Command,
    ConvolutionPass,
    Deform,
    Fit,
    Jitted,
    Spread,
    TorchDeform,
    contenders,
    has_torch,
    programs,
    zoo_program,
)
from evals.speed.energy import ENERGY
from evals.speed.pixels import PIXELS
from evals.speed.recurrent import LENGTHS, RECURRENT, WRITERS, Generated, Looped, Unrolled
from evals.speed.speech import (
    ALIGNING_AT_MOST,
    PREFIX_SEARCHES,
    SPEECH,
    aligning,
    utterances,
)
from evals.speed.translation import SEARCHES, TRANSLATION, sentences
from evals.speed.workloads import (
    DEFORMATIONS,
    LOOPS,
    SIDE_BY_SIDE,
    WORKLOADS,
    Workload,
    convolutions,
)
from train.augment import Augment
from zoo import convnet
from zoo.base import Model
from zoo.parts import convolution
from zoo.parts.convolution import PASSES, Formulation, Geometry, Pass

LOOP_US_AT_MOST = 60.0
PARALLEL_AT_MOST = 1.03
REPLICAS = 8
START_AT_MOST = 0.5
GENERATE_AT_MOST = SEARCH_AT_MOST = 1 / 3
MOST_PROCESS_ROUNDS = 3
"""Most rounds of whole processes, which take long."""
DISPATCH = 100
"""Steps per dispatch where the loop dispatches several at once."""
MOST_FRESH_ROUNDS = 5
"""Most rounds of compilations, which take seconds."""
MOST_PASS_ROUNDS, PASS_SHARE = 5, 0.1
"""Most rounds, and relative block length, for convolution passes, because there are many."""
HOPELESS = 10
"""Formulations whose estimate exceeds the lowest one by more than this factor are not timed."""

K = TypeVar("K")
Timed = Callable[[int], float]
"""``timed(count)``: seconds per step over about ``count`` steps, the last one finished."""


class Options(NamedTuple):
    """How long to measure: blocks of about ``seconds`` each, in ``rounds`` rounds.

    own_size: rows of steps skip doubled sizes and compilation.  compilation: they only time
    compilation and the time to the first step.
    """

    rounds: int
    seconds: float
    own_size: bool = False
    compilation: bool = False


def interleave(timed: dict[K, Timed], options: Options) -> dict[K, np.ndarray]:
    """Seconds per step [rounds] of every contender, one block each per round.

    The order alternates between rounds, so that all contenders see the same drift of the machine.
    """
    counts = {
        name: max(round(options.seconds / contender(1)), 1) for name, contender in timed.items()
    }
    times = {name: np.empty(options.rounds) for name in timed}
    for turn in range(options.rounds):
        for name in list(timed)[:: -1 if turn % 2 else 1]:
            times[name][turn] = timed[name](counts[name])
    return times


@dataclass(frozen=True, kw_only=True)
class Line:
    """One comparison.

    ratio: median over rounds of zoo's time / peer's; ratio_min, ratio_max: the extremes.
    _ms: median time of a step (or whatever the row times); _best: of the fastest round.
    growth: time relative to the row's original size.
    overhead_us: median over rounds of zoo's time - peer's; _best: between the fastest rounds.
    at_most: promised bound of the ratio, or of the overhead if there is one.
    images_per_second, tokens_per_second, sentences_per_second, utterances_per_second: the zoo's.
    zoo_bytes, peer_bytes: of intermediate results.
    chosen: the zoo's formulation of a convolution; the peer is the fastest one, perhaps the same.
    measured_ms, estimated_ms: {formulation: time}.
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
    images_per_second: float | None = None
    tokens_per_second: float | None = None
    sentences_per_second: float | None = None
    utterances_per_second: float | None = None
    zoo_bytes: float | None = None
    peer_bytes: float | None = None
    chosen: str | None = None
    measured_ms: dict[str, float] | None = None
    estimated_ms: dict[str, float] | None = None


def compare(
    row: str, peer: str, zoo_times: np.ndarray, peer_times: np.ndarray, **more: Any
) -> Line:
    """Compares two contenders' seconds per step [rounds]; more: further fields of Line."""
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


def step_row(
    row: str, make: Callable[..., Workload], at_most: dict[str, float], options: Options
) -> Iterator[Line]:
    """Lines of a workload: its step at its own and doubled sizes, and its compilation.

    make(batch=, width=, ...): a Workload; all arguments have defaults.
    at_most: {peer: ratio, "compile": ratio of compilation times over flax}.
    """
    if not options.compilation:
        yield from sized_lines(
            row, lambda **change: contenders(make(**change)), _defaults(make), at_most, options
        )
    if not options.own_size:
        yield from fresh_lines(row, make(), options, at_most.get("compile"))


def sized_lines(
    row: str,
    make: Callable[..., dict[str, Timed]],
    default: dict[str, Any],
    at_most: dict[str, float],
    options: Options,
) -> Iterator[Line]:
    """Compares the zoo with each peer among the contenders from ``make``, and how their costs grow.

    default: sizes to double one at a time, unless ``options.own_size``.  at_most: {peer: ratio}.
    """
    sizes: dict[str, dict[str, Any]] = {row: {}}
    if not options.own_size:
        sizes |= {f"{row}, {name} x2": {name: 2 * size} for name, size in default.items()}
    timed = {
        (size, name): timed
        for size, change in sizes.items()
        for name, timed in make(**change).items()
    }
    times = interleave(timed, options)
    for size, peer in timed:
        if peer == "zoo":
            continue
        more: dict[str, float | None] = {"at_most": at_most.get(peer)}
        if size != row:
            growth = {
                name: float(np.median(times[size, name] / times[row, name]))
                for name in ("zoo", peer)
            }
            more = {"zoo_growth": growth["zoo"], "peer_growth": growth[peer]}
        yield compare(size, peer, times[size, "zoo"], times[size, peer], **more)


def _defaults(make: Callable[..., Any]) -> dict[str, Any]:
    return {
        name: parameter.default for name, parameter in inspect.signature(make).parameters.items()
    }


def fresh_lines(
    row: str, work: Workload, options: Options, at_most: float | None = None
) -> Iterator[Line]:
    """Compilation, and the time to the first step from initialization; nothing is cached."""

    def compile_step(program: Any, abstract: Any) -> None:
        jax.jit(program.step, donate_argnums=0).lower(abstract, *program.arguments).compile()

    def first_step(program: Any, _: Any) -> None:
        jax.block_until_ready(
            jax.jit(program.step, donate_argnums=0)(program.start(None), *program.arguments)
        )

    def fresh(action: Callable[[Any, Any], None], program: Any, _: int) -> float:
        abstract = jax.eval_shape(lambda: program.start(None))
        jax.clear_caches()
        started = time.perf_counter()
        action(program, abstract)
        return time.perf_counter() - started

    for what, action, bound in (
        ("compile", compile_step, at_most),
        ("first step", first_step, None),
    ):
        timed = {
            name: functools.partial(fresh, action, program)
            for name, program in programs(work).items()
        }
        times = interleave(timed, Options(min(options.rounds, MOST_FRESH_ROUNDS), 0))
        yield compare(f"{row}, {what}", "flax", times["zoo"], times["flax"], at_most=bound)


class Others:
    """Measures the processor time that other programs take, from its creation on."""

    def __init__(self, file: pathlib.Path = pathlib.Path("/proc/stat")) -> None:
        """file: Linux's counters since boot, in ticks."""
        self.file, self.before = file, self._read(file)

    def share(self) -> float | None:
        """Fraction of all processors' time; None if the system does not report it."""
        after = self._read(self.file)
        if self.before is None or after is None:
            return None
        busy, total, own = (end - start for start, end in zip(self.before, after, strict=True))
        return min(max(busy - own, 0) / total, 1) if total else 0.0

    @staticmethod
    def _read(file: pathlib.Path) -> tuple[float, float, float] | None:
        try:
            ticks = [int(field) for field in file.read_text("utf-8").splitlines()[0].split()[1:9]]
        except (OSError, ValueError, IndexError):
            return None
        idle, waiting = ticks[3:5]
        own = time.process_time() * os.sysconf("SC_CLK_TCK")
        return sum(ticks) - idle - waiting, sum(ticks), own


def loop_row(
    cases: dict[str, tuple[Model, Any, int, float | None]], options: Options
) -> Iterator[Line]:
    """The trainer's loop over its jitted step alone, which repeats one batch.

    cases: {row: (module, Config, batch size, at_most)}.  If at_most is None, the overhead per step
    is reported instead, and the loop is also timed with DISPATCH steps per dispatch.
    """
    for row, (module, cfg, batch_size, at_most) in cases.items():
        alone = Jitted(
            zoo_program(module, cfg, module.example_batch(cfg, jax.random.key(0), batch_size))
        )
        timed: dict[int, Timed] = {0: alone, 1: Fit(module, cfg, batch_size, 1)}
        if at_most is None:
            timed[DISPATCH] = Fit(module, cfg, batch_size, DISPATCH)
        times = interleave(timed, options)
        if at_most is not None:
            yield compare(row, "jitted step", times[1], times[0], at_most=at_most)
            continue
        for steps, name in ((1, row), (DISPATCH, f"{row}, {DISPATCH} steps a dispatch")):
            overhead = 1e6 * float(np.median(times[steps] - times[0]))
            best = 1e6 * float(times[steps].min() - times[0].min())
            more = {
                "overhead_us": overhead,
                "overhead_us_best": best,
                "at_most": LOOP_US_AT_MOST if steps == 1 else None,
            }
            yield compare(name, "jitted step", times[steps], times[0], **more)


def parallel_row(
    cases: dict[str, tuple[Model, Any, int, float | None]], options: Options
) -> Iterator[Line]:
    """The step compiled by ``train.engine.parallel`` for one device over plain ``jax.jit``."""
    for row, (module, cfg, batch_size, _) in cases.items():
        batch = module.example_batch(cfg, jax.random.key(0), batch_size)
        timed: dict[str, Timed] = {
            "zoo": Spread(module, cfg, batch),
            "jit": Jitted(zoo_program(module, cfg, batch)),
        }
        times = interleave(timed, options)
        yield compare(
            row.replace("loop", "parallel"),
            "jitted step",
            times["zoo"],
            times["jit"],
            at_most=PARALLEL_AT_MOST,
        )


def replicas_row(cases: dict[str, tuple[str, ...]], options: Options) -> Iterator[Line]:
    """Whole processes: REPLICAS runs in one over REPLICAS sequential ones; programs are cached."""
    for row, (recipe, *more) in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            command = (sys.executable, "-m", "train", recipe, *more, "--quiet", "--out")
            rounds = min(options.rounds, MOST_PROCESS_ROUNDS)
            times = {name: np.empty(rounds) for name in ("side by side", "one by one")}
            for turn in range(rounds):
                alone = [
                    (*command, f"{folder}/{turn}-{seed}", "--seed", str(seed))
                    for seed in range(REPLICAS)
                ]
                together = (*command, f"{folder}/{turn}", "--replicas", str(REPLICAS))
                times["side by side"][turn] = Command(together)(1)
                times["one by one"][turn] = Command(*alone)(1)
        yield compare(
            f"{row} x{REPLICAS}", "one by one", times["side by side"], times["one by one"]
        )


START = """
import sys, time
from train.data import load_data
from train.programs import keep_programs
from train.recipes import RECIPES
from train.engine.trainer import fit
from zoo import mlp, convnet
keep_programs()
recipe = RECIPES[sys.argv[1]]
module = {"mlp": mlp, "convnet": convnet}[sys.argv[1].partition("-")[0]]
data = load_data(recipe.data)
started = time.perf_counter()
fit(module, recipe.model, data, batch_size=recipe.batch_size, steps=1,
    augment=recipe.augment, optimizer=recipe.optimizer)
print(time.perf_counter() - started)
"""


def start_row(recipes: Sequence[str], options: Options) -> Iterator[Line]:
    """First trace to end of first step, in a new process: with over without cached programs."""
    for recipe in recipes:
        rounds = min(options.rounds, MOST_PROCESS_ROUNDS)
        times = {name: np.empty(rounds) for name in ("second", "first")}
        for turn in range(rounds):
            with tempfile.TemporaryDirectory() as cache:
                environment = {**os.environ, "XDG_CACHE_HOME": cache}
                environment.pop("JAX_COMPILATION_CACHE_DIR", None)
                for name in ("first", "second"):
                    command = [sys.executable, "-c", START, recipe]
                    process = subprocess.run(
                        command, env=environment, check=True, capture_output=True, text=True
                    )
                    times[name][turn] = float(process.stdout)
        yield compare(
            f"start, {recipe}",
            "first start",
            times["second"],
            times["first"],
            at_most=START_AT_MOST,
        )


def augment_row(
    deformations: dict[str, Augment], make: Callable[[], Workload], options: Options
) -> Iterator[Line]:
    """Deformation of a workload's batch of images over its training step, and over torch."""
    work = make()
    shape = work.batch["inputs"].shape
    for row, augment in deformations.items():
        timed: dict[str, Timed] = {
            "zoo": Deform(augment, shape),
            "step": Jitted(zoo_program(work.module, work.cfg, work.batch)),
        }
        if has_torch():
            timed["torch"] = TorchDeform(augment, shape)
        times = interleave(timed, options)
        rate = shape[0] / float(np.median(times["zoo"]))
        yield from (
            compare(row, peer, times["zoo"], times[peer], images_per_second=rate)
            for peer in timed
            if peer != "zoo"
        )


def convolutions_row(makes: Sequence[Callable[[], Workload]], options: Options) -> Iterator[Line]:
    """The formulation that ``zoo.parts.convolution`` chooses over the fastest, for each pass."""
    options = Options(min(options.rounds, MOST_PASS_ROUNDS), PASS_SHARE * options.seconds)
    for shape, which in passes(make() for make in makes):
        costs = convolution.costs(shape, which)
        estimated: dict[Formulation, float] = {
            name: cost for name, cost in costs.items() if cost <= HOPELESS * min(costs.values())
        }
        times = interleave(
            {name: ConvolutionPass(shape, which, name) for name in estimated}, options
        )
        measured = {name: float(np.median(taken)) for name, taken in times.items()}
        chosen, best = convolution.choose(shape, which), min(measured, key=measured.__getitem__)
        inputs, window = (
            "x".join(map(str, sizes))
            for sizes in ((shape.batch, *shape.space, shape.channels_in), shape.window)
        )
        more = {
            "chosen": chosen,
            "measured_ms": {name: 1e3 * seconds for name, seconds in measured.items()},
            "estimated_ms": {name: 1e3 * seconds for name, seconds in estimated.items()},
        }
        row = f"convolutions: {inputs} {window} {shape.channels_out}, {which}"
        yield compare(row, best, times[chosen], times[best], **more)


def passes(works: Iterable[Workload]) -> list[tuple[Geometry, Pass]]:
    """The distinct (geometry, pass) pairs of all convolutions of the workloads.

    The first layer's gradient with respect to its inputs is omitted: training does not compute it.
    """
    pairs: dict[tuple[Geometry, Pass], None] = {}
    for work in works:
        shapes = (
            convolutions(work.cfg, len(work.batch["mask"]))
            if isinstance(work.cfg, convnet.Config)
            else []
        )
        for (number, shape), which in itertools.product(enumerate(shapes), PASSES):
            if number or which != "inputs":
                pairs[shape, which] = None
    return list(pairs)


def algorithm_row(
    row: str,
    make: Callable[..., dict[str, Timed]],
    at_most: dict[str, float],
    options: Options,
) -> Iterator[Line]:
    """Lines of an algorithm at the default sizes of ``make``, and with each size doubled.

    at_most: {peer: ratio}.
    """
    yield from sized_lines(row, make, _defaults(make), at_most, options)


def generate_row(writers: dict[str, Any], options: Options) -> Iterator[Line]:
    """Text generation by one compiled loop over a Python loop; only the first ratio is promised."""
    for number, (row, cfg) in enumerate(writers.items()):
        loop = Looped(cfg)
        times = interleave({"zoo": Generated(cfg), "loop": loop}, options)
        rate = loop.tokens / float(np.median(times["zoo"]))
        at_most = None if number else GENERATE_AT_MOST
        yield compare(
            row, "Python loop", times["zoo"], times["loop"], at_most=at_most, tokens_per_second=rate
        )


def beam_row(
    row: str,
    make: Callable[[], Any],
    kinds: dict[str, type[Any]],
    at_most: dict[str, float],
    unit: str,
    options: Options,
) -> Iterator[Line]:
    """One compiled beam search over the same search in numpy and in Python.

    make: the task of all contenders.  kinds: {contender: class}, called with the task.
    at_most: {peer: ratio}.  unit: the Line's field for the inputs processed per second.
    """
    task = make()
    searches = {name: kind(task) for name, kind in kinds.items()}
    times = interleave(searches, options)
    rate = {unit: searches["zoo"].batch / float(np.median(times["zoo"]))}
    for peer in (name for name in times if name != "zoo"):
        yield compare(row, peer, times["zoo"], times[peer], at_most=at_most.get(peer), **rate)


def unroll_row(lengths: Sequence[int], options: Options) -> Iterator[Line]:
    """A recurrent layer's gradient with remat over one that keeps all states, by length."""
    timed = {
        (length, remat): Unrolled(length, remat=remat)
        for length in lengths
        for remat in (True, False)
    }
    times = interleave(timed, options)
    for length in lengths:
        growth = [
            float(np.median(times[length, remat] / times[lengths[0], remat]))
            for remat in (True, False)
        ]
        sizes = [timed[length, remat].memory() for remat in (True, False)]
        more = dict(
            zip(
                ("zoo_growth", "peer_growth", "zoo_bytes", "peer_bytes"),
                growth + sizes,
                strict=True,
            )
        )
        yield compare(
            f"unroll, {length} steps, remat",
            "all kept",
            times[length, True],
            times[length, False],
            **more,
        )


ROWS: dict[str, Callable[[Options], Iterator[Line]]] = {
    **{
        row: functools.partial(step_row, row, make, at_most)
        for row, (make, at_most) in (
            WORKLOADS | RECURRENT | TRANSLATION | CAPTIONS | PIXELS | SPEECH
        ).items()
    },
    "generate": functools.partial(generate_row, WRITERS),
    "beam": functools.partial(
        beam_row,
        "beam",
        sentences,
        SEARCHES,
        {"numpy": 0.4, "Python loop": 1.0},
        "sentences_per_second",
    ),
    "captioning": functools.partial(
        beam_row,
        "captioning",
        pictures,
        SEARCHES,
        {"numpy": 1.0, "Python loop": 1.0},
        "images_per_second",
    ),
    "ctc-loss": functools.partial(algorithm_row, "ctc-loss", aligning, ALIGNING_AT_MOST),
    "prefix-search": functools.partial(
        beam_row,
        "prefix-search",
        utterances,
        PREFIX_SEARCHES,
        dict.fromkeys(("numpy", "dictionaries"), SEARCH_AT_MOST),
        "utterances_per_second",
    ),
    "unroll": functools.partial(unroll_row, LENGTHS),
    "loop": functools.partial(loop_row, LOOPS),
    "parallel": functools.partial(parallel_row, LOOPS),
    "replicas": functools.partial(replicas_row, SIDE_BY_SIDE),
    "start": functools.partial(start_row, ("mlp-digits", "convnet-digits")),
    **{
        row: functools.partial(algorithm_row, row, make, {"torch": 1.0, "numpy": 1.0})
        for row, make in ENERGY.items()
    },
    "augment": functools.partial(augment_row, DEFORMATIONS, WORKLOADS["lenet5"][0]),
    "convolutions": functools.partial(convolutions_row, [make for make, _ in WORKLOADS.values()]),
}
