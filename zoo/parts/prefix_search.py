"""Prefix beam search: the most probable label sequences under a CTC network's outputs.

A CTC network gives log p of each label, 0 being the blank, in every frame.  An alignment assigns
one label to each frame.  Removing its repeats, then its blanks, gives a label sequence, whose
probability is the sum over all of its alignments (Graves et al. 2006).  The search keeps the
``beam`` most probable prefixes of sequences, and for each the sums of two kinds of alignments:
those that end in a blank, and those that end in the prefix's last label (Graves 2012, section 7.5;
Hannun et al. 2014, algorithm 1).  A frame with probabilities p changes the sums of a prefix y with
last label c to

    blank'(y) = p(blank) (blank(y) + label(y))
    label'(y) = p(c) (label(y) + arriving)
    arriving  = blank(x) + label(x), or blank(x) alone if x, too, ends in c

where x is y without c: a repeated label needs a blank in between.  A prefix that is reached both by
staying and by extending a shorter one has one place in the beam; prefixes are compared exactly, not
by hash values.

With a ``Lexicon``, outputs are spellings of words separated by one label, the space.  With a
``Bigram`` language model too, a prefix is weighted, as in Graves and Jaitly 2014 and Hannun et al.
2014 (equation 2), by

    exp(language_weight log p(words) + word_bonus (number of words))

A word is counted once, when it is complete: at the space, or at the end of the utterance, where
p(sentence end | last word) is counted too.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Float, Int

from zoo.parts.checking import (
    is_number,
    require_argument,
    require_integer,
    require_range,
    require_real,
    require_shape,
)
from zoo.parts.layers import at_least_float32

NOTHING = -1e30
"""log 0.  It is finite, because differences of infinities are NaN."""
IMPOSSIBLE = NOTHING / 2
"""Scores below this are those of prefixes without any alignment."""
ROOT = 0
"""The node of a lexicon at which every word begins."""


class Found(NamedTuple):
    """The label sequences that a search found, best first.

    labels: int32 [batch, beam, longest], padded with 0.  lengths: int32 [batch, beam].
    scores: [batch, beam], log of the probability summed over the alignments that the beam kept,
    plus the language model's part.  Unused places, if there are fewer sequences than ``beam``,
    have score -inf and length 0.
    """

    labels: Array
    lengths: Array
    scores: Array


class Lexicon(NamedTuple):
    """Words as a trie over labels; node 0 is the root.

    children: int32 [nodes, labels], the node that follows, -1 if this label may not follow.  The
    space leads from the last node of a word back to the root.
    word: int32 [nodes], the word that is complete at this node, -1 if none is.
    """

    children: Array | np.ndarray
    word: Array | np.ndarray


class Bigram(NamedTuple):
    """A language model of words 0..words - 1 given the previous word.

    log_p: float32 [words + 1, words + 1], finite.  Rows: the previous word; the last row is for the
    first word of a sentence.  Columns: the next word; the last column is the end of the sentence.
    """

    log_p: Array | np.ndarray


def lexicon(spellings: Sequence[Sequence[int] | np.ndarray], labels: int, space: int) -> Lexicon:
    """The lexicon in which word i has spelling i.

    labels: number of labels with the blank.  space: the label that separates words.
    Raises ValueError without spellings, for empty or equal ones, and for labels in them that do not
    exist, or are the blank or the space.
    """
    require_integer("labels", labels, at_least=3)
    require_integer("space", space, at_most=labels - 1)
    if not len(spellings):
        raise ValueError("spellings: none, allowed: one or more")
    children, word = [[-1] * labels], [-1]
    for index, spelling in enumerate(spellings):
        if not len(spelling):
            raise ValueError(f"spellings[{index}]: empty, allowed: one or more labels")
        node = ROOT
        for label in spelling:
            require_argument(
                f"spellings[{index}]",
                label,
                lambda one: type(one) is int and 1 <= one < labels and one != space,
                f"labels 1 to {labels - 1} without the space, {space}",
            )
            if children[node][label] < 0:
                children[node][label] = len(children)
                children.append([-1] * labels)
                word.append(-1)
            node = children[node][label]
        if word[node] >= 0:
            raise ValueError(f"spellings[{index}]: equal to spellings[{word[node]}]")
        word[node], children[node][space] = index, ROOT
    return Lexicon(np.array(children, np.int32), np.array(word, np.int32))


def bigram(sentences: Sequence[Sequence[int] | np.ndarray], words: int) -> Bigram:
    """Estimates a bigram model, with Witten-Bell smoothing, from sentences of words 0..words - 1.

    With c counts of a word w after h, and n the number of different words after h (method C of
    Witten and Bell 1991, in the interpolated form of Chen and Goodman 1998),

        p(w | h) = (c(h w) + n(h) p(w)) / (c(h) + n(h))
        p(w) = (c(w) + n / (words + 1)) / (c + n)

    where p(w) counts all words and sentence ends.  Every probability is positive, and each row
    sums to one.  After a word that never occurs, p(w) is used.
    Raises ValueError without sentences, and for words that do not exist.
    """
    require_integer("words", words)
    if not len(sentences):
        raise ValueError("sentences: none, allowed: one or more")
    counts = np.zeros((words + 1, words + 1))
    for index, sentence in enumerate(sentences):
        for word in sentence:
            require_integer(f"sentences[{index}]", word, at_least=0, at_most=words - 1)
        # The same number is the start of a sentence as a row, and its end as a column.
        path = [words, *sentence, words]
        np.add.at(counts, (path[:-1], path[1:]), 1)
    totals = counts.sum(0)
    kinds = np.count_nonzero(totals)
    p = (totals + kinds / (words + 1)) / (totals.sum() + kinds)
    followers = np.count_nonzero(counts, axis=1)[:, None]
    seen = counts.sum(1, keepdims=True) + followers
    rows = np.where(seen > 0, (counts + followers * p) / np.maximum(seen, 1), p)
    return Bigram(np.log(rows).astype(np.float32))


def search(
    log_probabilities: Float[Array, "..."],
    lengths: Int[Array, "..."],
    *,
    beam: int,
    longest: int,
    lexicon: Lexicon | None = None,
    language: Bigram | None = None,
    language_weight: Any = 0.0,
    word_bonus: Any = 0.0,
) -> Found:
    """The ``beam`` best label sequences of each utterance.

    log_probabilities: [batch, time, labels], such as ``jax.nn.log_softmax(logits)``; label 0 is the
    blank.  Scores are in its type, and at least in float32.
    lengths: [batch], number of frames of each utterance, 0 to time.  Later frames are ignored.
    longest: longest sequence.  Prefixes of this length are kept but not extended, so the
    probability of longer sequences is lost.
    lexicon: allow only its words, with one space between two.  Only sequences that end in a
    complete word, and the empty one, are found: a row may have none, and then all of its scores
    are -inf.
    language: model of the lexicon's words, with language_weight >= 0.  word_bonus: per word.  The
    two numbers may be traced.

    The result is exact if ``beam`` is at least the number of prefixes.  The search runs as one
    compiled program for each shape.  It takes time of order beam (labels + beam + longest) per
    frame.

    Raises ValueError for arguments of a wrong shape or out of range, a language model or a word
    bonus without a lexicon, and a language weight without a language model.  Values that are traced
    are not checked.

        >>> import jax.numpy as jnp
        >>> from zoo.parts import prefix_search
        >>> p = jnp.array([[[0.6, 0.4, 0.0], [0.6, 0.4, 0.0]]])
        >>> found = prefix_search.search(jnp.log(p), jnp.array([2]), beam=3, longest=2)
        >>> found.labels[0, 0, : found.lengths[0, 0]].tolist()  # the best path is two blanks
        [1]
        >>> round(float(jnp.exp(found.scores[0, 0])), 4)  # 0.4 0.6 + 0.6 0.4 + 0.4 0.4
        0.64
    """
    require_shape("log_probabilities", log_probabilities, ("batch", "time", "labels"))
    batch, time, labels = log_probabilities.shape
    require_shape("lengths", lengths, (batch,))
    require_integer("labels", labels)
    require_integer("beam", beam)
    require_integer("longest", longest)
    if not isinstance(lengths, Tracer):
        require_range("lengths", lengths, (0.0, float(time)))
    require_real("language_weight", language_weight)
    require_argument(
        "word_bonus", word_bonus, lambda one: is_number(one) and math.isfinite(one), "a number"
    )
    if lexicon is None:
        _require_zero("word_bonus", word_bonus, "a lexicon")
        if language is not None:
            raise ValueError("language: a model of words needs a lexicon; lexicon=None")
    else:
        require_shape("lexicon.children", lexicon.children, ("nodes", labels))
        require_shape("lexicon.word", lexicon.word, (lexicon.children.shape[0],))
        if language is not None:
            _require_language(language, lexicon)
    if language is None:
        _require_zero("language_weight", language_weight, "a language model")
    return _search(
        log_probabilities,
        lengths,
        lexicon,
        language,
        language_weight,
        word_bonus,
        beam=beam,
        longest=longest,
    )


def _require_zero(name: str, value: Any, what: str) -> None:
    require_argument(name, value, lambda number: number == 0, f"0 without {what}")


def _require_language(language: Bigram, lexicon: Lexicon) -> None:
    size = language.log_p.shape[0] if language.log_p.ndim else 0
    require_shape("language.log_p", language.log_p, (size, size))
    if not isinstance(lexicon.word, Tracer):
        words = int(np.max(np.asarray(lexicon.word), initial=-1)) + 1
        require_shape("language.log_p", language.log_p, (words + 1, words + 1))
    if not isinstance(language.log_p, Tracer) and not np.isfinite(np.asarray(language.log_p)).all():
        raise ValueError("language.log_p: not finite, allowed: the log of positive probabilities")


class _Words(NamedTuple):
    """The lexicon and the language model, in the type of the scores; see ``search``."""

    children: Array
    word: Array
    log_p: Array  # multiplied by the weight; [words + 1, words + 1], or [0, 0] without a model
    bonus: Array


class _Beam(NamedTuple):
    """Prefixes [batch, beam].  No two possible ones are equal.

    blank, label: log of the summed probability of the alignments that end in a blank, and in the
    prefix's last label.
    labels [batch, beam, longest], lengths; last: the last label, 0 if there is none.
    begins: bool [batch, beam, beam]; [b, j, i]: whether prefix i is equal to prefix j or to a
    prefix of it.  False if one of the two is impossible.
    node, previous, words: node of the lexicon, the last complete word (a `Bigram`'s last row if
    there is none), and the part of the score that complete words add.
    """

    blank: Array
    label: Array
    labels: Array
    lengths: Array
    last: Array
    begins: Array
    node: Array
    previous: Array
    words: Array


# Compiled here, since a scan over a new closure would be compiled again in every call outside jit.
@functools.partial(jax.jit, static_argnames=("beam", "longest"))
def _search(
    log_p: Array,
    frames: Array,
    lexicon: Lexicon | None,
    language: Bigram | None,
    weight: Any,
    bonus: Any,
    *,
    beam: int,
    longest: int,
) -> Found:
    """``search`` without its checks."""
    log_p = jnp.maximum(at_least_float32(log_p), NOTHING)
    batch, time, _ = log_p.shape
    valid = jnp.arange(time)[None] < frames[:, None]
    words, start = None, 0
    if lexicon is not None:
        scale = jnp.asarray(weight, log_p.dtype)
        table = jnp.zeros((0, 0)) if language is None else jnp.asarray(language.log_p)
        start = max(table.shape[0] - 1, 0)
        words = _Words(
            jnp.asarray(lexicon.children),
            jnp.asarray(lexicon.word),
            table.astype(log_p.dtype) * scale,
            jnp.asarray(bonus, log_p.dtype),
        )
    nothing = jnp.full((batch, beam), NOTHING, log_p.dtype)
    zeros = jnp.zeros((batch, beam), jnp.int32)
    first = _Beam(
        blank=nothing.at[:, 0].set(0),  # the empty prefix; all other places are unused
        label=nothing,
        labels=jnp.zeros((batch, beam, longest), jnp.int32),
        lengths=zeros,
        last=zeros,
        begins=jnp.zeros((batch, beam, beam), bool).at[:, 0, 0].set(True),
        node=zeros + ROOT,
        previous=zeros + start,
        words=jnp.zeros_like(nothing),
    )
    found, _ = jax.lax.scan(
        lambda state, frame: (_advance(state, *frame, words), None),
        first,
        (jnp.moveaxis(log_p, 1, 0), valid.T),
    )
    scores = jnp.logaddexp(found.blank, found.label)
    possible = scores > IMPOSSIBLE
    if words is not None:
        complete = words.word[found.node] >= 0
        possible &= complete | (found.lengths == 0)
        scores += found.words + jnp.where(complete, _gain(words, found), 0)
        if words.log_p.size:
            end = jnp.where(complete, words.word[found.node], found.previous)
            scores += words.log_p[end, start]
    scores, order = jax.lax.top_k(jnp.where(possible, scores, -jnp.inf), beam)
    possible = scores > -jnp.inf
    return Found(
        jnp.where(possible[:, :, None], _take(found.labels, order), 0),
        jnp.where(possible, _take(found.lengths, order), 0),
        scores,
    )


def _advance(state: _Beam, log_p: Array, valid: Array, words: _Words | None) -> _Beam:
    """The beam after one more frame: log_p [batch, labels]; valid [batch], False for padding.

    Padding changes nothing, whatever it contains, even NaN.
    Candidates are [batch, beam, labels]: each prefix, extended by each label.  The blank's column
    is the prefix as it is.
    """
    batch, beam, longest = state.labels.shape
    labels = log_p.shape[-1]
    row, place = jnp.arange(batch)[:, None], jnp.arange(beam, dtype=jnp.int32)[None]
    total = jnp.logaddexp(state.blank, state.label)
    # Staying.  If the prefix without its last label is in the beam too, extending it arrives here.
    parents = state.begins & (state.lengths[:, :, None] == state.lengths[:, None, :] + 1)
    has_parent, parent = jnp.any(parents, axis=2), jnp.argmax(parents, axis=2)
    arriving = jnp.where(
        _take(state.last, parent) == state.last, _take(state.blank, parent), _take(total, parent)
    )
    arriving = jnp.where(has_parent, arriving, NOTHING)
    stay_blank = total + log_p[:, :1]
    stay_label = jnp.logaddexp(state.label, arriving) + jnp.take_along_axis(log_p, state.last, 1)
    # Extending.  A repeated label only follows a blank, otherwise it would be the same label.
    column = jnp.arange(labels)[None, None]
    candidates = log_p[:, None, :] + jnp.where(
        column == state.last[:, :, None], state.blank[:, :, None], total[:, :, None]
    )
    allowed = jnp.broadcast_to((state.lengths < longest)[:, :, None], candidates.shape)
    from_words: Array | float = 0.0
    if words is not None:
        following = words.children[state.node]
        allowed &= following >= 0
        # Only the space leads back to the root: it completes a word.
        gain = jnp.where((following == ROOT) & (column > 0), _gain(words, state)[:, :, None], 0)
        from_words = state.words[:, :, None] + gain
    candidates = jnp.where(allowed, candidates, NOTHING)
    merged = jnp.where(has_parent, parent, beam)  # outside of the beam: dropped
    candidates = candidates.at[row, merged, state.last].set(NOTHING, mode="drop")
    candidates = candidates.at[:, :, 0].set(jnp.logaddexp(stay_blank, stay_label))
    # Selection.
    best, flat = jax.lax.top_k((candidates + from_words).reshape(batch, -1), beam)
    possible = best > IMPOSSIBLE
    source = jnp.where(valid[:, None], flat // labels, place)
    # The label that extends the prefix, 0 if none does.
    new = jnp.where(valid[:, None] & possible, (flat % labels).astype(jnp.int32), 0)
    stays = new == 0
    sums = jnp.take_along_axis(candidates.reshape(batch, -1), flat, axis=1)
    blank = jnp.where(stays, _take(stay_blank, source), NOTHING)
    label = jnp.where(stays, _take(stay_label, source), sums)
    blank, label = (jnp.where(possible, part, NOTHING) for part in (blank, label))
    shorter = _take(state.lengths, source)
    lengths = shorter + ~stays
    written = (jnp.arange(longest)[None, None] == shorter[:, :, None]) & ~stays[:, :, None]
    all_labels = jnp.where(written, new[:, :, None], _take(state.labels, source))
    last = jnp.where(stays, _take(state.last, source), new)
    # Prefix i begins prefix j if it did so without its last label, and j continues with this label.
    pairs = (source[:, :, None] * beam + source[:, None, :]).reshape(batch, -1)
    begins = _take(state.begins.reshape(batch, -1), pairs).reshape(batch, beam, beam)
    at = jnp.broadcast_to(lengths[:, None, :] - 1, begins.shape)
    continues = jnp.take_along_axis(all_labels, jnp.maximum(at, 0), axis=2)
    begins &= (at < 0) | (continues == last[:, None, :])
    begins &= possible[:, :, None] & possible[:, None, :]
    after = _Beam(
        blank=jnp.where(valid[:, None], blank, state.blank),
        label=jnp.where(valid[:, None], label, state.label),
        labels=all_labels,
        lengths=lengths,
        last=last,
        begins=begins,  # also in padding: only later frames would use it, and there are none
        node=state.node,
        previous=state.previous,
        words=state.words,
    )
    if words is None:
        return after
    node = _take(state.node, source)
    entered = jnp.where(stays, node, words.children[node, new])
    ended = ~stays & (entered == ROOT)
    return after._replace(
        node=entered,
        previous=jnp.where(ended, words.word[node], _take(state.previous, source)),
        words=_take(state.words, source) + jnp.where(ended, _take(_gain(words, state), source), 0),
    )


def _gain(words: _Words, state: _Beam) -> Array:
    """What completing the word at each prefix's node adds to its score, [batch, beam]."""
    bonus = jnp.broadcast_to(words.bonus, state.node.shape)
    if not words.log_p.size:
        return bonus
    return bonus + words.log_p[state.previous, jnp.maximum(words.word[state.node], 0)]


def _take(values: Array, places: Array) -> Array:
    """values[b, places[b, i]] for values [batch, n, ...], places [batch, m]."""
    return jax.vmap(lambda row, place: row.at[place].get(mode="promise_in_bounds"))(values, places)
