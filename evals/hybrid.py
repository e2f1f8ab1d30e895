"""Transcripts of hybrids: a network's posteriors of states, decoded with a phone bigram."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from evals import verbs
from evals.error_rates import Labels, count_errors
from evals.recordings import Heard, Pictures, Spike, frames_for
from evals.run import Run
from train import alignment, tasks
from train.acoustic import windows
from train.dataset import Table
from zoo.base import Model, Params
from zoo.parts import hmm

POWERS = (0.0, 0.5, 1.0)
"""Exponents of the prior by which posteriors are divided."""
FIRST_WEIGHTS = tuple(2.0**exponent for exponent in range(6))
"""Weights of the bigram that are tried first; then those around and beyond the best."""
MOST_WEIGHT = 256.0
ROWS = 512
"""Frames of recordings whose states are computed at a time."""
Scores = Sequence[np.ndarray]
"""Scores of the states, [frames, states], of each recording."""


class Weights(NamedTuple):
    """Exponents of the bigram and of the prior; the scores are log p(state | frame) - prior log p.

    The defaults are used where there is no validation split to choose them on.
    """

    bigram: float = 4.0
    prior: float = 1.0

    def __str__(self) -> str:
        return f"weight of the bigram {self.bigram:.3g}, power of the prior {self.prior:g}"


Transcribe = Callable[[Weights], list[Labels]]
"""Transcripts of recordings, decoded with some weights."""


def task_of(run: Run) -> tasks.States:
    """The run's task.  Raises DataError if it is not that of a hybrid."""
    if not isinstance(run.task, tasks.States):
        verbs.require(run, "transcribe", {})
    assert isinstance(run.task, tasks.States)
    return run.task


def log_posteriors(run: Run, table: Mapping[str, Any], *, rows: int | None = None) -> np.ndarray:
    """log p(state | window), float32 [n, states], of every row of a table.  rows: ``Run.map``."""
    return run.map(_log_posteriors, {"inputs": table["inputs"]}, rows=rows)


@functools.partial(jax.jit, static_argnums=0)
def _log_posteriors(module: Model, cfg: Any, params: Params, batch: Any) -> Any:
    return jax.nn.log_softmax(module.apply(cfg, params, batch["inputs"]))


def by_recording(values: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    """Rows of a table, one per frame, divided into recordings."""
    return np.split(values, np.cumsum(lengths)[:-1])


def decode(task: tasks.States, log_p: Scores, weights: Weights) -> list[np.ndarray]:
    """The state of each frame in the best path, int32 [frames], of each recording.

    log_p: log p(state | frame); or log p(frame | state), with weights.prior 0.
    """
    prior = weights.prior * np.array(task.log_prior, np.float32)
    graph = hmm.phone_loop(
        np.array(task.log_bigram),
        np.array(task.log_stay),
        states=task.states,
        weight=weights.bigram,
    )
    return alignment.decode([each - prior for each in log_p], graph)


def phones_of(task: tasks.States, path: np.ndarray) -> Labels:
    """The phones of a path that count, under the names that count."""
    found = hmm.phones_of(path.tolist(), states=task.states, silence=task.silence)
    return scored(task, [task.phones[phone] for phone in found])


def scored(task: tasks.States, phones: Sequence[str]) -> Labels:
    """The phones that count in error rates, under the names that count."""
    names = dict(zip(task.phones, task.scored or task.phones, strict=True))
    return tuple(name for phone in phones if (name := names.get(phone, phone)))


def transcripts(task: tasks.States, log_p: Scores, weights: Weights) -> list[Labels]:
    """The phones of recordings.  log_p: log posteriors of the states."""
    return [phones_of(task, path) for path in decode(task, log_p, weights)]


def pictures(run: Run, weights: Weights) -> Pictures:
    """How the report draws the recordings of a run."""
    task = task_of(run)
    return Pictures(
        functools.partial(aligned, run, weights),
        "Below: the probability of silence (grey) and of the phones of the transcript and the "
        "reference at every frame, summed over their states; each phone of the transcript stands "
        "in the middle of its frames. Bottom: where each phone of the reference lies, in the "
        "alignment that labelled the frames",
        task.phones,
        [bool(name) for name in task.scored or task.phones],
        task.silence,
        task.features.hop,
    )


def aligned(run: Run, weights: Weights, table: Table, rows: Sequence[int]) -> list[Heard]:
    """What the model heard in some recordings of a table, and the alignments of their words."""
    task, lengths = task_of(run), table.parts
    starts = np.cumsum([0, *lengths])
    chosen = [np.arange(starts[row], starts[row] + lengths[row]) for row in rows]
    windows_of = table["inputs"][np.concatenate(chosen)]
    log_p = by_recording(
        log_posteriors(run, {"inputs": windows_of}, rows=ROWS), list(map(len, chosen))
    )
    heard = []
    for frames, each, path in zip(chosen, log_p, decode(task, log_p, weights), strict=True):
        middle = np.asarray(table["inputs"][frames, task.context // 2])
        found, _ = _visits(task, path)
        reference, places = _visits(task, np.asarray(table["targets"][frames]))
        heard.append(
            Heard(
                middle[:, : middle.shape[1] // (1 + task.features.deltas)],
                np.exp(each).reshape(len(each), -1, task.states).sum(axis=2),
                found,
                [spike.label for spike in reference],
                places,
            )
        )
    return heard


def _visits(task: tasks.States, path: np.ndarray) -> tuple[list[Spike], np.ndarray]:
    """The phones of a path, each in the middle of its frames, and which of them each frame is in.

    Frames of silence are in none, -1.
    """
    # A phone begins where its first state follows another state.
    before = np.concatenate([[-1], path[:-1]])
    visit = np.cumsum((path % task.states == 0) & (path != before)) - 1
    spikes, places = [], np.full(len(path), -1)
    for number in range(visit.max() + 1):
        frames = np.flatnonzero(visit == number)
        phone = int(path[frames[0]]) // task.states
        if phone != task.silence:
            places[frames] = len(spikes)
            spikes.append(Spike(int(frames.mean()), phone))
    return spikes, places


def transcribe(
    run: Run,
    recordings: Sequence[np.ndarray],
    *,
    speakers: Sequence[str] | None = None,
    weights: Weights = Weights(),  # noqa: B008 (frozen)
) -> list[Labels]:
    """The phones of each recording: samples [n] in -1..1, at the rate of the features.

    speakers: see ``evals.recordings.frames_for``.
    Raises DataError naming the run's folder unless its model is that of a hybrid, and ValueError
    for a recording that is shorter than a frame.
    """
    task = task_of(run)
    if not len(recordings):
        return []
    frames = frames_for(task, recordings, speakers)
    log_p = log_posteriors(run, {"inputs": windows(frames, task.context)}, rows=ROWS)
    return transcripts(task, by_recording(log_p, list(map(len, frames))), weights)


def chosen(
    transcribe: Transcribe,
    references: Sequence[Labels],
    powers: Sequence[float] = POWERS,
) -> Weights:
    """The weights with the lowest error rate of these transcripts; the first of equal ones.

    The best weight of the bigram is not the end of those tried, up to MOST_WEIGHT.
    """
    tried: dict[Weights, float] = {}

    def attempt(bigram: float, prior: float) -> None:
        weights = Weights(bigram, prior)
        if weights not in tried and bigram <= MOST_WEIGHT:
            tried[weights] = count_errors(references, transcribe(weights)).rate

    for prior in powers:
        for bigram in FIRST_WEIGHTS:
            attempt(bigram, prior)
    while True:
        best = min(tried, key=lambda weights: tried[weights])
        before = len(tried)
        for factor in (0.5, math.sqrt(0.5), math.sqrt(2), 2):
            attempt(best.bigram * factor, best.prior)
        if len(tried) == before:
            return best
