"""Decoding with any step function: greedy decoding, sampling and beam search.

    step(carry, tokens [rows]) -> (carry, logits [rows, vocabulary])

Leaves of the carry have the leading axis [rows].

Every function starts from a given first token per row, generates at most ``length`` more, and runs
as one compiled loop under ``jax.jit``, in time linear in the number of steps.  A sequence ends with
the token ``end``, which is part of it, and is padded with ``end``.  The score of a sequence is the
sum of log p of its tokens, including ``end``, in float32 or wider; it equals the score that the
model gives this sequence with teacher forcing.

All functions raise ValueError for invalid arguments, such as a suppressed token outside of the
vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int, Key

from zoo.parts.checking import require_integer, require_real
from zoo.parts.layers import at_least_float32

MANY, CHUNK = 4096, 256
"""The number of candidates from which ``_top_k`` works in chunks, and the largest chunk size."""
Step = Callable[[Any, Array], tuple[Any, Array]]


class Hypotheses(NamedTuple):
    """Generated sequences.

    tokens: int [..., length].  scores: [...], sums of log p.
    lengths: int [...], including ``end``; ``length`` for a sequence without one.
    """

    tokens: Array
    lengths: Array
    scores: Array


def greedy(
    step: Step,
    carry: Any,
    first: Int[Array, " rows"],
    length: int,
    *,
    end: int | None = None,
    suppressed: tuple[int, ...] = (),
) -> Hypotheses:
    """Takes the most probable token at each step: [rows, length].

    suppressed: tokens that are never generated.
    """
    return _write(
        step, carry, first, length, end, suppressed, lambda _, logits: jnp.argmax(logits, axis=-1)
    )


def sample(
    step: Step,
    carry: Any,
    first: Int[Array, " rows"],
    length: int,
    key: Key[Array, " rows"],
    *,
    end: int | None = None,
    temperature: Any = 1.0,
    top_k: int | None = None,
    suppressed: tuple[int, ...] = (),
) -> Hypotheses:
    """Draws each token given all previous ones: [rows, length].

    key: one per row.
    temperature: divides the logits; 0 takes the most probable token.
    top_k: draw from the k most probable tokens only; None: from all.
    suppressed: tokens that are never generated.
    Scores are those of the model; temperature and top_k do not change them.
    """
    require_real("temperature", temperature)

    def draw(key: Array, logits: Array) -> Array:
        if top_k is not None:
            require_integer("top_k", top_k, at_most=logits.shape[-1])
            logits = jnp.where(logits < jax.lax.top_k(logits, top_k)[0][-1], -jnp.inf, logits)
        drawn = jax.random.categorical(key, logits / jnp.where(temperature == 0, 1, temperature))
        return jnp.where(temperature == 0, jnp.argmax(logits), drawn)

    def choose(index: Array, logits: Array) -> Array:
        return jax.vmap(draw)(jax.vmap(jax.random.fold_in, (0, None))(key, index), logits)

    return _write(step, carry, first, length, end, suppressed, choose)


def _write(
    step: Step,
    carry: Any,
    first: Array,
    length: int,
    end: int | None,
    suppressed: tuple[int, ...],
    choose: Callable[[Array, Array], Array],
) -> Hypotheses:
    """choose(index of the step, logits) -> tokens [rows]."""
    require_integer("length", length)

    def body(
        state: tuple[Any, Array, Array], index: Array
    ) -> tuple[tuple[Any, Array, Array], tuple[Array, Array, Array]]:
        carry, tokens, ended = state
        carry, logits = step(carry, tokens)
        logits = at_least_float32(logits)
        _require_tokens(logits.shape[-1], end, suppressed)
        log_p = jax.nn.log_softmax(logits)
        tokens = choose(index, logits.at[:, jnp.asarray(suppressed, int)].set(-jnp.inf)).astype(
            first.dtype
        )
        gain = jnp.take_along_axis(log_p, tokens[:, None], axis=1)[:, 0]
        if end is not None:
            tokens, gain = jnp.where(ended, end, tokens), jnp.where(ended, 0, gain)
        after = ended if end is None else ended | (tokens == end)
        return (carry, tokens, after), (tokens, gain, ~ended)

    start = (carry, first, jnp.zeros(first.shape, bool))
    _, (tokens, gains, going) = jax.lax.scan(body, start, jnp.arange(length))
    return Hypotheses(tokens.T, jnp.sum(going, axis=0), jnp.sum(gains, axis=0))


def _require_tokens(vocabulary: int, end: int | None, suppressed: tuple[int, ...]) -> None:
    for name, token in [("end", end)] * (end is not None) + [
        ("suppressed", token) for token in suppressed
    ]:
        require_integer(name, token, at_least=0, at_most=vocabulary - 1)
    if len(set(suppressed)) >= vocabulary:
        raise ValueError(f"suppressed: all {vocabulary} tokens, allowed: some of them")


def normalised(scores: Array, lengths: Array, length_penalty: Any) -> Array:
    """Length-normalised scores, log p / ((5 + length) / 6) ** length_penalty.

    Beam search compares hypotheses by these (Wu et al. 2016, equation 14).
    """
    return scores / ((5 + lengths.astype(scores.dtype)) / 6) ** length_penalty


class _Search(NamedTuple):
    """The state of a beam search.

    number: number of steps so far.
    Live hypotheses, which have not ended:
        carry [batch * width, ...]; tokens, scores [batch, width]: last token and sum of log p.
        written, parents [length, batch, width]: token of each step, and index of the hypothesis in
        the previous step that it continues.
    Finished hypotheses, best first, [batch, width]:
        best: normalised score.  sums: sum of log p.
        at: step in which it ended.  of: index of the live hypothesis that it continues.
    """

    number: Array
    carry: Any
    tokens: Array
    scores: Array
    written: Array
    parents: Array
    best: Array
    at: Array
    of: Array
    sums: Array


def beam_search(
    step: Step,
    carry: Any,
    first: Int[Array, " batch"],
    length: int,
    *,
    end: int,
    width: int,
    length_penalty: Any = 1.0,
    suppressed: tuple[int, ...] = (),
) -> Hypotheses:
    """The best sequences that a beam of ``width`` finds, best first: [batch, width, length].

    Hypotheses are ranked by ``normalised``, with length_penalty >= 0.
    Leaves of ``carry`` have the leading axis [batch]; ``step`` runs on rows [batch * width], the
    hypotheses of an example side by side.  Every step continues the ``width`` most probable live
    hypotheses; finished ones are kept separately.  An example is done when no live hypothesis can
    become better than the best finished one; the search stops when all examples are done.
    If fewer than ``width`` hypotheses end within ``length``, the remaining scores are -inf.  If
    none ends, the best live hypothesis is returned first.
    """
    require_integer("length", length)
    require_integer("width", width)
    require_real("length_penalty", length_penalty)
    batch = first.shape[0]

    def repeat(leaf: Array) -> Array:
        return jnp.repeat(leaf, width, axis=0)

    def body(search: _Search) -> _Search:
        carry, logits = step(search.carry, search.tokens.reshape(-1))
        logits = at_least_float32(logits)
        vocabulary = logits.shape[-1]
        _require_tokens(vocabulary, end, suppressed)
        # log p of a token is its logit plus this constant of its row, so log_softmax of the whole
        # vocabulary is not needed.
        base = search.scores - jax.nn.logsumexp(logits, axis=-1).reshape(batch, width)
        logits = logits.reshape(batch, width, vocabulary)
        # Hypotheses that end now compete with those that have finished before.
        ending = (
            base + logits[:, :, end] if end not in suppressed else jnp.full_like(base, -jnp.inf)
        )
        finished = normalised(ending, search.number + 1, length_penalty)
        # A done example takes no more, so its result does not depend on the rest of its batch.
        done = _done(search, length, length_penalty)[:, None]
        best, order = jax.lax.top_k(
            jnp.concatenate([search.best, jnp.where(done, -jnp.inf, finished)], axis=1), width
        )
        steps, places = (
            jnp.full((batch, width), search.number),
            jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32)[None], (batch, width)),
        )
        at, of, sums = (
            jnp.take_along_axis(jnp.concatenate(pair, axis=1), order, axis=1)
            for pair in ((search.at, steps), (search.of, places), (search.sums, ending))
        )
        # Continuations without an end compete for the places in the beam.
        excluded = np.zeros(vocabulary, logits.dtype)
        excluded[[*suppressed, end]] = -np.inf
        going, flat = _top_k(
            (logits + base[:, :, None] + excluded[None, None]).reshape(batch, -1), width
        )
        parents, tokens = flat // vocabulary, (flat % vocabulary).astype(first.dtype)
        chosen = (jnp.arange(batch)[:, None] * width + parents).reshape(-1)
        return _Search(
            search.number + 1,
            jax.tree.map(lambda leaf: leaf[chosen], carry),
            tokens,
            going,
            search.written.at[search.number].set(tokens),
            search.parents.at[search.number].set(parents),
            best,
            at,
            of,
            sums,
        )

    def unfinished(search: _Search) -> Array:
        return (search.number < length) & ~jnp.all(_done(search, length, length_penalty))

    carry = jax.tree.map(repeat, carry)
    wide = jnp.promote_types(jax.eval_shape(step, carry, repeat(first))[1].dtype, jnp.float32)
    minus_infinity, zeros = (
        jnp.full((batch, width), -jnp.inf, wide),
        jnp.zeros((batch, width), jnp.int32),
    )
    search = _Search(
        number=jnp.int32(0),
        carry=carry,
        tokens=repeat(first).reshape(batch, width),
        scores=minus_infinity.at[:, 0].set(
            0
        ),  # all hypotheses are equal at first, so only one is live
        written=jnp.full((length, batch, width), end, first.dtype),
        parents=jnp.zeros((length, batch, width), jnp.int32),
        best=minus_infinity,
        at=zeros,
        of=zeros,
        sums=minus_infinity,
    )
    search = jax.lax.while_loop(unfinished, body, search)
    # If none has finished, take the best live hypothesis, as if it ended one step later.
    ended = jnp.isfinite(search.best)
    fallback = ~jnp.any(ended, axis=1)[:, None] & (jnp.arange(width)[None] == 0)
    at, of = jnp.where(fallback, search.number, search.at), jnp.where(fallback, 0, search.of)
    sums = jnp.where(fallback, search.scores[:, :1], jnp.where(ended, search.sums, -jnp.inf))
    tokens = _trace_back(search, at, of, end)
    return Hypotheses(tokens, jnp.minimum(at + 1, length), sums)


def _top_k(scores: Array, count: int) -> tuple[Array, Array]:
    """``lax.top_k`` of rows [batch, n].

    For large n it searches only the ``count`` chunks with the largest maxima, which hold the top k.
    """
    batch, size = scores.shape
    # Chunks must divide the row: padding the last one would copy all scores.
    chunk = max(n for n in range(1, CHUNK + 1) if size % n == 0)
    if size < MANY or chunk < CHUNK // 4:
        values, places = jax.lax.top_k(scores, count)
        return values, places
    chunks = scores.reshape(batch, -1, chunk)
    _, best_chunks = jax.lax.top_k(jnp.max(chunks, axis=2), min(count, chunks.shape[1]))
    best_chunks = jnp.sort(
        best_chunks, axis=1
    )  # so that ties go to the first score, as in lax.top_k
    values, places = jax.lax.top_k(
        jnp.take_along_axis(chunks, best_chunks[:, :, None], axis=1).reshape(batch, -1), count
    )
    return values, jnp.take_along_axis(
        best_chunks, places // chunk, axis=1
    ) * chunk + places % chunk


def _done(search: _Search, length: int, length_penalty: Any) -> Array:
    """[batch]: whether no live hypothesis can become better than the best finished one."""
    # A bound: log p can only decrease, and the longest sequence has the mildest normalisation.
    best_alive = jnp.max(search.scores, axis=1)
    return search.best[:, 0] >= normalised(best_alive, jnp.asarray(length), length_penalty)


def _trace_back(search: _Search, at: Array, of: Array, end: int) -> Array:
    """Tokens [batch, width, length] of finished sequences.

    at, of [batch, width]: see ``_Search``.
    """

    def back(place: Array, index: Array) -> tuple[Array, Array]:
        reached = index < at
        tokens = jnp.where(reached, jnp.take_along_axis(search.written[index], place, axis=1), end)
        parents = jnp.take_along_axis(search.parents[index], place, axis=1)
        return jnp.where(reached, parents, place), tokens

    _, tokens = jax.lax.scan(back, of, jnp.arange(search.written.shape[0]), reverse=True)
    return jnp.moveaxis(tokens, 0, 2)
