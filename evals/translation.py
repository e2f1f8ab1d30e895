"""Translation: what a model makes of sentences, how near that is to what people wrote, and where it looked.

BLEU (Papineni et al. 2002) is sacrebleu's, of whole sentences as they are, from 0 to 100; its signature is kept with the numbers.
"""

import functools
import html
import importlib.util
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from evals import unsupervised
from evals.evaluation import Evaluation, Restored, is_whole
from evals.page import plot, titled
from evals.runs import COLORS
from evals.words import labelled_map
from train.formats import DataError
from train.tokens import END, SPACE, UNKNOWN, packed, pieces
from zoo.base import Conditional
from zoo.decode import Written, beam_search, greedy

BEAM, LENGTH_PENALTY = 5, 1.0
ROWS, STEP = 32, 8
"""Sentences that are translated at a time, and the tokens by which the lengths that they are filled up to grow."""
BINS = (0, 8, 10, 12, 14, 17, math.inf)
"""Words of a source: more than the first, up to the next."""
FEWEST = 20
"""Sentences of a bin whose BLEU says anything."""
SHOWN, ALIGNED, PHRASES = 8, 4, 200
CELL = 20
"""Pixels of a square in an alignment."""
NEEDS_BLEU = "no BLEU: it needs sacrebleu: pip install 'purezoo[evals]'"


class Translation(NamedTuple):
    """text; tokens: int [time], with the end if it has one; score: log p of all of them, in nats."""

    text: str
    tokens: np.ndarray
    score: float


def translates(run: Restored) -> bool:
    """Whether the run's model makes sentences of sentences."""
    return "source" in run.data.tokenizers and isinstance(run.module, Conditional)


def translate(
    run: Restored,
    sentences: Sequence[str],
    *,
    beam: int = BEAM,
    length_penalty: float = LENGTH_PENALTY,
    rows: int | None = None,
) -> list[Translation]:
    """The best translations that a beam search finds; of a sentence without any word, one without any.

    rows: sentences at a time, for which, and for each length in steps of STEP tokens, the search is compiled: who translates
    several lists gives the same to all.  Unless given, ROWS, or as many as there are.
    Raises DataError naming the run's folder unless its model translates, ValueError naming what is out of range.
    """
    if not translates(run):
        what = f"{type(run.recipe.model).__module__} on data {run.data.name!r}"
        raise DataError(f"{run.folder.path}: {what} does not translate")
    require_search(run, beam, length_penalty)
    if rows is not None and not (is_whole(rows) and rows >= 1):
        raise ValueError(f"rows={rows!r}, allowed: a positive integer")
    sources = [[*run.data.tokenizers["source"].encode(sentence), END] for sentence in sentences]
    order = sorted((index for index, source in enumerate(sources) if len(source) > 1), key=lambda index: len(sources[index]))
    found = [Translation("", np.zeros(0, np.int32), 0.0)] * len(sentences)
    rows = min(ROWS, max(len(order), 1)) if rows is None else rows
    for first in range(0, len(order), rows):
        chosen = order[first : first + rows]
        group = [sources[index] for index in chosen] + [[END]] * (rows - len(chosen))
        width = -(-max(map(len, group)) // STEP) * STEP
        lengths = np.array([len(source) for source in group], np.int32)
        inputs = {"source": packed(group, width), "lengths": lengths}
        written = search(run.module, run.recipe.model, run.params, inputs, 3 * width, beam, length_penalty)
        tokens, counts, scores = (np.asarray(leaf[:, 0]) for leaf in written)
        for row, index in enumerate(chosen):
            own = tokens[row, : counts[row]]
            found[index] = Translation(run.data.tokenizers["target"].decode(own), own, float(scores[row]))
    return found


def require_search(run: Restored, beam: int, length_penalty: float) -> None:
    """Raises ValueError naming what is out of range."""
    vocabulary = len(run.data.vocabulary)
    if not (is_whole(beam) and 1 <= beam <= vocabulary):
        raise ValueError(f"beam={beam!r}, allowed: 1 to {vocabulary}")
    if not 0 <= length_penalty < math.inf:
        raise ValueError(f"length_penalty={length_penalty}, allowed: a finite number, 0 or more")


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def search(module: Conditional, cfg: Any, params: Any, inputs: Any, length: int, beam: int, length_penalty: Any) -> Written:
    """What a beam search finds, <unk> never, of inputs as ``zoo.base.Conditional.encode`` takes them; greedily with a beam of 1.

    A beam search of that width would write on past an end that was the most probable token.
    """
    memory, carry = module.encode(cfg, params, inputs)

    def step(carry: Any, tokens: Any) -> Any:
        return module.step(cfg, params, carry, tokens, memory)

    first = jnp.full(len(jax.tree.leaves(inputs)[0]), END, jnp.int32)
    how = {"end": END, "banned": (UNKNOWN,)}
    if beam == 1:
        return jax.tree.map(lambda leaf: leaf[:, None], greedy(step, carry, first, length, **how))
    return beam_search(step, carry, first, length, width=beam, length_penalty=length_penalty, **how)


def measure(
    run: Restored, split: str, sentences: Sequence[tuple[str, str]], loss: float
) -> tuple[dict[str, float], list[Translation], str]:
    """Metrics of a split whose mean loss is known, the translations of its sources, and how BLEU was computed.

    "BLEU"; "exact %": translations that are what people wrote, but for white space; "perplexity": of a target token.
    """
    found = translate(run, [source for source, _ in sentences])
    targets = [" ".join(target.split()) for _, target in sentences]
    exact = np.mean([each.text == target for each, target in zip(found, targets, strict=True)])
    with np.errstate(over="ignore"):  # of a model that diverged
        named = {f"{split} exact %": 100 * float(exact), f"{split} perplexity": float(np.exp(loss))}
    if importlib.util.find_spec("sacrebleu") is None:
        return named, found, NEEDS_BLEU
    score, signature = bleu([each.text for each in found], targets)
    return {f"{split} BLEU": score} | named, found, f"BLEU: sacrebleu {signature}, beam {BEAM}, length penalty {LENGTH_PENALTY:g}"


def bleu(translations: Sequence[str], targets: Sequence[str]) -> tuple[float, str]:
    """BLEU of a corpus, 0 to 100, and sacrebleu's signature.  Raises ValueError without any, or unless each has a target."""
    import sacrebleu

    if not translations or len(translations) != len(targets):
        raise ValueError(f"{len(translations)} translations and {len(targets)} targets, allowed: as many, at least one")

    metric = sacrebleu.BLEU()
    return metric.corpus_score(list(translations), [list(targets)]).score, str(metric.get_signature())


def by_length(sentences: Sequence[tuple[str, str]], translations: Sequence[Translation]) -> dict[str, tuple[int, float]]:
    """{"9-10": (sentences, BLEU), ...} by the words of the source; bins of fewer than FEWEST sentences are left out.

    Raises ValueError unless each sentence has a translation.
    """
    if len(sentences) != len(translations):
        raise ValueError(f"{len(translations)} translations of {len(sentences)} sentences, allowed: as many")
    words = np.array(
        [len([piece for piece in pieces("words", source) if any(map(str.isalnum, piece))]) for source, _ in sentences]
    )
    found = {}
    for low, high in itertools.pairwise(BINS):
        rows = np.flatnonzero((words > low) & (words <= high)).tolist()
        if len(rows) >= FEWEST:
            name = f"{low + 1:g}-{high:g}" if high < math.inf else f"{low + 1:g} or more"
            score, _ = bleu([translations[row].text for row in rows], [sentences[row][1] for row in rows])
            found[name] = (len(rows), score)
    return found


def lengths_plot(runs: dict[str, dict[str, tuple[int, float]]]) -> str:
    """BLEU over the length of the source of several runs, as SVG (Bahdanau et al. 2014, figure 2)."""

    def lines(axes: Any) -> None:
        for color, (name, bins) in zip(COLORS, runs.items(), strict=False):
            axes.plot(list(bins), [score for _, score in bins.values()], "o-", color=color, label=name, markersize=4)
        axes.set_xlabel("words of the source")
        axes.set_ylim(bottom=0)
        if len(runs) > 1:
            axes.legend(fontsize=9)

    return plot("BLEU", lines)


def attention(run: Restored, source: str, tokens: np.ndarray) -> np.ndarray | None:
    """Where the model looked, float32 [time, places], while it wrote these tokens; None if it has no attention."""
    places = [*run.data.tokenizers["source"].encode(source), END]
    before = np.concatenate([[END], tokens[:-1]]).astype(np.int32)
    inputs = {"source": np.array([places], np.int32), "lengths": np.array([len(places)], np.int32), "target": before[None]}
    _, seen = jax.jit(run.module.trace)(run.recipe.model, run.params, inputs)
    return np.asarray(seen["attention"][0], np.float32) if "attention" in seen else None


def alignment(run: Restored, source: str, translation: Translation) -> str | None:
    """SVG of ``attention``: a row for each token of the translation, a column for each of the source (figure 3 of the paper)."""
    weights = attention(run, source, translation.tokens) if len(translation.tokens) else None
    if weights is None:
        return None
    coded = {"source": [*run.data.tokenizers["source"].encode(source), END], "target": translation.tokens.tolist()}
    columns, rows = (
        [run.data.tokenizers[side].vocabulary[token].lstrip(SPACE) or SPACE for token in tokens] for side, tokens in coded.items()
    )
    left, top = (10 + 8 * max(map(len, names)) for names in (rows, columns))
    width, height = left + CELL * len(columns) + 4, top + CELL * len(rows) + 4
    marks = []
    for index, name in enumerate(columns):
        x, y = left + CELL * (index + 0.5) + 4, top - 6
        marks.append(f'<text transform="translate({x:g} {y:g}) rotate(-90)">{html.escape(name)}</text>')
    for index, name in enumerate(rows):
        y = top + CELL * (index + 0.5) + 4
        marks.append(f'<text x="{left - 6}" y="{y:g}" text-anchor="end">{html.escape(name)}</text>')
        for column, weight in enumerate(weights[index]):
            box = f'x="{left + CELL * column}" y="{top + CELL * index}" width="{CELL - 1}" height="{CELL - 1}"'
            title = f"<title>{html.escape(name)}, {html.escape(columns[column])}: {weight:.2f}</title>"
            marks.append(f'<rect {box} fill="#4c8dff" fill-opacity="{max(float(weight), 0.04):.2f}">{title}</rect>')
    style = f"width: {width}px; max-width: 100%; fill: currentColor; font: 13px system-ui, sans-serif"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" style="{style}" role="img"'
    return f'{head} aria-label="{html.escape(source)}">{"".join(marks)}</svg>'


def translations(evaluation: Evaluation) -> str | None:
    """Sources, translations and what people wrote: evenly chosen ones, and those that are farthest from it."""
    if evaluation.translations is None or not translates(evaluation.run):
        return None
    found, sentences = cast(list[Translation], evaluation.translations), evaluation.sentences
    chosen = np.linspace(0, len(found) - 1, min(SHOWN, len(found))).round().astype(int).tolist()
    parts = [_listed("Evenly chosen", chosen, evaluation)]
    if importlib.util.find_spec("sacrebleu") is not None:
        import sacrebleu

        scores = [sacrebleu.sentence_chrf(each.text, [target]).score for each, (_, target) in zip(found, sentences, strict=True)]
        worst = [
            index for index in np.argsort(scores, kind="stable")[:SHOWN].tolist() if found[index].text != sentences[index][1]
        ]
        parts.append(_listed("Farthest from what people wrote, by the letters that they share (chrF)", worst, evaluation))
    return titled("Translations", "".join(parts))


def _listed(title: str, rows: Sequence[int], evaluation: Evaluation) -> str:
    found, sentences = cast(list[Translation], evaluation.translations), evaluation.sentences
    if not rows:
        return ""
    lines = []
    for index in rows:
        source, target = sentences[index]
        cells = (("source", source), ("model", found[index].text), ("people", target))
        said = "".join(f'<div><span class="note">{name}</span> {html.escape(text)}</div>' for name, text in cells)
        lines.append(f"<tr><th>{index}</th><td>{said}</td></tr>")
    return f'<h3>{title}</h3><table class="facts numbered">{"".join(lines)}</table>'


def alignments(evaluation: Evaluation) -> str | None:
    """Where the model looked while it translated the chosen example and the ones after it."""
    if evaluation.translations is None or not translates(evaluation.run):
        return None
    found, sentences = cast(list[Translation], evaluation.translations), evaluation.sentences
    rows = range(evaluation.example, min(evaluation.example + ALIGNED, len(found)))
    drawn = [alignment(evaluation.run, sentences[row][0], found[row]) for row in rows]
    figures = [f'<figure class="scroll">{svg}<figcaption class="note">example {row}</figcaption></figure>'
               for row, svg in zip(rows, drawn, strict=True) if svg is not None]  # fmt: skip
    if not figures:
        return None
    intro = "Each row is a token that the model wrote, its weights on the tokens of the source sum to one, as in figure 3 of "
    intro += (
        "Bahdanau, Cho, Bengio (2014).  <code>--example N</code> chooses others, <code>--translate TEXT --alignment FILE</code> "
    )
    intro += "draws your own."
    return titled("Alignments", f'<p>{intro}</p><div class="plots">{"".join(figures)}</div>')


def lengths(evaluation: Evaluation) -> str | None:
    """BLEU by the length of the source."""
    if evaluation.translations is None or not translates(evaluation.run) or importlib.util.find_spec("sacrebleu") is None:
        return None
    if importlib.util.find_spec("matplotlib") is None:
        return titled("Long sentences", unsupervised.NEEDS.format(what="The plot", package="matplotlib"))
    bins = by_length(evaluation.sentences, cast(list[Translation], evaluation.translations))
    if not bins:
        return None
    counts = ", ".join(f"{name}: {count}" for name, (count, _) in bins.items())
    intro = (
        f"BLEU of the sentences whose source has so many words (how many there are: {counts}).  Without attention it falls as "
    )
    intro += "they grow, as one vector has to hold all of a sentence (Bahdanau et al. 2014, figure 2)."
    figure = f'<figure style="max-width: 32rem">{lengths_plot({evaluation.run.recipe.name: bins})}</figure>'
    return titled("Long sentences", f"<p>{intro}</p>{figure}")


def phrases(evaluation: Evaluation) -> str | None:
    """Frequent phrases in the plane by what the encoder makes of them (figure 4 of the review, right)."""
    if evaluation.translations is None or not translates(evaluation.run):
        return None
    chosen = frequent_phrases([source for source, _ in evaluation.sentences], PHRASES)
    if len(chosen) < 10:  # too few for t-SNE's neighbourhoods
        return None
    if importlib.util.find_spec("sklearn") is None:
        return titled("Map of phrases", unsupervised.NEEDS.format(what="A t-SNE map", package="scikit-learn"))
    run = evaluation.run
    sources = [[*run.data.tokenizers["source"].encode(phrase), END] for phrase in chosen]
    inputs = {"source": packed(sources, max(map(len, sources))), "lengths": np.array(list(map(len, sources)), np.int32)}
    memory, _ = jax.jit(cast(Conditional, run.module).encode)(run.recipe.model, run.params, inputs)
    vectors = np.asarray(memory.summary, np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    svg, bare = labelled_map(unsupervised.tsne(vectors.astype(np.float32)), chosen, "Map of phrases")
    intro = (
        f"The {len(chosen)} most frequent phrases of two to four words in the sources of the {evaluation.split} split, by t-SNE "
    )
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
            counts.update(tuple(words[first : first + size]) for first in range(len(words) - size + 1))
    inner = {part: times for phrase, times in counts.items() if len(phrase) > 2 for part in (phrase[1:], phrase[:-1])
             if times > 0.8 * counts[part]}  # fmt: skip
    ordered = sorted((phrase for phrase in counts if phrase not in inner), key=lambda phrase: (-counts[phrase], phrase))
    return [" ".join(phrase) for phrase in ordered[:count]]
