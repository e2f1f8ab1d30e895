"""Decoders against exhaustive search, on small random models with logits from a table."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.parts import decode

VOCABULARY, LENGTH, END = 4, 4, 1
EXAMPLES, STATES = 48, 97
ALL = 40  # sequences that end within LENGTH, 1 + 3 + 9 + 27, more than prefixes of LENGTH - 1
NEVER, LATE = 0, 1  # examples that never end, and that end with the last token only
ROWS = np.arange(EXAMPLES)
FIRST = ROWS % VOCABULARY


def _tables():
    rng = np.random.default_rng(0)
    tables = {
        "logits": rng.normal(0, 1.5, (EXAMPLES, STATES, VOCABULARY)),
        "mix": rng.normal(0, 1, (2, VOCABULARY)),
    }
    return tables | {
        "ends": np.where(ROWS == NEVER, 99, np.where(ROWS == LATE, LENGTH - 1, 0)).astype(np.int32)
    }


TABLES = _tables()


def _begin(rows):
    """The carry identifies the example, because decoders permute rows."""
    zeros = jnp.zeros(len(rows), jnp.int32)
    trail = jnp.zeros((len(rows), 2), float)
    return {"example": jnp.asarray(rows, jnp.int32), "history": (zeros, trail), "time": zeros}


def _step(carry, tokens, ends_at=99):
    """Logits depend on all tokens so far, through a hash and a trail in separate leaves."""
    state, trail = carry["history"]
    state = (state * 31 + tokens.astype(jnp.int32) + 1) % STATES
    trail = trail / 2 + jnp.stack([tokens, tokens**2], axis=1).astype(trail.dtype)
    example, time = carry["example"], carry["time"]
    logits = jnp.asarray(TABLES["logits"], trail.dtype)[example, state] + jnp.sin(
        trail
    ) @ jnp.asarray(TABLES["mix"], trail.dtype)
    logits = logits.at[:, END].add(
        jnp.where(time < jnp.asarray(TABLES["ends"])[example], -jnp.inf, 0)
    )
    logits = logits.at[:, END].add(jnp.where(time >= ends_at, 100, 0))
    return carry | {"history": (state, trail), "time": time + 1}, logits


def _log_p(rows, tokens):
    """The same in numpy: tokens [rows, length] -> log p [rows, length, vocabulary]."""
    state, trail, token, results = (
        np.zeros(len(rows), int),
        np.zeros((len(rows), 2)),
        FIRST[rows],
        [],
    )
    for time in range(tokens.shape[1]):
        state = (state * 31 + token + 1) % STATES
        trail = trail / 2 + np.stack([token, token**2], axis=1)
        logits = TABLES["logits"][rows, state] + np.sin(trail) @ TABLES["mix"]
        logits[time < TABLES["ends"][rows], END] = -np.inf
        results.append(logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True)))
        token = tokens[:, time]
    return np.stack(results, axis=1)


def _scores(rows, tokens):
    """Lengths and sums of log p up to the first end token, or of all tokens without one."""
    ended = np.cumsum(tokens == END, axis=1)
    counts = ended - (tokens == END) == 0
    gains = np.take_along_axis(_log_p(rows, tokens), tokens[:, :, None], axis=2)[:, :, 0]
    return counts.sum(axis=1), np.sum(np.where(counts, gains, 0), axis=1)


@functools.cache
def _searcher(width, length_penalty, length, suppressed, ends_at):
    @jax.jit
    def run(carry, first):
        step = functools.partial(_step, ends_at=ends_at)
        penalty, options = length_penalty, {"end": END, "suppressed": suppressed}
        return decode.beam_search(
            step, carry, first, length, width=width, length_penalty=penalty, **options
        )

    return run


@functools.cache
def _beam(
    width, length_penalty, rows=tuple(ROWS), length=LENGTH, suppressed=(), ends_at=99, double=True
):
    """Results as numpy; double: in double precision."""
    with jax.enable_x64(double):
        run, first = (
            _searcher(width, length_penalty, length, suppressed, ends_at),
            jnp.asarray(FIRST[list(rows)], jnp.int32),
        )
        return jax.tree.map(np.asarray, run(_begin(rows), first))


@functools.cache
def _greedy(suppressed=(), end: int | None = END, double=False):
    run = jax.jit(
        functools.partial(decode.greedy, _step, length=LENGTH, end=end, suppressed=suppressed)
    )
    with jax.enable_x64(double):
        return jax.tree.map(np.asarray, run(_begin(ROWS), jnp.asarray(FIRST, int)))


@functools.cache
def _sampler(top_k=None, suppressed=(), length=LENGTH):
    return jax.jit(
        functools.partial(
            decode.sample, _step, length=length, top_k=top_k, end=END, suppressed=suppressed
        )
    )


def _sample(keys, rows=ROWS, temperature=1.0, **options):
    return _sampler(**options)(
        _begin(rows), jnp.asarray(FIRST[rows], int), key=keys, temperature=temperature
    )


@functools.cache
def _everything(row):
    """Lengths, scores, tokens of all ended sequences, and of all partial ones by length."""
    others = [token for token in range(VOCABULARY) if token != END]
    beginnings = [
        np.array(list(itertools.product(others, repeat=length)), int)
        for length in range(1, LENGTH + 1)
    ]
    ending = [np.full((1, LENGTH), END)]
    ending += [
        np.pad(each, ((0, 0), (0, LENGTH - each.shape[1])), constant_values=END)
        for each in beginnings[:-1]
    ]
    tokens = np.concatenate(ending)
    living = [_scores(np.full(len(each), row), each)[1] for each in beginnings]
    lengths, scores = _scores(np.full(len(tokens), row), tokens)
    return lengths, scores, tokens, living, beginnings[-1]


def _norm(scores, lengths, length_penalty):
    return scores / ((5 + lengths) / 6) ** length_penalty


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_unbounded_beam_equals_exhaustive_search(length_penalty):
    """Up to the length where no partial sequence can beat the best; later ends are not searched."""
    found = _beam(ALL, length_penalty)
    assert found.scores.dtype == np.float64
    for row in ROWS[ROWS != NEVER]:
        lengths, scores, tokens, living, _ = _everything(row)
        normalised = _norm(scores, lengths, length_penalty)
        looked = 1
        while looked < LENGTH and normalised[lengths <= looked].max() < _norm(
            living[looked - 1].max(), LENGTH, length_penalty
        ):
            looked += 1
        assert normalised[lengths <= looked].max() == normalised.max()
        order = [
            index
            for index in np.argsort(-normalised)
            if lengths[index] <= looked and np.isfinite(scores[index])
        ]
        np.testing.assert_array_equal(found.tokens[row, : len(order)], tokens[order])
        np.testing.assert_array_equal(found.lengths[row, : len(order)], lengths[order])
        np.testing.assert_allclose(found.scores[row, : len(order)], scores[order], rtol=1e-9)
        assert (found.scores[row, len(order) :] == -np.inf).all()
    assert len({len(each[np.isfinite(each)]) for each in found.scores}) > 2, (
        "all stop alike: nothing is shown"
    )


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_wider_beams_score_at_least_as_high(length_penalty):
    """Holds for these examples; in general a wider beam can lose what a narrower one keeps."""
    best = []
    for width in (1, 2, 3, 4, 5, 6, ALL):
        found = _beam(width, length_penalty)
        best.append(_norm(found.scores, found.lengths, length_penalty)[1:, 0])
    for narrow, wide in itertools.pairwise(best):
        assert (narrow <= wide + 1e-9).all()
    assert best[0].mean() < best[1].mean() < best[2].mean()


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_beam_of_width_one_ends_the_greedy_prefix_at_the_best_length(length_penalty):
    beginning, greedy, found = _greedy(suppressed=(END,)), _greedy(), _beam(1, length_penalty)
    log_p = _log_p(ROWS, beginning.tokens)
    before = np.cumsum(
        np.take_along_axis(log_p, beginning.tokens[:, :, None], axis=2)[:, :, 0], axis=1
    )
    sums = np.pad(before[:, :-1], ((0, 0), (1, 0))) + log_p[:, :, END]
    ends = np.argmax(_norm(sums, 1 + np.arange(LENGTH)[None], length_penalty), axis=1)
    expected = np.where(np.arange(LENGTH)[None] < ends[:, None], beginning.tokens, END)[1:]
    np.testing.assert_array_equal(found.tokens[1:, 0], expected)
    ended = (greedy.tokens == END).any(axis=1)
    assert 0 < ended.sum() < EXAMPLES
    pairs = [
        _norm(each.scores.reshape(EXAMPLES), each.lengths.reshape(EXAMPLES), length_penalty)
        for each in (found, greedy)
    ]
    assert (pairs[0] >= pairs[1] - 1e-5)[ended].all()
    np.testing.assert_allclose(found.scores[NEVER, 0], greedy.scores[NEVER], rtol=1e-5)
    np.testing.assert_array_equal(found.tokens[NEVER, 0], greedy.tokens[NEVER])


def _written(name):
    """Flat: rows, tokens, lengths and scores."""
    if name == "beam":
        found = _beam(3, 1.0)
        rows = np.repeat(ROWS, 3)
    elif name == "greedy":
        found, rows = _greedy(), ROWS
    else:
        rows = np.tile(ROWS, 8)
        found = jax.tree.map(
            np.asarray, _sample(jax.random.split(jax.random.key(1), rows.size), rows, 0.7)
        )
    return (
        rows,
        found.tokens.reshape(-1, LENGTH),
        found.lengths.reshape(-1),
        found.scores.reshape(-1),
    )


@pytest.mark.parametrize("name", ["greedy", "sample", "beam"])
def test_scores_equal_the_models_and_lengths_include_the_end(name):
    rows, tokens, lengths, scores = _written(name)
    there = np.isfinite(scores)
    assert there.all() or name == "beam"
    expected_lengths, expected = _scores(rows, tokens)
    np.testing.assert_allclose(scores[there], expected[there], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(lengths[there], expected_lengths[there])
    after = np.arange(LENGTH)[None] >= expected_lengths[:, None]
    assert (tokens[after & there[:, None]] == END).all()
    assert after[there].any()


def test_greedy_takes_the_most_probable_token_up_to_the_maximum_length():
    free, greedy = _greedy(end=None), _greedy()
    np.testing.assert_array_equal(free.tokens, np.argmax(_log_p(ROWS, free.tokens), axis=2))
    assert (free.lengths == LENGTH).all()
    counts = np.arange(LENGTH)[None] < greedy.lengths[:, None]
    np.testing.assert_array_equal(greedy.tokens[counts], free.tokens[counts])


def test_unfinished_search_returns_the_best_prefix():
    found = _beam(ALL, 1.0)
    _, _, _, living, beginnings = _everything(NEVER)
    np.testing.assert_array_equal(found.tokens[NEVER, 0], beginnings[np.argmax(living[-1])])
    np.testing.assert_allclose(found.scores[NEVER, 0], living[-1].max(), rtol=1e-5)
    assert found.lengths[NEVER, 0] == LENGTH
    assert (found.scores[NEVER, 1:] == -np.inf).all()
    assert np.isfinite(
        found.scores[LATE, :27]
    ).all()  # a hypothesis that ends at the last step counts as ended
    assert (found.scores[LATE, 27:] == -np.inf).all()


def test_search_does_not_depend_on_other_examples():
    """Also if it finishes long before or after the others."""
    together = _beam(3, 1.0)
    for row in (NEVER, LATE, 2, 3, 4):
        alone = _beam(3, 1.0, (row,))
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_array_equal(alone.lengths[0], together.lengths[row])
        np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-6)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_maximum_length_beyond_need_changes_nothing(length_penalty):
    """With a length penalty a longer one could still win, so the search looks further."""
    short, long = (
        _beam(3, length_penalty, tuple(ROWS[2:]), length, ends_at=4, double=False)
        for length in (6, 12)
    )
    what = slice(0, 3 if length_penalty == 0 else 1)
    assert (long.tokens[:, what, 5:] == END).all()
    np.testing.assert_array_equal(short.tokens[:, what], long.tokens[:, what, :6])
    np.testing.assert_allclose(short.scores[:, what], long.scores[:, what], rtol=1e-6)


def test_suppressed_tokens_are_not_written_nor_renormalised():
    keys = jax.random.split(jax.random.key(1), EXAMPLES)
    for found in (
        _greedy(suppressed=(0, 3)),
        _sample(keys, suppressed=(0, 3)),
        _beam(3, 1.0, suppressed=(0, 3), double=False),
    ):
        tokens, scores = np.asarray(found.tokens), np.asarray(found.scores).reshape(-1)
        there = np.isfinite(scores)
        flat = tokens.reshape(-1, LENGTH)[there]
        assert set(np.unique(flat)) == {1, 2}
        expected = _scores(np.repeat(ROWS, scores.size // EXAMPLES)[there], flat)[1]
        np.testing.assert_allclose(scores[there], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, 2)])
def test_sample_frequencies_match_probabilities(temperature, top_k):
    draws, length, row = 4096, 2, 5
    sequences = np.array(list(itertools.product(range(VOCABULARY), repeat=length)))
    sequences = sequences[(sequences[:, 0] != END) | (sequences[:, 1] == END)]
    logits = _log_p(np.full(len(sequences), row), sequences)
    if top_k is not None:
        logits = np.where(logits < np.sort(logits, axis=2)[:, :, -top_k, None], -np.inf, logits)
    likelihoods = np.exp(logits / temperature)
    likelihoods /= likelihoods.sum(axis=2, keepdims=True)
    gains = np.take_along_axis(likelihoods, sequences[:, :, None], axis=2)[:, :, 0]
    chance = gains[:, 0] * np.where(sequences[:, 0] == END, 1, gains[:, 1])
    assert np.isclose(chance.sum(), 1)
    keys = jax.random.split(jax.random.key(2), draws)
    tokens = np.asarray(
        _sample(keys, np.full(draws, row), temperature, top_k=top_k, length=length).tokens
    )
    counts = (tokens[:, None] == sequences[None]).all(axis=2).sum(axis=0)
    assert counts.sum() == draws
    assert (counts[chance == 0] == 0).all()
    possible = chance > 0
    chi_square = np.sum((counts - draws * chance)[possible] ** 2 / (draws * chance[possible]))
    freedom = possible.sum() - 1
    assert freedom > 2
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


def test_no_temperature_or_one_candidate_is_greedy():
    keys = jax.random.split(jax.random.key(1), EXAMPLES)
    for found in (_sample(keys, temperature=0.0), _sample(keys, temperature=3.0, top_k=1)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, _greedy())


def test_a_row_depends_on_its_own_key_alone():
    keys, others = (
        jax.random.split(jax.random.key(1), EXAMPLES),
        jax.random.split(jax.random.key(2), EXAMPLES),
    )
    tokens, again = _sample(keys).tokens, _sample(keys).tokens
    np.testing.assert_array_equal(tokens, again)
    assert (_sample(others).tokens != tokens).any()
    even = jnp.asarray(ROWS % 2 == 0)
    np.testing.assert_array_equal(_sample(jnp.where(even, keys, others)).tokens[::2], tokens[::2])
    order = ROWS[::-1]
    np.testing.assert_array_equal(_sample(keys[order], order).tokens, tokens[order])


def test_double_precision_is_kept(x64):
    greedy = _greedy(double=True)
    sampled = _sample(jax.random.split(jax.random.key(1), EXAMPLES), top_k=1)
    for found in (greedy, sampled):
        assert found.scores.dtype == np.float64
        np.testing.assert_array_equal(found.tokens, _greedy().tokens)
        np.testing.assert_allclose(
            found.scores, _scores(ROWS, np.asarray(found.tokens))[1], rtol=1e-9
        )


@pytest.mark.parametrize("write", [decode.greedy, functools.partial(decode.beam_search, width=1)])
def test_bfloat16_models_count_long_sequences_exactly(write):
    """bfloat16 cannot represent 301 or its score; log p of its tokens is exact, log 1/2."""
    ends, goes_on = (
        jnp.array(logits, jnp.bfloat16) for logits in ([-jnp.inf, 0, -jnp.inf], [0, -jnp.inf, 0])
    )

    def step(time, tokens):
        return time + 1, jnp.where(time[:, None] == 300, ends, goes_on)

    found = jax.jit(functools.partial(write, step, length=400, end=END))(
        jnp.zeros(1, int), jnp.zeros(1, int)
    )
    assert found.lengths.ravel()[0] == 301
    assert found.scores.dtype == np.float32
    np.testing.assert_allclose(found.scores.ravel()[0], 300 * np.log(0.5), rtol=1e-5)


@pytest.mark.parametrize("size", [5 * 8000, 4096, 3 * 4099])
def test_top_k_equals_a_full_sort(size):
    """With and without chunks that divide the size; ties go to the first, as in ``lax.top_k``."""
    scores = np.random.default_rng(0).integers(0, size // 2, (4, size)).astype(np.float32)
    scores[3] = 0
    values, places = decode._top_k(jnp.asarray(scores), 7)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(values, np.take_along_axis(scores, order, axis=1))
    np.testing.assert_array_equal(places, order)
