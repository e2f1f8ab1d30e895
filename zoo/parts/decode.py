"""Sequences that a model writes, given one step of it: greedily, at random, or the most probable ones by beam search.

    step(carry, tokens [rows]) -> (carry, logits [rows, vocabulary])        leaves of the carry lead with [rows]

Every function begins after a first token that each row is given, writes at most ``length`` more, and runs as one compiled loop
under ``jax.jit``, whose time grows linearly with its steps.  A sequence ends with the token ``end``, which counts as one of its
own; what comes after it is ``end`` again.  Scores are sums of log p of a sequence's tokens, its end among them, in float32 or
wider: those of the model when it is given the sequence itself.

All raise ValueError for a length, a number or a token that means nothing, such as a suppressed one outside of the vocabulary.
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
"""Candidates from which on the best are looked for in chunks, and how large these are at most."""
Step = Callable[[Any, Array], tuple[Any, Array]]


class Hypotheses(NamedTuple):
    """Sequences.  tokens: int [..., length].  lengths: int [...], their ends included.  scores: [...], sums of log p.

    A sequence that has no end within ``length`` has that length.
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
    """The most probable token at each step: [rows, length].  suppressed: tokens that are never written."""
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
    """Each token drawn given all before: [rows, length].  key: one for each row.

    temperature: logits are divided by it; 0 takes the most probable token.  top_k: draw among so many most probable ones only.
    Scores are those of the model, whatever the temperature.
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
        ("suppressed", each) for each in suppressed
    ]:
        require_integer(name, token, at_least=0, at_most=vocabulary - 1)
    if len(set(suppressed)) >= vocabulary:
        raise ValueError(f"suppressed: all {vocabulary} tokens, allowed: some of them")


def normalised(scores: Array, lengths: Array, length_penalty: Any) -> Array:
    """What hypotheses are compared by: log p / ((5 + length) / 6) ** length_penalty (Wu et al. 2016, equation 14)."""
    return scores / ((5 + lengths.astype(scores.dtype)) / 6) ** length_penalty


class _Search(NamedTuple):
    """A beam search on its way.

    number: steps taken.  The living have no end yet: carry [batch * width, ...], tokens and scores [batch, width].
    written, parents [length, batch, width]: what each living one wrote at a step, and which of the step before it goes on from.
    best, at, of, sums [batch, width]: of the finished ones, best first, how they compare, the step of their end, the living one
    before it, and log p.
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
    """The best sequences that a beam of ``width`` finds, best first: [batch, width, length]; see ``normalised``.

    Step is run on rows [batch * width], those of an example side by side; leaves of ``carry`` lead with [batch].  At every step
    the most probable ``width`` beginnings without an end are gone on with, and those that end are kept apart.  An example is done
    as soon as none of the former can become better than the best of the latter (length_penalty >= 0), the search when all are.
    Where fewer than ``width`` end within ``length``, the other scores are -inf, but for the best beginning when none does.
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
        # log p of a token is its logit and a constant of its row.
        rows = search.scores - jax.nn.logsumexp(logits, axis=-1).reshape(batch, width)
        logits = logits.reshape(batch, width, vocabulary)
        # What ends now competes with what has ended before.
        ending = (
            rows + logits[:, :, end] if end not in suppressed else jnp.full_like(rows, -jnp.inf)
        )
        finished = normalised(ending, search.number + 1, length_penalty)
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
        # What does not goes on.
        allowed = np.zeros(vocabulary, logits.dtype)
        allowed[[*suppressed, end]] = -np.inf
        going, flat = _top_k(
            (logits + rows[:, :, None] + allowed[None, None]).reshape(batch, -1), width
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

    def goes_on(search: _Search) -> Array:
        return (search.number < length) & ~jnp.all(_done(search, length, length_penalty))

    carry = jax.tree.map(repeat, carry)
    wide = jnp.promote_types(jax.eval_shape(step, carry, repeat(first))[1].dtype, jnp.float32)
    nothing, zeros = jnp.full((batch, width), -jnp.inf, wide), jnp.zeros((batch, width), jnp.int32)
    search = _Search(
        number=jnp.int32(0),
        carry=carry,
        tokens=repeat(first).reshape(batch, width),
        scores=nothing.at[:, 0].set(0),  # all begin alike: one of them is enough
        written=jnp.full((length, batch, width), end, first.dtype),
        parents=jnp.zeros((length, batch, width), jnp.int32),
        best=nothing,
        at=zeros,
        of=zeros,
        sums=nothing,
    )
    search = jax.lax.while_loop(goes_on, body, search)
    # Where nothing has ended, the best beginning: as if it ended one step later.
    ended = jnp.isfinite(search.best)
    instead = ~jnp.any(ended, axis=1)[:, None] & (jnp.arange(width)[None] == 0)
    at, of = jnp.where(instead, search.number, search.at), jnp.where(instead, 0, search.of)
    sums = jnp.where(instead, search.scores[:, :1], jnp.where(ended, search.sums, -jnp.inf))
    tokens = _trace_back(search, at, of, end)
    return Hypotheses(tokens, jnp.minimum(at + 1, length), sums)


def _top_k(scores: Array, count: int) -> tuple[Array, Array]:
    """``lax.top_k`` of rows [batch, n], for large n by way of the ``count`` chunks with the largest maxima."""
    batch, size = scores.shape
    # Chunks of unequal length would have to be copied to be filled up.
    chunk = max(n for n in range(1, CHUNK + 1) if size % n == 0)
    if size < MANY or chunk < CHUNK // 4:
        values, places = jax.lax.top_k(scores, count)
        return values, places
    chunks = scores.reshape(batch, -1, chunk)
    _, among = jax.lax.top_k(jnp.max(chunks, axis=2), min(count, chunks.shape[1]))
    among = jnp.sort(among, axis=1)  # so that of equal scores the first one is taken
    values, places = jax.lax.top_k(
        jnp.take_along_axis(chunks, among[:, :, None], axis=1).reshape(batch, -1), count
    )
    return values, jnp.take_along_axis(among, places // chunk, axis=1) * chunk + places % chunk


def _done(search: _Search, length: int, length_penalty: Any) -> Array:
    """[batch]: whether nothing that is living can become better than the best finished one."""
    most = jnp.max(
        search.scores, axis=1
    )  # log p only falls from here; a longer sequence has the mildest norm
    return search.best[:, 0] >= normalised(most, jnp.asarray(length), length_penalty)


def _trace_back(search: _Search, at: Array, of: Array, end: int) -> Array:
    """Tokens [batch, width, length] of the sequences that end at step ``at`` after the living one ``of`` of the step before."""

    def back(place: Array, index: Array) -> tuple[Array, Array]:
        reached = index < at
        tokens = jnp.where(reached, jnp.take_along_axis(search.written[index], place, axis=1), end)
        parents = jnp.take_along_axis(search.parents[index], place, axis=1)
        return jnp.where(reached, parents, place), tokens

    _, tokens = jax.lax.scan(back, of, jnp.arange(search.written.shape[0]), reverse=True)
    return jnp.moveaxis(tokens, 0, 2)
