"""Translation: what a model makes of sentences, how near that is to what people wrote, and where it looked."""

import contextlib
import dataclasses
import functools
import html
import itertools
import math
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, cast

import jax
import numpy as np

from evals import verbs
from evals.base import Evaluation, Measured, Subject
from evals.generation import (
    BEAM,
    LENGTH_PENALTY,
    NEEDS_BLEU,
    Generated,
    bleu,
    has_bleu,
    require_search,
    search,
)
from evals.metrics import is_whole
from evals.report.page import plot, titled
from evals.report.points import labelled_map, tsne
from evals.run import Run
from evals.runs import COLORS
from train import formats, tasks
from train.engine.run_folder import write_text
from train.formats import DataError
from train.tokens import END, SPACE, packed, pieces
from zoo.base import Conditional, Model, Params

TASK = tasks.Translation
ROWS, STEP = 32, 8
"""Sentences that are translated at a time, and the tokens by which the lengths that they are filled up to grow."""
BINS = (0, 8, 10, 12, 14, 17, math.inf)
"""Words of a source: more than the first, up to the next."""
FEWEST = 20
"""Sentences of a bin whose BLEU says anything."""
SHOWN, ALIGNED, PHRASES = 8, 4, 200
CELL = 20
"""Pixels of a square in an alignment."""
LINES = 256
"""Lines of a file that are translated at a time."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Translated(Measured):
    """pairs: source and target of each example.  translations: of the sources."""

    pairs: Sequence[tuple[str, str]]
    translations: list[Generated]


def task_of(run: Run) -> tasks.Translation:
    """The run's task.  Raises DataError for another one."""
    if not isinstance(run.task, TASK):
        verbs.require(run, "translate", {})
    assert isinstance(run.task, TASK)
    return run.task


def translate(
    run: Run,
    sentences: Sequence[str],
    *,
    beam: int = BEAM,
    length_penalty: float = LENGTH_PENALTY,
    rows: int | None = None,
) -> list[Generated]:
    """The best translations that a beam search finds; of a sentence without any word, one without any.

    rows: sentences at a time, for which, and for each length in steps of STEP tokens, the search is compiled: who translates
    several lists gives the same to all.  Unless given, ROWS, or as many as there are.
    Raises DataError naming the run's folder unless its model translates, ValueError naming what is out of range.
    """
    task = task_of(run)
    require_search(len(task.target.vocabulary), beam, length_penalty)
    if rows is not None and not (is_whole(rows) and rows >= 1):
        raise ValueError(f"rows={rows!r}, allowed: a positive integer")
    sources = [[*task.source.encode(sentence), END] for sentence in sentences]
    order = sorted(
        (index for index, source in enumerate(sources) if len(source) > 1),
        key=lambda index: len(sources[index]),
    )
    found = [Generated("", np.zeros(0, np.int32), 0.0)] * len(sentences)
    rows = min(ROWS, max(len(order), 1)) if rows is None else rows
    for first in range(0, len(order), rows):
        chosen = order[first : first + rows]
        group = [sources[index] for index in chosen]
        width = -(-max(map(len, group)) // STEP) * STEP
        lengths = np.array([len(source) for source in group], np.int32)
        table = {"inputs": {"source": packed(group, width), "lengths": lengths}}
        written = run.map(_searching(3 * width, beam, length_penalty), table, rows=rows)
        tokens, counts, scores = (leaf[:, 0] for leaf in written)
        for row, index in enumerate(chosen):
            own = tokens[row, : counts[row]]
            found[index] = Generated(task.target.decode(own), own, float(scores[row]))
    return found


def _searching(longest: int, beam: int, length_penalty: float) -> Any:
    def function(module: Any, cfg: Any, params: Params, batch: Any) -> Any:
        return search(module, cfg, params, batch["inputs"], longest, beam, length_penalty)

    return function


def measure(subject: Subject) -> Translated:
    """The metrics of the loss, and "BLEU", "exact %", "perplexity" of a target token.

    Exact are translations that equal the reference but for white space.
    """
    run, pairs = subject.run, subject.table.extras["sentences"]
    found = translate(run, [source for source, _ in pairs])
    targets = [" ".join(target.split()) for _, target in pairs]
    exact = np.mean([each.text == target for each, target in zip(found, targets, strict=True)])
    with np.errstate(over="ignore"):  # of a model that diverged
        perplexity = float(np.exp(subject.means["loss"]))
    named, note = {"exact %": 100 * float(exact), "perplexity": perplexity}, NEEDS_BLEU
    if has_bleu():
        score, signature = bleu([each.text for each in found], targets)
        named = {"BLEU": score} | named
        note = f"BLEU: sacrebleu {signature}, beam {BEAM}, length penalty {LENGTH_PENALTY:g}"
    return Translated(
        metrics=subject.losses | subject.named(named),
        note=note,
        shares=subject.named({"exact %": len(found)}),
        pairs=pairs,
        translations=found,
    )


def by_length(
    sentences: Sequence[tuple[str, str]], translations: Sequence[Generated]
) -> dict[str, tuple[int, float]]:
    """{"9-10": (sentences, BLEU), ...} by the words of the source; bins of fewer than FEWEST sentences are left out.

    Raises ValueError unless each sentence has a translation.
    """
    if len(sentences) != len(translations):
        raise ValueError(
            f"{len(translations)} translations of {len(sentences)} sentences, allowed: as many"
        )
    words = np.array(
        [
            len([piece for piece in pieces("words", source) if any(map(str.isalnum, piece))])
            for source, _ in sentences
        ]
    )
    found = {}
    for low, high in itertools.pairwise(BINS):
        rows = np.flatnonzero((words > low) & (words <= high)).tolist()
        if len(rows) >= FEWEST:
            name = f"{low + 1:g}-{high:g}" if high < math.inf else f"{low + 1:g} or more"
            score, _ = bleu(
                [translations[row].text for row in rows], [sentences[row][1] for row in rows]
            )
            found[name] = (len(rows), score)
    return found


def lengths_plot(runs: dict[str, dict[str, tuple[int, float]]]) -> str:
    """BLEU over the length of the source of several runs, as SVG (Bahdanau et al. 2014, figure 2)."""

    def lines(axes: Any) -> None:
        for color, (name, bins) in zip(COLORS, runs.items(), strict=False):
            axes.plot(
                list(bins),
                [score for _, score in bins.values()],
                "o-",
                color=color,
                label=name,
                markersize=4,
            )
        axes.set_xlabel("words of the source")
        axes.set_ylim(bottom=0)
        if len(runs) > 1:
            axes.legend(fontsize=9)

    return plot("BLEU", lines)


def attention(run: Run, source: str, tokens: np.ndarray) -> np.ndarray | None:
    """Where the model looked, float32 [time, places], while it wrote these tokens; None if it has no attention."""
    places = [*task_of(run).source.encode(source), END]
    before = np.concatenate([[END], tokens[:-1]]).astype(np.int32)
    inputs = {
        "source": np.array([places], np.int32),
        "lengths": np.array([len(places)], np.int32),
        "target": before[None],
    }
    _, seen = _trace(run.module, run.recipe.model, run.params, inputs)
    return np.asarray(seen["attention"][0], np.float32) if "attention" in seen else None


@functools.partial(jax.jit, static_argnums=0)
def _trace(module: Model, cfg: Any, params: Params, inputs: Any) -> Any:
    return module.trace(cfg, params, inputs)


def alignment(run: Run, source: str, translation: Generated) -> str | None:
    """SVG of ``attention``: a row for each token of the translation, a column for each of the source (figure 3 of the paper)."""
    weights = attention(run, source, translation.tokens) if len(translation.tokens) else None
    if weights is None:
        return None
    task = task_of(run)
    coded = {
        "source": [*task_of(run).source.encode(source), END],
        "target": translation.tokens.tolist(),
    }
    columns, rows = (
        [getattr(task, side).vocabulary[token].lstrip(SPACE) or SPACE for token in tokens]
        for side, tokens in coded.items()
    )
    left, top = (10 + 8 * max(map(len, names)) for names in (rows, columns))
    width, height = left + CELL * len(columns) + 4, top + CELL * len(rows) + 4
    marks = []
    for index, name in enumerate(columns):
        x, y = left + CELL * (index + 0.5) + 4, top - 6
        marks.append(
            f'<text transform="translate({x:g} {y:g}) rotate(-90)">{html.escape(name)}</text>'
        )
    for index, name in enumerate(rows):
        y = top + CELL * (index + 0.5) + 4
        marks.append(f'<text x="{left - 6}" y="{y:g}" text-anchor="end">{html.escape(name)}</text>')
        for column, weight in enumerate(weights[index]):
            box = f'x="{left + CELL * column}" y="{top + CELL * index}" width="{CELL - 1}" height="{CELL - 1}"'
            title = (
                f"<title>{html.escape(name)}, {html.escape(columns[column])}: {weight:.2f}</title>"
            )
            marks.append(
                f'<rect {box} fill="#4c8dff" fill-opacity="{max(float(weight), 0.04):.2f}">{title}</rect>'
            )
    style = (
        f"width: {width}px; max-width: 100%; fill: currentColor; font: 13px system-ui, sans-serif"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" style="{style}" role="img"'
    return f'{head} aria-label="{html.escape(source)}">{"".join(marks)}</svg>'


def _translated(evaluation: Evaluation) -> Translated:
    assert isinstance(evaluation.measured, Translated)
    return evaluation.measured


def translations(evaluation: Evaluation) -> str | None:
    """Sources, translations and what people wrote: evenly chosen ones, and those that are farthest from it."""
    found, sentences = _translated(evaluation).translations, _translated(evaluation).pairs
    chosen = np.linspace(0, len(found) - 1, min(SHOWN, len(found))).round().astype(int).tolist()
    parts = [_listed("Evenly chosen", chosen, evaluation)]
    import sacrebleu

    scores = [
        sacrebleu.sentence_chrf(each.text, [target]).score
        for each, (_, target) in zip(found, sentences, strict=True)
    ]
    worst = [
        index
        for index in np.argsort(scores, kind="stable")[:SHOWN].tolist()
        if found[index].text != sentences[index][1]
    ]
    parts.append(
        _listed(
            "Farthest from what people wrote, by the letters that they share (chrF)",
            worst,
            evaluation,
        )
    )
    return titled("Translations", "".join(parts))


def _listed(title: str, rows: Sequence[int], evaluation: Evaluation) -> str:
    found, sentences = _translated(evaluation).translations, _translated(evaluation).pairs
    if not rows:
        return ""
    lines = []
    for index in rows:
        source, target = sentences[index]
        cells = (("source", source), ("model", found[index].text), ("people", target))
        said = "".join(
            f'<div><span class="note">{name}</span> {html.escape(text)}</div>'
            for name, text in cells
        )
        lines.append(f"<tr><th>{index}</th><td>{said}</td></tr>")
    return f'<h3>{title}</h3><table class="facts numbered">{"".join(lines)}</table>'


def alignments(evaluation: Evaluation) -> str | None:
    """Where the model looked while it translated the chosen example and the ones after it."""
    found, sentences = _translated(evaluation).translations, _translated(evaluation).pairs
    rows = range(evaluation.example, min(evaluation.example + ALIGNED, len(found)))
    drawn = [alignment(evaluation.run, sentences[row][0], found[row]) for row in rows]
    figures = [f'<figure class="scroll">{svg}<figcaption class="note">example {row}</figcaption></figure>'
               for row, svg in zip(rows, drawn, strict=True) if svg is not None]  # fmt: skip
    if not figures:
        return None
    intro = "Each row is a token that the model wrote, its weights on the tokens of the source sum to one, as in figure 3 of "
    intro += "Bahdanau, Cho, Bengio (2014).  <code>--example N</code> chooses others; "
    intro += "<code>zoo-evals translate --alignment FILE</code> "
    intro += "draws your own."
    return titled("Alignments", f'<p>{intro}</p><div class="plots">{"".join(figures)}</div>')


def lengths(evaluation: Evaluation) -> str | None:
    """BLEU by the length of the source."""
    bins = by_length(_translated(evaluation).pairs, _translated(evaluation).translations)
    if not bins:
        return None
    counts = ", ".join(f"{name}: {count}" for name, (count, _) in bins.items())
    intro = f"BLEU of the sentences whose source has so many words (how many there are: {counts}).  Without attention it falls as "
    intro += (
        "they grow, as one vector has to hold all of a sentence (Bahdanau et al. 2014, figure 2)."
    )
    figure = f'<figure style="max-width: 32rem">{lengths_plot({evaluation.run.recipe.name: bins})}</figure>'
    return titled("Long sentences", f"<p>{intro}</p>{figure}")


def phrases(evaluation: Evaluation) -> str | None:
    """Frequent phrases in the plane by what the encoder makes of them (figure 4 of the review, right)."""
    chosen = frequent_phrases([source for source, _ in _translated(evaluation).pairs], PHRASES)
    if len(chosen) < 10:  # too few for t-SNE's neighbourhoods
        return None
    run = evaluation.run
    sources = [[*task_of(run).source.encode(phrase), END] for phrase in chosen]
    inputs = {
        "source": packed(sources, max(map(len, sources))),
        "lengths": np.array(list(map(len, sources)), np.int32),
    }
    memory, _ = jax.jit(cast(Conditional, run.module).encode)(run.recipe.model, run.params, inputs)
    vectors = np.asarray(memory.summary, np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    svg, bare = labelled_map(tsne(vectors.astype(np.float32)), chosen, "Map of phrases")
    intro = f"The {len(chosen)} most frequent phrases of two to four words in the sources of the {evaluation.split} split, by t-SNE "
    intro += "of the encoder's last state (of both directions), as in figure 4 of LeCun, Bengio, Hinton (2015): what means or is "
    intro += f"built alike should lie together.{bare}"
    return titled("Map of phrases", f'<p>{intro}</p><div class="scroll">{svg}</div>')


def frequent_phrases(sources: Sequence[str], count: int) -> list[str]:
    """The most frequent runs of two to four words within sentences; of one that is nearly always a part of a longer one, that."""
    import collections

    counts: collections.Counter[tuple[str, ...]] = collections.Counter()
    for source in sources:
        words = source.rstrip(".!? ").split()
        for size in (2, 3, 4):
            counts.update(
                tuple(words[first : first + size]) for first in range(len(words) - size + 1)
            )
    inner = {part: times for phrase, times in counts.items() if len(phrase) > 2 for part in (phrase[1:], phrase[:-1])
             if times > 0.8 * counts[part]}  # fmt: skip
    ordered = sorted(
        (phrase for phrase in counts if phrase not in inner),
        key=lambda phrase: (-counts[phrase], phrase),
    )
    return [" ".join(phrase) for phrase in ordered[:count]]


def print_translations(run: Run, options: verbs.Translate) -> int:
    """Prints a line for each sentence; names words that are not in the vocabulary."""
    task, sentences = task_of(run), options.sentences
    if bool(sentences) == (options.file is not None):
        raise ValueError("translate: give sentences, or a file with --file")
    if options.alignment is not None and len(sentences) != 1:
        raise ValueError(f"--alignment: {len(sentences)} sentences, allowed: 1")
    lines = iter(sentences) if options.file is None else read_lines(options.file)
    # From a terminal each line is answered as it comes.
    interactive = options.file == pathlib.Path("-") and sys.stdin.isatty()
    rows = None
    while group := list(itertools.islice(lines, 1 if interactive else LINES)):
        rows = rows or min(len(group), ROWS)  # the same for all groups, the smaller last one too
        found = translate(
            run, group, beam=options.beam, length_penalty=options.length_penalty, rows=rows
        )
        if unknown := task.source.unknown(group):
            words = " ".join(map(repr, unknown))
            print(f"not in the vocabulary, read as <unk>: {words}", file=sys.stderr)
        for generated in found:
            print(generated.text, flush=True)
        if options.alignment is not None:
            svg = alignment(run, group[0], found[0])
            if svg is None:
                why = "the model has no attention, or the sentence no word; nothing to draw"
                raise DataError(f"{run.folder.path}: {why}")
            write_text(options.alignment, svg)
    return 0


def read_lines(file: pathlib.Path) -> Iterator[str]:
    """Lines of a file, plain or gzipped, or of standard input for -, as they are needed.

    Raises DataError naming the line that is not UTF-8.
    """
    if file.is_file():
        yield from formats.read_lines(file)
        return
    with contextlib.ExitStack() as stack:
        stdin = file == pathlib.Path("-")
        stream = sys.stdin.buffer if stdin else stack.enter_context(file.open("rb"))
        for number, line in enumerate(stream, 1):
            yield formats.decoded(f"{file}:{number}", line).rstrip("\r\n")


SECTIONS = (translations, alignments, lengths, phrases)
VERBS = {"translate": print_translations}
