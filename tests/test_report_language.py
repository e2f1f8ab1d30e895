"""Language models' metrics and report against sums by hand, dictionaries, loops of ``apply``."""

import dataclasses
import gzip
import html
import itertools
import json
import re
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import evals
import evals.__main__
import evals.evaluation
import evals.report.document
import evals.report.points
import evals.report.words
import evals.tasks.language
import train
import zoo
from evals import ngrams
from evals.base import Evaluation, Measured, Subject
from evals.metrics import show_metric
from evals.run import load_dataset
from train import entry
from train.data import sequences, text
from train.data.sequences import COPY_SYMBOLS
from train.data.text import BEGIN, UNKNOWN, encode, tables, words
from train.engine.stage import evaluation_batches
from train.formats import DataError
from train.tasks import Algorithm, Classification, Language

SECTIONS = {
    "Samples": evals.tasks.language.samples,
    "Per-token loss": evals.tasks.language.passage,
    "Nearest words": evals.report.words.neighbours,
    "Analogies": evals.report.words.analogies,
    "Map of words": evals.report.words.word_map,
}
BATCH, WINDOW = 3, 7
LENGTHS = {"train": 200, "valid": 60, "test": 50}


def story(sentences, seed):
    """Sentences of a little grammar, with a rare word now and then."""
    rng = np.random.default_rng(seed)
    who = [
        "man",
        "woman",
        "king",
        "queen",
        "boy",
        "girl",
        "father",
        "mother",
        "students",
        "children",
    ]
    verbs, places = (
        ["sees", "finds", "likes", "tells", "meets"],
        ["house", "city", "garden", "river", "school", "market"],
    )
    lines = []
    for _ in range(sentences):
        a, b, verb, place = (rng.choice(each) for each in (who, who, verbs, places))
        lines.append(
            f"the {a} {verb} the {b} near this {place} ."
            if rng.random() < 0.9
            else f"x{rng.integers(1000)} & <so> ."
        )
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of texts, and a run of words."""
    folder = tmp_path_factory.mktemp("language")
    (folder / "texts").mkdir()
    for seed, (name, sentences) in enumerate(LENGTHS.items()):
        (folder / "texts" / f"{name}.txt").write_text(story(sentences, seed))
    recipe = train.Recipe(
        name="tiny-words",
        model=zoo.rnnlm.Config(vocabulary=2, features=8, units=(12,)),
        data=text.Config(path=str(folder / "texts"), tokens="words", window=WINDOW, min_count=2),
        preprocess="none",
        batch_size=BATCH,
        steps=50,
        select_by="loss",
        select_mode="min",
        optimizer=train.Optimizer(name="adam", learning_rate=0.02),
    )
    train.run(recipe, folder / "run", quiet=True)
    return folder


@pytest.fixture(scope="module")
def evaluation(folder):
    return evals.evaluate(folder / "run")


@pytest.fixture(scope="module")
def characters(evaluation, folder):
    """An untrained model of the characters of the same text."""
    how = text.Config(path=evaluation.run.recipe.data.path, window=9)
    dataset = train.load_data(how)
    assert isinstance(dataset.task, Language)
    cfg = zoo.nnlm.Config(vocabulary=len(dataset.task.vocabulary), context=3, features=4, hidden=5)
    run = evaluation.run._replace(
        recipe=dataclasses.replace(evaluation.run.recipe, data=how, model=cfg),
        module=zoo.nnlm,
        params=zoo.nnlm.init(cfg, jax.random.key(0)),
        data=evaluation.run.data._replace(task=dataset.task),
    )
    subject = Subject(run, dataset, "test", dataset.splits["test"], {"loss": 3.0})
    return Evaluation(subject, evals.tasks.language.measure(subject))


@pytest.fixture(scope="module")
def splits(evaluation):
    return load_dataset(evaluation.run, None).splits


def text_of(section, evaluation):
    text = section(evaluation)
    assert text is not None
    return text


def plain(text):
    """The words of a page."""
    return html.unescape(re.sub("<[^>]*>", "", text))


# ---------------------------------------------------------------- metrics


def test_the_loss_is_a_sum_over_the_tokens(evaluation, folder):
    tokens = words((folder / "texts" / "test.txt").read_text())
    known = set(evaluation.run.task.vocabulary)
    metrics, found = evaluation.metrics, evaluation.measured.log_probabilities
    assert metrics["test tokens"] == len(found) == evaluation.items == len(tokens)
    assert metrics["test unknown %"] == pytest.approx(
        100 * np.mean([token not in known for token in tokens])
    )
    assert metrics["test unknown %"] > 0
    assert -found.sum(dtype=np.float64) == pytest.approx(
        metrics["test loss nats"] * len(tokens), rel=1e-6
    )
    assert metrics["test perplexity"] == np.exp(metrics["test loss nats"])
    assert show_metric("test tokens", 12345.0, 9) == "test 12,345 tokens"
    assert show_metric("test perplexity", 1234.5678, 9) == "test perplexity 1234.57"


@pytest.mark.parametrize("kind", ["evaluation", "characters"])
def test_log_probabilities_are_in_the_order_of_the_text(kind, request):
    """Each segment at once, by ``apply``, without a carry."""
    evaluation = request.getfixturevalue(kind)
    run, table = evaluation.run, evaluation.table
    order: Any = evaluation_batches(table, BATCH, run.scaling).order
    parts = []
    for first, last in itertools.pairwise(order.bounds):
        inputs, targets = (
            jnp.asarray(table[name][first:last].reshape(-1)) for name in ("inputs", "targets")
        )
        log_p = jax.nn.log_softmax(
            jax.jit(run.module.apply)(run.recipe.model, run.params, inputs[None])[0]
        )
        parts.append(
            np.asarray(log_p)[np.arange(len(targets)), targets][
                table["mask"][first:last].reshape(-1)
            ]
        )
    assert len(parts) == BATCH
    np.testing.assert_allclose(
        evaluation.measured.log_probabilities, np.concatenate(parts), rtol=2e-4, atol=1e-5
    )


def test_documents_are_recovered_from_the_table():
    texts = {
        "train": ["a b c\n" * 9, "b\n", "c c\n"],
        "validation": ["a\n"],
        "test": ["c a b\n" * 5, "a b\n"],
    }
    made, vocabulary = tables("here", texts, text.Config(tokens="words", window=5))
    for split, parts in texts.items():
        found = evals.tasks.language.documents(made[split])
        assert len(found) == len(parts)
        for document, part in zip(found, parts, strict=True):
            np.testing.assert_array_equal(document, encode(words(part), vocabulary))


@pytest.mark.parametrize(
    ("kind", "orders", "split_up"), [("evaluation", (2, 3, 5), words), ("characters", (5, 7), list)]
)
def test_baselines_are_n_grams_of_the_training_text(kind, orders, split_up, request, folder):
    evaluation = request.getfixturevalue(kind)
    metrics, vocabulary = evaluation.metrics, evaluation.run.task.vocabulary

    def loss(how):
        return (
            np.log(metrics[f"test perplexity {how}"])
            if kind == "evaluation"
            else metrics[f"test loss {how} nats"]
        )

    training, valid, test = (
        encode(split_up((folder / "texts" / f"{name}.txt").read_text()), vocabulary)
        for name in LENGTHS
    )
    models = [ngrams.fit([training], len(vocabulary), order) for order in orders]
    for order, model in zip(orders, models, strict=True):
        assert loss(f"of {order}-grams") == pytest.approx(
            -np.log(ngrams.probabilities(model, test)).mean()
        )
    best, name = models[-1], f"with {orders[-1]}-grams"
    table = train.load_data(evaluation.run.recipe.data).splits["validation"]
    neural = np.exp(
        evals.tasks.language.token_log_probabilities(evaluation.run, table).astype(float)
    )
    other, grid = ngrams.probabilities(best, valid), np.linspace(0, 1, 1001)
    weight = metrics[f"test weight {name}"]
    assert weight == pytest.approx(
        grid[np.argmin([-np.log(w * neural + (1 - w) * other).mean() for w in grid])], abs=0.001
    )
    mixed = weight * np.exp(evaluation.measured.log_probabilities.astype(float)) + (
        1 - weight
    ) * ngrams.probabilities(best, test)
    assert loss(name) == pytest.approx(-np.log(mixed).mean())


def test_the_weight_is_not_chosen_on_the_test_split(evaluation, splits, monkeypatch):
    monkeypatch.setattr(evals.tasks.language, "ORDERS", {"words": (2,)})
    weights = []
    held_out = np.exp(
        evals.tasks.language.token_log_probabilities(evaluation.run, splits["validation"]).astype(
            np.float64
        )
    )
    for first in (0, 20):
        test = {name: column[first:] for name, column in splits["test"].items()} | {
            "reset": np.arange(len(splits["test"]["reset"]) - first) == 0
        }
        neural = np.full(int(test["mask"].sum()), 0.9 if first else 0.001)
        named = evals.tasks.language.baselines(
            evaluation.run, "test", {**splits, "test": test}, neural, held_out
        )
        weights.append(named["weight with 2-grams"])
    assert weights[0] == weights[1]


def test_training_split_has_no_baselines(evaluation, splits, monkeypatch):
    monkeypatch.setattr(evals.tasks.language, "ORDERS", {"words": (2,)})
    run = evaluation.run
    both = run._replace(recipe=dataclasses.replace(run.recipe, train_on="train+validation"))

    def names(run, split, own=True):
        subject = evaluation.subject._replace(run=run, split=split, table=splits[split], own=own)
        found = evals.tasks.language.measure(subject).metrics
        return {name.removeprefix(f"{split} ") for name in found if "grams" in name}

    assert names(run, "train") == names(both, "train") == names(both, "validation") == set()
    assert names(run, "validation") == names(both, "test") == {"perplexity of 2-grams"}
    assert names(run, "test") == {
        "perplexity of 2-grams",
        "perplexity with 2-grams",
        "weight with 2-grams",
    }
    ones = np.ones(int(splits["test"]["mask"].sum()))
    every = evals.tasks.language.baselines(both, "test", splits, ones, None)[
        "perplexity of 2-grams"
    ]
    assert (
        every
        != evals.tasks.language.baselines(run, "test", splits, ones, None)["perplexity of 2-grams"]
    )
    assert names(run, "test", own=False) == set(), "of other data"
    monkeypatch.setattr(evals.tasks.language, "MOST", 10)
    assert names(run, "test") == set()


@pytest.fixture(scope="module")
def copy(evaluation):
    """An untrained model of a memory task: tokens, but no text."""
    cfg = zoo.rnnlm.Config(vocabulary=len(COPY_SYMBOLS), features=4, units=(5,))
    run = evaluation.run._replace(
        recipe=dataclasses.replace(evaluation.run.recipe, model=cfg, data="copy:3"),
        params=zoo.rnnlm.init(cfg, jax.random.key(0)),
        data=evaluation.run.data._replace(name="copy:3", task=Algorithm(COPY_SYMBOLS)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequences, "SEQUENCES", {"test": 20})
        table = sequences.copy_memory(3)["test"]
        patch.setattr(evals.evaluation, "restore", lambda _: run)
        dataset = train.Dataset("copy:3", {"test": table}, Algorithm(COPY_SYMBOLS))
        patch.setattr(evals.evaluation, "load_dataset", lambda *_: dataset)
        return evals.evaluate("copy")


def test_tokens_that_are_no_text_have_a_loss_only(copy):
    assert list(copy.metrics) == ["test loss nats"]
    assert copy.items == copy.count == 20
    assert not set(SECTIONS.values()) & set(evals.report.document.sections_of(copy))


# ---------------------------------------------------------------- sections


def test_sections_appear_for_matching_models(evaluation, characters):
    there = {title: text_of(section, evaluation) for title, section in SECTIONS.items()}
    assert all(text.startswith(f"<section><h2>{title}</h2>") for title, text in there.items())
    assert there == {title: section(evaluation) for title, section in SECTIONS.items()}, (
        "always the same bytes"
    )
    shown = {title for title, section in SECTIONS.items() if section(characters) is not None}
    assert shown == {"Samples", "Per-token loss"}
    assert set(SECTIONS.values()) <= set(evals.report.document.sections_of(evaluation))


def test_other_models_have_no_language_sections(evaluation):
    run = evaluation.run._replace(
        module=zoo.mlp, params={}, data=evaluation.run.data._replace(task=Classification())
    )
    other = dataclasses.replace(
        evaluation, subject=evaluation.subject._replace(run=run), measured=Measured(metrics={})
    )
    assert not set(SECTIONS.values()) & set(evals.report.document.sections_of(other))


def test_samples_continue_the_example(evaluation, monkeypatch):
    monkeypatch.setattr(evals.tasks.language, "WRITTEN", {"words": 5})
    text = text_of(evals.tasks.language.samples, dataclasses.replace(evaluation, example=2))
    begun = evaluation.table["targets"][2][evaluation.table["mask"][2]]
    vocabulary = evaluation.run.task.vocabulary
    found = re.findall(r"<p style[^>]*><b>(.*?)</b>(.*?)</p>", text, re.DOTALL)
    assert re.findall(r"temperature ([\d.]+)</fig", text) == ["0.5", "0.8", "1"]
    for (prompt, written), temperature in zip(found, (0.5, 0.8, 1.0), strict=True):
        assert plain(prompt) == train.data.text.decode(begun, vocabulary)
        tokens = evals.tasks.language.write(
            evaluation.run, np.array([BEGIN, *begun], np.int32), 5, temperature=temperature
        )
        assert plain(written) == train.data.text.decode(tokens, vocabulary)


@pytest.mark.parametrize("example", [0, 4])
@pytest.mark.parametrize("kind", ["evaluation", "characters"])
def test_each_token_is_shaded_by_its_log_probability(kind, example, request, monkeypatch):
    monkeypatch.setattr(evals.tasks.language, "PASSAGE", {"words": 40, "characters": 60})
    evaluation = dataclasses.replace(request.getfixturevalue(kind), example=example)
    text = text_of(evals.tasks.language.passage, evaluation)
    passage = text[text.index("<div") :]
    spans = re.findall(
        r'style="--shade:([\d.]+)" title="p ([^"]+)">(.*?)</span>', passage, re.DOTALL
    )
    first = int(evaluation.table["mask"][:example].sum())
    targets = evaluation.table["targets"][evaluation.table["mask"]][first:][: len(spans)]
    assert len(spans) == (40 if kind == "evaluation" else 60)
    assert plain(passage).replace("↵", "") == train.data.text.decode(
        targets, evaluation.run.task.vocabulary
    )
    log_p = evaluation.measured.log_probabilities[first : first + len(spans)].astype(float)
    np.testing.assert_allclose([float(p) for _, p, _ in spans], np.exp(log_p), rtol=0.06)
    size = len(evaluation.run.task.vocabulary)
    np.testing.assert_allclose(
        [float(shade) for shade, _, _ in spans],
        0.55 * np.minimum(-log_p / np.log(size), 1),
        atol=0.006,
    )
    assert f"mean is {-log_p.mean():.2f} nats" in text


def test_a_rule_is_between_documents(evaluation, monkeypatch):
    made, _ = tables(
        "",
        {"train": ["the man .\n"], "validation": ["a\n"], "test": ["man\n", "the\n" * 9, ".\n"]},
        text.Config(tokens="words"),
    )
    found = np.full(int(made["test"]["mask"].sum()), -1.0)
    measured = dataclasses.replace(evaluation.measured, log_probabilities=found)
    many = dataclasses.replace(
        evaluation, subject=evaluation.subject._replace(table=made["test"]), measured=measured
    )
    assert text_of(evals.tasks.language.passage, many).count("<hr>") == 2
    assert (
        text_of(evals.tasks.language.passage, dataclasses.replace(many, example=1)).count("<hr>")
        == 1
    )


# ---------------------------------------------------------------- words


def planted(evaluation, vocabulary, vectors):
    """The same with these words' vectors."""
    run = evaluation.run
    params = run.params | {"embedding": {"embedding": jnp.asarray(vectors, jnp.float32)}}
    data = run.data._replace(task=dataclasses.replace(run.task, vocabulary=vocabulary))
    return dataclasses.replace(
        evaluation, subject=evaluation.subject._replace(run=run._replace(params=params, data=data))
    )


def test_neighbours_have_the_largest_cosine(evaluation, monkeypatch):
    monkeypatch.setattr(evals.report.words, "NEAREST", 3)
    rng = np.random.default_rng(0)
    vocabulary = (
        "<eos>",
        "<unk>",
        *(f"{'abc'[index % 3]}word{chr(97 + index // 3)}" for index in range(60)),
        "x",
        "9999",
    )
    vectors = rng.normal(size=(len(vocabulary), 5)) * rng.uniform(0.1, 9, (len(vocabulary), 1))
    vectors[1] = vectors[10]  # <unk> is nobody's neighbour
    asked = evals.report.words.content_words(vocabulary)
    assert len(set(asked)) == 12
    assert all(vocabulary[index].isalpha() and len(vocabulary[index]) > 3 for index in asked)
    text = text_of(evals.report.words.neighbours, planted(evaluation, vocabulary, vectors))
    lines = re.findall(r"<tr><th>(.*?)</th><td>(.*?)</td></tr>", text)
    assert [word for word, _ in lines] == [vocabulary[index] for index in asked]
    for index, (_, cell) in zip(asked, lines, strict=True):
        cosines = {}
        for other, word in enumerate(vocabulary):
            if other not in (index, UNKNOWN):
                a, b = vectors[index], vectors[other]
                cosines[word] = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        expected = sorted(cosines, key=lambda word: -cosines[word])[:3]
        assert plain(cell) == ", ".join(
            f"{word}\N{NO-BREAK SPACE}{cosines[word]:.2f}" for word in expected
        )


def test_large_vocabularies_show_frequent_content_words():
    vocabulary = (
        "<eos>",
        "<unk>",
        *(f"{'of' if index % 2 else 'word'}{chr(97 + index % 26)}" for index in range(3000)),
    )
    asked = evals.report.words.content_words(vocabulary)
    assert len(asked) == 12
    assert min(asked) < 510
    assert 1490 < max(asked) < 1500
    assert all(vocabulary[index].startswith("word") for index in asked)


def test_analogies_are_counted(evaluation):
    """man, woman, king, queen form an analogy; he, she do not; child has no plural here."""
    vocabulary = (
        "<eos>",
        "<unk>",
        "man",
        "woman",
        "king",
        "queen",
        "he",
        "she",
        "child",
        "year",
        "years",
        "day",
        "days",
    )
    vectors = np.eye(len(vocabulary), 16)
    vectors[3], vectors[5] = vectors[2] + 3 * np.eye(16)[14], vectors[4] + 3 * np.eye(16)[14]
    vectors[10], vectors[12] = (
        vectors[9] + 0.5 * np.eye(16)[15],
        vectors[11] + 0.5 * np.eye(16)[15],
    )  # nearest to c alone, too
    chosen = planted(evaluation, vocabulary, vectors)
    text = plain(
        text_of(evals.report.words.analogies, chosen).replace("</td>", " ").replace("</th>", " ")
    )
    units = evals.report.words.vectors(chosen)
    assert units is not None
    index = {word: number for number, word in enumerate(vocabulary)}
    pairs = (
        [("man", "woman"), ("he", "she"), ("king", "queen")],
        [("year", "years"), ("day", "days")],
    )
    right, alone = [0, 0], [0, 0]
    for number, known in enumerate(pairs):
        for a, b in known:
            for c, d in known:
                if a == c:
                    continue
                ia, ib, ic = index[a], index[b], index[c]
                rest = [each for each in range(2, len(vocabulary)) if each not in (ia, ib, ic)]
                rest.append(BEGIN)
                right[number] += (
                    max(rest, key=lambda each: units[each] @ (units[ib] - units[ia] + units[ic]))
                    == index[d]
                )
                alone[number] += max(rest, key=lambda each: units[each] @ units[ic]) == index[d]
    assert right[0] >= 2
    assert right[1] == alone[1] == 2
    assert f"he to she 6 {right[0]} {alone[0]} " in text
    assert "plural 2 2 2 " in text
    assert f"{sum(right)} of 8 questions" in text
    assert f"; {sum(alone)} by the one" in text
    assert (
        evals.report.words.analogies(
            planted(evaluation, ("<eos>", "<unk>", "man", "woman"), np.eye(4))
        )
        is None
    )


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 5, 80, 200]))
@settings(deadline=None, max_examples=15)
def test_map_labels_do_not_overlap(seed, count):
    rng = np.random.default_rng(seed)
    size = np.array([evals.report.points.WIDTH, evals.report.points.HEIGHT])
    points = np.clip(size * rng.normal(0.5, rng.choice([0.05, 0.3]), (count, 2)), 0, size)
    widths = rng.uniform(5, 90, count)
    corners = evals.report.points.place(points, widths)
    drawn = ~np.isnan(corners).any(axis=1)
    boxes = np.concatenate(
        [
            corners,
            corners + np.stack([widths, np.full(count, evals.report.points.LETTERS)], axis=1),
        ],
        axis=1,
    )[drawn]
    assert drawn.any()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= size).all()
    apart = (boxes[:, None, :2] >= boxes[None, :, 2:] - 1e-9) | (
        boxes[:, None, 2:] <= boxes[None, :, :2] + 1e-9
    )
    assert (apart.any(axis=2) | np.eye(len(boxes), dtype=bool)).all()
    inside = (points[None] > boxes[:, None, :2]) & (points[None] < boxes[:, None, 2:])
    assert not inside.all(axis=2).any()
    near = np.maximum(boxes[:, :2] - points[drawn], points[drawn] - boxes[:, 2:]).max(axis=1)
    assert (near <= 6).all(), "beside their points"


def test_the_map_has_every_word_once(evaluation):
    text = text_of(evals.report.words.word_map, evaluation)
    expected = [word for word in evaluation.run.task.vocabulary if word.isalpha()][:300]
    assert re.findall(r"<title>(.*?)</title>", text) == expected
    labels = re.findall(r"<text [^>]*>(.*?)</text>", text)
    assert set(labels) <= set(expected)
    assert len(expected) - len(labels) == int(
        (re.findall(r"(\d+) dots have no label", text) or ["0"])[0]
    )
    points = np.array(re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', text), float)
    assert (points >= 0).all()
    assert (points <= [evals.report.points.WIDTH, evals.report.points.HEIGHT]).all()


# ---------------------------------------------------------------- the command line


def said(capsys, *arguments: Any) -> str:
    assert evals.__main__.main(list(map(str, arguments))) == 0
    return capsys.readouterr().out


def test_command_evaluates_and_suggests_the_next_command(folder, evaluation, monkeypatch, capsys):
    monkeypatch.setattr(evals.tasks.language, "SECTIONS", ())
    out = said(capsys, folder / "run")
    assert f"next: {entry.program('evals')} sample {folder / 'run'} --prompt" in out
    assert f"test perplexity {evaluation.metrics['test perplexity']:.4f}" in out
    assert f"test {len(evaluation.measured.log_probabilities)} tokens" in out
    assert json.loads((folder / "run" / "eval.json").read_text())["metrics"] == pytest.approx(
        evaluation.metrics
    )
    assert "perplexity of 5-grams" in (folder / "run" / "report.html").read_text()


def test_generated_text_depends_on_the_seed_only(folder, capsys, evaluation):
    before = sorted(file.name for file in (folder / "run").iterdir())
    options = (
        "sample",
        folder / "run",
        "--tokens",
        9,
        "--prompt",
        "the man",
        "--temperature",
        0.9,
        "--seed",
    )
    first = said(capsys, *options, 3)
    assert first == said(capsys, *options, 3)
    assert first != said(capsys, *options, 4)
    assert first.startswith("the man ")
    tokens = first[:-1].replace("\n", " <eos> ").split()  # the last line end is print's
    assert len(tokens) == 11
    assert set(tokens) <= set(evaluation.run.task.vocabulary)
    assert sorted(file.name for file in (folder / "run").iterdir()) == before, "nothing is measured"


@pytest.fixture
def restored(evaluation, monkeypatch):
    """Without reading the run again."""
    monkeypatch.setattr(evals.evaluation, "restore", lambda _: evaluation.run)
    return evaluation.run


def test_without_temperature_the_most_probable_token_is_taken(restored, capsys):
    """Also if it is the only candidate, at any temperature."""
    apply = jax.jit(restored.module.apply)
    tokens = [BEGIN, *encode(["the", "queen"], restored.task.vocabulary).tolist()]
    for _ in range(9):
        logits = apply(
            restored.recipe.model, restored.params, jnp.asarray([tokens + [0] * (12 - len(tokens))])
        )
        tokens.append(int(jnp.argmax(logits[0, len(tokens) - 1])))
    expected = train.data.text.decode(tokens[1:], restored.task.vocabulary) + "\n"
    assert (
        said(capsys, "sample", "run", "--tokens", 9, "--prompt", "the queen", "--temperature", 0)
        == expected
    )
    assert (
        said(capsys, "sample", "run", "--tokens", 9, "--prompt", "the queen", "--top-k", 1)
        == expected
    )


def test_unknown_words_of_the_prompt_are_named(restored, capsys):
    assert evals.__main__.main(["sample", "run", "--tokens", "9", "--prompt", "blorb <unk>"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "not in the vocabulary, read as <unk>: 'blorb'\n"
    assert captured.out.startswith("<unk> <unk> ")


def test_a_prompt_begins_as_texts_do(evaluation, characters):
    for run, prompt, expected in (
        (evaluation.run, "", []),
        (evaluation.run, "the <eos> man", ["the", "<eos>", "man"]),
        (characters.run, "\n", []),
        (characters.run, "\nking\n", list("king\n")),
    ):
        tokens, unknown = evals.tasks.language.read_prompt(run, prompt)
        assert tokens.tolist() == [BEGIN, *encode(expected, run.task.vocabulary)]
        assert tokens.dtype == np.int32
        assert unknown == []
    assert evals.tasks.language.read_prompt(characters.run, "QüQ")[1] == ["Q", "ü"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tokens", "0"), "tokens=0, allowed: a positive number"),
        (("--temperature", "-1"), "temperature=-1.0, allowed: a finite number, 0 or more"),
        (("--temperature", "nan"), "temperature=nan, allowed"),
        (("--top-k", "0"), "top_k=0, allowed: 1 to "),
        (("--top-k", "999"), "top_k=999, allowed: 1 to "),
        (("--seed", "-1"), "seed=-1, allowed: 0 to 4294967295"),
    ],
)
def test_bad_options_are_one_clear_error(restored, capsys, options, message):
    assert evals.__main__.main(["sample", "run", *options]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("prompt", "length", "how", "message"),
    [
        ([], 3, {}, r"prompt: shape \(0,\), allowed: \[tokens\], at least one"),
        ([0, -1], 3, {}, "prompt: tokens outside of 0 to"),
        ([0, 10**6], 3, {}, "prompt: tokens outside of 0 to"),
        ([0], 2.5, {}, "tokens=2.5, allowed: a positive number"),
        ([0], True, {}, "tokens=True, allowed: a positive number"),
        ([0], 3, {"top_k": 1.5}, "top_k=1.5, allowed: 1 to "),
        ([0], 3, {"seed": 0.5}, "seed=0.5, allowed: 0 to "),
    ],
)
def test_invalid_arguments_generate_nothing(evaluation, prompt, length, how, message):
    with pytest.raises(ValueError, match=message):
        evals.tasks.language.write(evaluation.run, np.array(prompt, np.int32), length, **how)


def test_other_models_cannot_generate_text(copy, monkeypatch, capsys):
    monkeypatch.setattr(evals.evaluation, "restore", lambda _: copy.run)
    assert evals.__main__.main(["sample", "run"]) == 1
    message = f"{copy.run.folder.path}: sample is not for a model of algorithm; it has no verbs"
    assert capsys.readouterr().err == f"error: {message}\n"
    with pytest.raises(DataError, match="sample is not for a model of algorithm"):
        evals.tasks.language.read_prompt(copy.run, "the")


# ---------------------------------------------------------------- other data


@pytest.mark.parametrize("gzipped", [False, True])
def test_another_text_is_measured_with_the_vocabulary_of_the_run(
    folder, evaluation, tmp_path, capsys, monkeypatch, gzipped
):
    """As a whole, counting unknown words, without n-grams, which belong to another text."""
    monkeypatch.setattr(evals.tasks.language, "SECTIONS", ())
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    (run / "eval.json").write_text("untouched")
    file = tmp_path / ("other.txt.gz" if gzipped else "other.txt")
    text = "the man sees blorb .\nblorb & the queen\n"
    file.write_bytes(gzip.compress(text.encode()) if gzipped else text.encode())
    out = said(capsys, run, "--data", f"text:{file}")
    tokens = words(text)
    assert f"{len(tokens)} test tokens of text:{file}" in out
    assert (run / "eval.json").read_text() == "untouched"
    (written,) = run.glob("eval-on-*.json")
    record = json.loads(written.read_text())
    assert record["data"] == f"text:{file}"
    assert f"--data text:{file}" in record["command"]
    assert (run / written.name.replace("eval-", "report-").replace(".json", ".html")).exists()
    metrics = record["metrics"]
    assert metrics.keys() == {"test loss nats", "test perplexity", "test tokens", "test unknown %"}
    assert metrics["test tokens"] == len(tokens)
    vocabulary = evaluation.run.task.vocabulary
    unknown = [token not in vocabulary for token in tokens]
    assert sum(unknown) >= 2
    assert metrics["test unknown %"] == pytest.approx(100 * np.mean(unknown))
    made, _ = tables("", {"test": [text]}, evaluation.run.recipe.data, vocabulary)
    found = evals.tasks.language.token_log_probabilities(evaluation.run, made["test"])
    assert metrics["test loss nats"] == pytest.approx(-found.mean(dtype=np.float64), rel=1e-6)


def test_a_folder_of_other_texts_keeps_its_splits(folder, evaluation, tmp_path):
    for lines, name in enumerate(LENGTHS, 1):
        (tmp_path / f"{name}.txt").write_text("the man .\n" * lines)
    counts, files = {}, {evaluation.file}
    for split in ("train", "validation", "test"):
        other = evals.evaluate(folder / "run", split, data=f"text:{tmp_path}")
        counts[split] = other.metrics[f"{split} tokens"]
        files |= {other.file, other.report}
    assert counts == {"train": 4, "validation": 8, "test": 12}
    assert len(files) == 7
    with pytest.raises(DataError, match="no dev split; it has train, validation, test"):
        evals.evaluate(folder / "run", "dev", data=f"text:{tmp_path}")


@pytest.mark.parametrize(
    ("data", "task"),
    [
        ("pairs:{}", "translation"),
        ("digits", "classification into 10 classes"),
        ("copy:3", "algorithm"),
    ],
)
def test_data_of_another_task_are_one_line_that_names_both(folder, tmp_path, capsys, data, task):
    file = tmp_path / "pairs.tsv"
    file.write_text("one\tun\ntwo\tdeux\n")
    assert evals.__main__.main([str(folder / "run"), "--data", data.format(file)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert task in captured.err
    assert "language of " in captured.err
    assert captured.out == ""
