"""Captions: what a model says of images, how near that is to what people wrote, and whether it looks at what it names.

BLEU-1 to BLEU-4 are sacrebleu's, from 0 to 100.  *Pointing*: while the model says an object's word, is the centre of the place
that it looks at most within that object's box?  Counted are objects of images whose caption is right, word for word, so that
there is no doubt which object a word means.  Chance is the part of all places whose centre is in the box.
"""

import functools
import html
import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from evals.evaluation import Evaluation, Restored
from evals.page import picture, titled
from evals.translation import BEAM, LENGTH_PENALTY, NEEDS_BLEU, Translation, require_search, search
from train.batches import Batches
from train.formats import DataError, read_image
from train.tokens import END
from zoo.base import Conditional

ROWS, LONGEST = 50, 30
"""Images that are captioned at a time, and the tokens of a caption at most."""
SHOWN = 3
"""Images in the report, of the best and of the worst captions."""
ZOOM = 160
"""Pixels of a picture's side in the report, about."""


class Pointing(NamedTuple):
    """Shares of objects in per cent: hit by the place that is looked at most; by chance.  objects: how many there are."""

    hit: float
    chance: float
    objects: int


def captions_images(run: Restored) -> bool:
    """Whether the run's model writes captions of images."""
    return isinstance(run.module, Conditional) and "source" not in run.data.tokenizers and "target" in run.data.tokenizers


def caption(run: Restored, images: np.ndarray, *, beam: int = BEAM, length_penalty: float = LENGTH_PENALTY) -> list[Translation]:
    """The best captions that a beam search finds of raw images [n, height, width, channels].

    Raises DataError naming the run's folder unless its model writes captions, ValueError naming what is out of range.
    """
    if not captions_images(run):
        what = f"{type(run.recipe.model).__module__} on data {run.data.name!r}"
        raise DataError(f"{run.folder.path}: {what} does not write captions")
    require_search(run, beam, length_penalty)
    found, target = [], run.data.tokenizers["target"]
    batches = Batches({"inputs": {"image": images}}, min(ROWS, len(images)), seed=None, scaling=run.scaling)
    for step in range(batches.steps_per_epoch):
        inputs, rows = batches.batch(step)["inputs"], batches.rows(step)
        written = search(run.module, run.recipe.model, run.params, inputs, LONGEST, beam, length_penalty)
        tokens, counts, scores = (np.asarray(leaf[:, 0]) for leaf in written)
        for row in np.flatnonzero(rows >= 0):
            own = tokens[row, : counts[row]]
            found.append(Translation(target.decode(own), own, float(scores[row])))
    return found


def measure(
    run: Restored, split: str, table: dict[str, Any], sentences: Sequence[tuple[str, str]], loss: float
) -> tuple[dict[str, float], list[Translation], str]:
    """Metrics of a split whose mean loss is known, the captions of its images, and how they were computed.

    "exact %"; "BLEU-1" to "BLEU-4"; "perplexity" of a token; with attention "pointing %" and "pointing by chance %".
    """
    found = caption(run, table["inputs"]["image"])
    targets = [" ".join(target.split()) for _, target in sentences]
    right = np.array([each.text == target for each, target in zip(found, targets, strict=True)])
    with np.errstate(over="ignore"):  # of a model that diverged
        named = {f"{split} exact %": 100 * float(right.mean()), f"{split} perplexity": float(np.exp(loss))}
    pointed = pointing(run, table, right)
    if pointed is not None:
        named |= {f"{split} pointing %": pointed.hit, f"{split} pointing by chance %": pointed.chance}
    if importlib.util.find_spec("sacrebleu") is None:
        return named, found, NEEDS_BLEU
    import sacrebleu

    note = ""
    for order in (1, 2, 3, 4):
        metric = sacrebleu.BLEU(max_ngram_order=order)
        named[f"{split} BLEU-{order}"] = metric.corpus_score([each.text for each in found], [targets]).score
        note = f"BLEU: sacrebleu {metric.get_signature()}, beam {BEAM}, length penalty {LENGTH_PENALTY:g}"
    return named, found, note


def pointing(run: Restored, table: dict[str, Any], right: np.ndarray) -> Pointing | None:
    """Of images whose captions are ``right`` [n]; None without attention, boxes or any such image."""
    rows = np.flatnonzero(right)
    if "boxes" not in table or not len(rows):
        return None
    height, width = table["inputs"]["image"].shape[1:3]
    hits, chances = [], []
    for first in range(0, len(rows), ROWS):
        chosen = rows[first : first + ROWS]
        weights = attention(run, table["inputs"]["image"][chosen], table["inputs"]["target"][chosen])
        if weights is None:
            return None
        down, across = (
            (np.arange(count) + 0.5) * size / count for count, size in zip(weights.shape[2:], (height, width), strict=True)
        )
        for looked, boxes, words in zip(weights, table["boxes"][chosen], table["words"][chosen], strict=True):
            for (top, left, bottom, right_), word in zip(boxes, words, strict=True):
                if word >= 0:
                    inside = ((down >= top) & (down < bottom))[:, None] & ((across >= left) & (across < right_))[None]
                    hits.append(inside.flat[looked[word].argmax()])
                    chances.append(inside.mean())
    return Pointing(100 * float(np.mean(hits)), 100 * float(np.mean(chances)), len(hits)) if hits else None


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
    before = np.concatenate([[END], written.tokens[:-1]]).astype(np.int32)
    weights = attention(run, image[None], before[None]) if len(written.tokens) else None
    if weights is not None:
        vocabulary = run.data.vocabulary
        for token, looked in zip(written.tokens, weights[0], strict=True):
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
    wrong = [index for index in range(len(found)) if found[index].text != " ".join(sentences[index][1].split())]
    worst = sorted(wrong, key=lambda index: found[index].score / max(len(found[index].tokens), 1))[:SHOWN]
    chosen = range(evaluation.example, min(evaluation.example + SHOWN, len(found)))
    parts = []
    for title, rows in (("From the chosen example on", chosen), ("Wrong ones of which the model was least sure", worst)):
        parts.append(f"<h3>{title}</h3>" if rows else "")
        for row in rows:
            note = f'<p class="note">example {row}; people: {html.escape(sentences[row][1])}</p>'
            parts.append(note + overlays(evaluation.run, images[row], found[row]))
    intro = f"{len(found) - len(wrong):,} of {len(found):,} captions are what people wrote.  Each picture is lit where the model "
    intro += (
        "looked while it wrote the word below, as in figure 3 of LeCun, Bengio, Hinton (2015).  <code>--example N</code> chooses "
    )
    intro += "others, <code>--caption FILE</code> captions your own."
    return titled("Captions", f"<p>{intro}</p>{''.join(parts)}")


def read_images(run: Restored, files: Sequence[Any]) -> np.ndarray:
    """Image files, resized to those of the training data.  Raises DataError that names the file."""
    shape = run.data.input_shape
    if shape is None or len(shape) != 3:
        raise DataError(f"{run.folder.path}: this run was not trained on images")
    height, width, channels = shape
    return np.stack([read_image(file, (height, width, channels)) for file in files])
