"""Report sections on recordings: what a model heard when, and its errors."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from evals.base import Evaluation
from evals.error_rates import Edit, ErrorCounts, Labels
from evals.report.page import COLORS, INK, figure_svg, plot, render, sound, titled
from evals.transcripts import SPACE, Transcribed, posteriors, step_seconds, task_of
from train.formats import DataError
from zoo.parts.labelling import BLANK

WORST, SPEAKERS = 10, 40
"""Most utterances and speakers shown."""
MOST_SOUND = 2_000_000
"""Most characters of the sounds in a section."""
WIDTH, HEIGHT, PER_SECOND, REM = 10, 4.6, 2.5, 4.4
"""Of the plot of a recording: least width, height, width per second, in inches of REM rem."""
BINS, FEWEST = 6, 10
"""Bins of lengths; fewest recordings per bin."""
OPEN_BOX = "␣"
"""Shown for a space that is wrong or missing."""


class Spike(NamedTuple):
    """A label of the best path: the step of its run where its probability is greatest."""

    step: int
    label: int


def example_utterance(evaluation: Evaluation) -> str | None:
    """The chosen recording: features, probabilities of the labels, and the transcript."""
    measured, run, row = _transcribed(evaluation), evaluation.run, evaluation.example
    inputs, task = evaluation.table["inputs"], task_of(run)
    frames = np.asarray(inputs["frames"][row, : inputs["lengths"][row]])
    outputs = posteriors(run, frames)
    found = spikes(outputs)
    names = task.scored or task.vocabulary
    edits = measured.counts.edits[row] if measured.counts else []
    wrong = wrong_spikes(edits, [bool(names[spike.label]) for spike in found])
    values = "mel bands" if task.features.kind == "log_mel" else "coefficients"
    seconds, step = len(frames) * task.features.hop, step_seconds(run)
    width = max(WIDTH, PER_SECOND * seconds)

    def draw(figure: Any) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        static = frames.shape[1] // (1 + task.features.deltas)
        above.imshow(
            frames[:, :static].T, origin="lower", aspect="auto", cmap="magma",
            interpolation="none", extent=(0, seconds, 0, static), vmin=-2.5, vmax=2.5,
        )  # fmt: skip
        above.set_ylabel(values)
        times = (np.arange(len(outputs)) + 0.5) * step
        below.plot(times, outputs[:, BLANK], color="#9aa3ad", linewidth=1)
        for label in sorted({spike.label for spike in found}):
            below.plot(times, outputs[:, label], linewidth=1.4)
        for spike, bad in zip(found, wrong, strict=True):
            below.text(
                times[spike.step], 1.04, task.vocabulary[spike.label].replace(SPACE, OPEN_BOX),
                ha="center", fontsize=9, color=COLORS["validation"] if bad else INK,
            )  # fmt: skip
        below.set(xlim=(0, seconds), ylim=(0, 1.18), yticks=(0, 0.5, 1))
        below.set_xlabel("seconds")
        below.set_ylabel("probability")
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)

    body = render(
        "utterance.html",
        example=row,
        split=evaluation.split,
        speaker=measured.speakers[row] if measured.speakers else "",
        values="log-mel spectrum" if task.features.kind == "log_mel" else "cepstral coefficients",
        wrong=any(wrong),
        svg=figure_svg("Utterance", draw, (width, HEIGHT)),
        width=f"{REM * width:g}",
        sound=_sound(evaluation, row),
        items=_texts(evaluation, row).items(),
    )
    return titled("An utterance", body)


def spikes(outputs: np.ndarray) -> list[Spike]:
    """The labels of the best path through probabilities [steps, labels]."""
    found, first = [], 0
    for label, run in itertools.groupby(outputs.argmax(axis=1).tolist()):
        after = first + len(list(run))
        if label != BLANK:
            found.append(Spike(first + int(outputs[first:after, label].argmax()), label))
        first = after
    return found


def wrong_spikes(edits: Sequence[Edit], counted: Sequence[bool]) -> list[bool]:
    """Whether each label of the best path is an error.  counted: whether it counts at all."""
    flags = (edit.kind != "equal" for edit in edits for _ in edit.transcript)
    return [each and next(flags, False) for each in counted]


def worst_utterances(evaluation: Evaluation) -> str | None:
    """The recordings with most errors, with sound."""
    measured = _transcribed(evaluation)
    counts = measured.counts
    if counts is None or not counts.errors.any():
        return None
    order = np.lexsort((counts.labels, -counts.errors))[:WORST].tolist()
    utterances, size = [], 0
    for row in order:
        if not counts.errors[row]:
            break
        player = _sound(evaluation, row)
        size += len(player or "")
        utterances.append(
            {
                "example": row,
                "speaker": measured.speakers[row] if measured.speakers else "",
                "errors": f"{counts.errors[row]:,}",
                "labels": f"{counts.labels[row]:,}",
                "sound": player if size <= MOST_SOUND else None,
            }
            | _texts(evaluation, row)
        )
    units = task_of(evaluation.run).units
    wrong = int((counts.errors > 0).sum())
    intro = (
        f"{wrong:,} of {len(counts.errors):,} transcripts differ from the reference.  Those with "
        f"the most errors, each with the numbers of errors and of {units} in the reference, the "
        "reference, and the transcript below it."
    )
    body = render("utterances.html", intro=intro, utterances=utterances)
    return titled("Worst transcripts", body)


def by_speaker_and_length(evaluation: Evaluation) -> str | None:
    """Error rates of the speakers, and of short and long recordings."""
    measured = _transcribed(evaluation)
    if measured.counts is None:
        return None
    rates = by_speaker(measured.counts, measured.speakers)
    lengths, rate = by_length(measured.counts.labels), measured.rate
    units = task_of(evaluation.run).units
    sentences, rows, svg = [], [], None
    if len(rates) > 1:
        most = max(max(rates.values()), 1e-9)
        shown = list(rates.items())[:SPEAKERS]
        sentences.append(
            f"{rate} of each speaker, with errors / {units} and recordings"
            + (f"; the {SPEAKERS} highest of {len(rates)}." if len(rates) > SPEAKERS else ".")
        )
        for name, value in shown:
            each = measured.counts.of(_rows_of(measured.speakers, name))
            counts = f"{each.errors.sum():,} / {each.labels.sum():,}, {len(each.errors):,}"
            width = f"{100 * value / most:.1f}"
            rows.append({"name": name, "width": width, "rate": f"{value:.1f}", "counts": counts})
    if len(lengths) > 1:
        sentences.append(
            "Recordings by length: "
            + ", ".join(f"{name} {units}: {len(rows)}" for name, rows in lengths.items())
            + "."
        )
        values = [measured.counts.of(rows).rate for rows in lengths.values()]

        def draw(axes: Any) -> None:
            axes.plot(list(lengths), values, "o-", color=COLORS["train"], markersize=4)
            axes.set_xlabel(f"{units} in the reference")
            axes.set_ylim(bottom=0)

        svg = plot(f"{rate} %", draw)
    if not rows and svg is None:
        return None
    body = render("speakers.html", intro="  ".join(sentences), speakers=rows, svg=svg)
    return titled("Errors by speaker and length", body)


def by_speaker(counts: ErrorCounts, speakers: Sequence[str]) -> dict[str, float]:
    """The rate of each speaker with labels that count, highest first."""
    rates = {name: counts.of(_rows_of(speakers, name)).rate for name in sorted(set(speakers))}
    known = [(name, rate) for name, rate in rates.items() if math.isfinite(rate)]
    return dict(sorted(known, key=lambda item: -item[1]))


def by_length(lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Rows in bins of lengths: {"1-4": rows, ...}.

    There are at most BINS.  They have about the same number of rows, FEWEST or more on average;
    rows of the same length stay together.
    """
    bins = max(min(BINS, len(lengths) // FEWEST), 1)
    order = np.sort(lengths)
    uppers = np.unique(order[[len(order) * (1 + index) // bins - 1 for index in range(bins)]])
    number = np.searchsorted(uppers, lengths)
    named = {}
    for index in range(len(uppers)):
        rows = np.flatnonzero(number == index)
        low, high = int(lengths[rows].min()), int(uppers[index])
        named[f"{low}-{high}" if low < high else str(low)] = rows
    return named


def marked(edits: Sequence[Edit], between: str) -> str:
    """HTML of a transcript with its errors marked.  between: two labels."""

    def shown(labels: Labels, visible: bool) -> str:
        text = between.join(labels)
        return text.replace(SPACE, OPEN_BOX) if visible and not between else text

    pieces = [
        (
            edit.kind,
            shown(edit.transcript, edit.kind != "equal"),
            shown(edit.reference, True),
        )
        for edit in edits
    ]
    return render("edits.html", edits=pieces, between=between)


def _texts(evaluation: Evaluation, row: int) -> dict[str, str]:
    """The reference and the transcript of a recording, as HTML."""
    measured = _transcribed(evaluation)
    between = "" if task_of(evaluation.run).units == "characters" else SPACE
    transcript = between.join(measured.transcripts[row])
    if measured.counts is not None:
        transcript = marked(measured.counts.edits[row], between)
    return {"reference": between.join(measured.references[row]), "transcript": transcript}


def _sound(evaluation: Evaluation, row: int) -> str | None:
    """A player of a recording; None if it cannot be read or is too long."""
    recordings = evaluation.table.extras.get("recordings")
    if recordings is None:
        return None
    try:
        samples = recordings.read(row)
    except (DataError, OSError):
        return None
    player = sound(samples, task_of(evaluation.run).features.rate)
    return player if len(player) <= MOST_SOUND else None


def _rows_of(speakers: Sequence[str], name: str) -> np.ndarray:
    return np.flatnonzero(np.asarray(speakers) == name)


def _transcribed(evaluation: Evaluation) -> Transcribed:
    assert isinstance(evaluation.measured, Transcribed)
    return cast(Transcribed, evaluation.measured)
