"""Captions: what a model says of images, how near that is to what people wrote, and whether it looks at what it names.

BLEU-1 to BLEU-4 are sacrebleu's, from 0 to 100; CIDEr-D and ROUGE-L those of ``evals.caption_metrics``, of words.

*Pointing*: while the model says what an object is called, is the centre of the place that it looks at most within that object's
box?  A name is its noun and what belongs to it: "an" says as much of an eight as "eight" does, and so a model looks before it
writes either.  Counted are objects of images whose caption is right, word for word, so that there is no doubt which object a name
means.  Chance is the part of all places whose centre is in the box.

A model without attention looks nowhere; its *saliency* takes the place of weights: the sum over a place's pixels of the absolute
gradient of log p(name) (Simonyan, Vedaldi, Zisserman 2013, section 3).
"""

import collections
import contextlib
import functools
import html
import importlib.util
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from evals.caption_metrics import cider_d, rouge_l
from evals.evaluation import Evaluation, Restored
from evals.page import picture, titled
from evals.translation import BEAM, LENGTH_PENALTY, NEEDS_BLEU, Translation, require_search, search
from train.batches import Batches
from train.formats import DataError, Images, read_image
from train.stream import make_batches
from train.tokens import END, pieces
from zoo.base import Conditional

ROWS = 50
"""Images that are captioned at a time."""
SHOWN = 3
"""Images in the report, of the best and of the worst captions."""
ZOOM = 160
"""Pixels of a picture's side in the report, about."""


class Pointing(NamedTuple):
    """Shares of objects in per cent: hit by the place that is looked at most; while the noun is written; by chance.

    objects: how many there are.  noun: NaN for saliency.
    """

    hit: float
    noun: float
    chance: float
    objects: int


def captions_images(run: Restored) -> bool:
    """Whether the run's model writes captions of images."""
    return isinstance(run.module, Conditional) and "source" not in run.data.tokenizers and "target" in run.data.tokenizers


def require_captions(run: Restored) -> None:
    """Raises DataError naming the run's folder unless its model writes captions of images."""
    if not captions_images(run):
        what = f"{type(run.recipe.model).__module__} on data {run.data.name!r}"
        raise DataError(f"{run.folder.path}: {what} does not write captions")


def caption(
    run: Restored, images: np.ndarray | Images, *, beam: int = BEAM, length_penalty: float = LENGTH_PENALTY
) -> list[Translation]:
    """The best captions that a beam search finds of raw images [n, height, width, channels].

    They have at most as many tokens as ``pairs.max_length`` allowed in training, and an end.
    Raises DataError naming the run's folder unless its model writes captions, ValueError naming what is out of range.
    """
    require_captions(run)
    require_search(run, beam, length_penalty)
    found, target = [], run.data.tokenizers["target"]
    table, size, longest = {"inputs": {"image": images}}, min(ROWS, len(images)), run.recipe.pairs.max_length + 1
    with contextlib.closing(make_batches(table, size, seed=None, scaling=run.scaling)) as batches:
        for step in range(batches.steps_per_epoch):
            inputs, rows = batches.batch(step)["inputs"], batches.rows(step)
            written = search(run.module, run.recipe.model, run.params, inputs, longest, beam, length_penalty)
            tokens, counts, scores = (np.asarray(leaf[:, 0]) for leaf in written)
            for row in np.flatnonzero(rows >= 0):
                own = tokens[row, : counts[row]]
                found.append(Translation(target.decode(own), own, float(scores[row])))
    return found


def measure(
    run: Restored,
    split: str,
    table: dict[str, Any],
    sentences: Sequence[tuple[str, str]],
    references: Sequence[Sequence[str]],
    loss: float,
) -> tuple[dict[str, float], list[Translation], str]:
    """Metrics of a split whose mean loss is known, the captions of its images, and how they were computed.

    references: of each image, all that people said; () where that is its one sentence.
    "exact %", of captions that someone wrote; "BLEU-1" to "BLEU-4", "CIDEr-D", "ROUGE-L"; "perplexity" of a token; where objects
    are known "objects %", whose names are said; "pointing %" with attention, "saliency pointing %" without, and "pointing by
    chance %".
    """
    found = caption(run, table["inputs"]["image"])
    said = _said(sentences, references)
    right = np.array([each.text in own for each, own in zip(found, said, strict=True)])
    written = [each.text for each in found]
    with np.errstate(over="ignore"):  # of a model that diverged
        named = {f"{split} exact %": 100 * float(right.mean()), f"{split} perplexity": float(np.exp(loss))}
    if "phrases" in table:
        named[f"{split} objects %"] = 100 * named_objects(table, [each.tokens for each in found])
    pointed = pointing(run, table, right)
    if pointed is not None and np.isnan(pointed.noun):
        named |= {f"{split} saliency pointing %": pointed.hit, f"{split} pointing by chance %": pointed.chance}
    elif pointed is not None:
        named |= {f"{split} pointing %": pointed.hit, f"{split} pointing at nouns %": pointed.noun}
        named |= {f"{split} pointing by chance %": pointed.chance}
    words = (
        [" ".join(pieces("words", text)) for text in written],
        [[" ".join(pieces("words", text)) for text in own] for own in said],
    )
    named |= {f"{split} CIDEr-D": float(np.mean(cider_d(*words))), f"{split} ROUGE-L": float(np.mean(rouge_l(*words)))}
    if importlib.util.find_spec("sacrebleu") is None:
        return named, found, NEEDS_BLEU
    import sacrebleu

    note = ""
    for order in (1, 2, 3, 4):
        metric = sacrebleu.BLEU(max_ngram_order=order)
        named[f"{split} BLEU-{order}"] = metric.corpus_score(written, [*zip_longest(*said)]).score
        note = f"BLEU: sacrebleu {metric.get_signature()}, beam {BEAM}, length penalty {LENGTH_PENALTY:g}"
    return named, found, note


def _said(sentences: Sequence[tuple[str, str]], references: Sequence[Sequence[str]]) -> list[list[str]]:
    """What people said of each image, its spaces single."""
    return [[" ".join(text.split()) for text in each] for each in references or [[target] for _, target in sentences]]


def _words(text: str) -> str:
    return " ".join(pieces("words", text))


def named_objects(table: dict[str, Any], written: Sequence[np.ndarray]) -> float:
    """Share of objects whose names, article and all, are among the tokens written; of two that are called alike both are.

    What is written is read as the longest names that any object of the table has: "a duck made of rubber" names no "duck".
    Raises ValueError where there is no object, or not something written for each row.
    """
    if len(written) != len(table["phrases"]) or not np.any(table["phrases"][..., 1] > 0):
        raise ValueError(f"{len(written)} captions, allowed: one for each of {len(table['phrases'])} rows that have objects")
    names = [
        collections.Counter(tuple(targets[slice(*span)].tolist()) for span in phrases if span[1])
        for targets, phrases in zip(table["targets"], table["phrases"], strict=True)
    ]
    known = set().union(*names)
    said = (collections.Counter(_named(tokens.tolist(), known)) for tokens in written)
    return sum((own & found).total() for own, found in zip(names, said, strict=True)) / sum(own.total() for own in names)


def _named(tokens: list[int], known: set[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """The longest known names in a text, from its beginning on."""
    lengths, at = sorted({len(name) for name in known}, reverse=True), 0
    while at < len(tokens):
        name = next((name for length in lengths if (name := tuple(tokens[at : at + length])) in known), None)
        if name is not None:
            yield name
        at += len(name or (0,))


def pointing(run: Restored, table: dict[str, Any], right: np.ndarray) -> Pointing | None:
    """Of images whose captions are ``right`` [n]; None without boxes or any such image."""
    rows = np.flatnonzero(right)
    if "boxes" not in table or not len(rows):
        return None
    found = []
    for first in range(0, len(rows), ROWS):
        chosen = jax.tree.map(lambda leaf: leaf[rows[first : first + ROWS]], table)  # noqa: B023 (used at once)
        inputs, phrases, boxes = chosen["inputs"], chosen["phrases"], chosen["boxes"]
        weights = attention(run, inputs["image"], inputs["target"])
        time = np.arange(inputs["target"].shape[1])
        said = (time >= phrases[..., :1]) & (time < phrases[..., 1:])  # [n, objects, time]
        if weights is None:
            looked = saliency(run, inputs["image"], inputs["target"], chosen["targets"], said)
            at_noun = np.full(boxes.shape[:2], np.nan)
        else:
            looked = np.where(said[..., None, None], weights[:, None], 0).max(axis=2)
            at_noun = _hits(np.take_along_axis(weights, chosen["words"][:, :, None, None], axis=1), _inside(run, boxes, weights))
        inside = _inside(run, boxes, looked)
        there = phrases[..., 1] > 0
        found.append(np.stack([_hits(looked, inside), at_noun, inside.mean(axis=(2, 3))])[:, there])
    shares = 100 * np.concatenate(found, axis=1).mean(axis=1)
    hit, noun, chance = map(float, shares)
    return Pointing(hit, noun, chance, sum(each.shape[1] for each in found))


def _inside(run: Restored, boxes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Which places of the grid of weights [..., rows, columns] have their centres in boxes [n, objects, 4]."""
    within = []
    for axis, (count, size) in enumerate(zip(weights.shape[-2:], cast(Any, run.data.input_shape), strict=False)):
        centres = (np.arange(count) + 0.5) * size / count
        within.append((centres >= boxes[..., axis, None]) & (centres < boxes[..., axis + 2, None]))
    return within[0][..., :, None] & within[1][..., None, :]


def _hits(weights: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Whether the places of most weight are inside; both [n, objects, rows, columns] -> [n, objects]."""
    peaks = weights.reshape(*inside.shape[:2], -1).argmax(axis=2)
    return np.take_along_axis(inside.reshape(*inside.shape[:2], -1), peaks[..., None], axis=2)[..., 0]


def saliency(run: Restored, images: np.ndarray, before: np.ndarray, targets: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Of raw images, for tokens chosen by ``said`` [n, objects, time]: [n, objects, height, width] of the model's grid."""
    batches = Batches({"inputs": {"image": images}}, len(images), seed=None, scaling=run.scaling)
    image, cfg = batches.batch(0)["inputs"]["image"], run.recipe.model
    gradients = [_gradient(run.module)(image, cfg, run.params, before, targets, each) for each in said.swapaxes(0, 1)]
    pixels = np.abs(np.stack(gradients, axis=1)).sum(axis=-1)
    rows, columns = cfg.grid
    height, width = (side - side % count for side, count in zip(pixels.shape[2:], cfg.grid, strict=True))
    cells = pixels[..., :height, :width].reshape(*pixels.shape[:2], rows, height // rows, columns, width // columns)
    return cells.sum(axis=(3, 5))


@functools.cache
def _gradient(module: Any) -> Any:
    def log_p(image: Any, cfg: Any, params: Any, before: Any, targets: Any, said: Any) -> Any:
        logits = jax.nn.log_softmax(module.apply(cfg, params, {"image": image, "target": before}))
        return jnp.sum(jnp.where(said, jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0], 0))

    return jax.jit(jax.grad(log_p))


def attention(run: Restored, images: np.ndarray, before: np.ndarray) -> np.ndarray | None:
    """Where the model looks in raw images while it writes what follows tokens [n, time]: [n, time, height, width] of the grid."""
    batches = Batches({"inputs": {"image": images}}, len(images), seed=None, scaling=run.scaling)
    inputs = {"image": batches.batch(0)["inputs"]["image"], "target": jnp.asarray(before)}
    return _attention(run.module, run.recipe.model, run.params, inputs)


def _attention(module: Any, cfg: Any, params: Any, inputs: Any) -> np.ndarray | None:
    _, seen = _trace(module)(cfg, params, inputs)
    return np.asarray(seen["attention"], np.float32) if "attention" in seen else None


@functools.cache
def _trace(module: Any) -> Any:
    return jax.jit(module.trace)


def overlays(run: Restored, image: np.ndarray, written: Translation) -> str:
    """The raw image, and for each word that the model wrote of it the image lit where it looked; figure 3 of the review."""
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    grey = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    figures = [f"<figure>{picture(grey, 'image')}<figcaption>{html.escape(written.text)}</figcaption></figure>"]
    # Filled up, so that captions of all lengths are one program: what comes later changes nothing.
    before = np.full(run.recipe.pairs.max_length + 1, END, np.int32)
    before[1 : len(written.tokens)] = written.tokens[:-1]
    weights = attention(run, image[None], before[None]) if len(written.tokens) else None
    if weights is not None:
        vocabulary = run.data.vocabulary
        for token, looked in zip(written.tokens, weights[0], strict=False):
            word = vocabulary[int(token)].lstrip("▁")
            title = f"while it writes {word}"
            lit = lighten(pixels, looked)
            figures.append(f"<figure>{picture(lit, title)}<figcaption>{html.escape(word)}</figcaption></figure>")
    return f'<div class="strips" style="--width: {ZOOM}px">{"".join(figures)}</div>'


def lighten(pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """An image, bytes [height, width, channels], dark but where the weights [rows, columns] are: bytes [height, width, 3]."""
    from PIL import Image

    height, width = pixels.shape[:2]
    mask = Image.fromarray((255 * weights / max(float(weights.max()), 1e-9)).astype(np.uint8))
    light = np.asarray(mask.resize((width, height), Image.Resampling.BILINEAR), np.float32)[..., None] / 255
    colours = np.broadcast_to(pixels[..., :3], (height, width, 3)) if pixels.shape[-1] == 1 else pixels[..., :3]
    return np.round(colours * (0.25 + 0.75 * light) + 40 * light).clip(0, 255).astype(np.uint8)


def captioned(evaluation: Evaluation) -> str | None:
    """The chosen image and the ones after it, and images with the worst captions: what was said, and where the model looked."""
    if evaluation.translations is None or not captions_images(evaluation.run):
        return None
    found, sentences = cast(list[Translation], evaluation.translations), evaluation.sentences
    images = evaluation.table["inputs"]["image"]
    said = _said(sentences, evaluation.references)
    wrong = {index for index in range(len(found)) if found[index].text not in said[index]}
    sure = sorted(range(len(found)), key=lambda index: -found[index].score / max(len(found[index].tokens), 1))
    chosen = range(evaluation.example, min(evaluation.example + SHOWN, len(found)))
    best, worst = [index for index in sure if index not in wrong][:SHOWN], [index for index in reversed(sure) if index in wrong]
    groups = {"From the chosen example on": chosen, "Right, and the model was most sure": best}
    groups |= {"Wrong, and the model was least sure": worst[:SHOWN]}
    parts = []
    for title, rows in groups.items():
        parts.append(f"<h3>{title}</h3>" if rows else "")
        for row in rows:
            note = f'<p class="note">example {row}; people: {html.escape("; ".join(said[row]))}</p>'
            parts.append(note + overlays(evaluation.run, images[row], found[row]))
    intro = f"{len(found) - len(wrong):,} of {len(found):,} captions are what people wrote.  Each picture is lit where the model "
    intro += (
        "looked while it wrote the word below, as in figure 3 of LeCun, Bengio, Hinton (2015).  <code>--example N</code> chooses "
    )
    intro += "others, <code>--caption FILE</code> captions your own."
    return titled("Captions", f"<p>{intro}</p>{''.join(parts)}")


def read_own(run: Restored, file: Any) -> np.ndarray:
    """An image file, resized to those of the training data, of a run that ``captions_images``.  Raises DataError naming it."""
    height, width, channels = cast(tuple[int, int, int], run.data.input_shape)
    return read_image(file, (height, width, channels))
