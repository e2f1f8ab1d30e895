"""Translation metrics, report and commands, on a smaller version of the quick recipe."""

import dataclasses
import gzip
import importlib.util
import io
import json
import pathlib
import re
import shlex
import shutil
import sys
from typing import Any

import jax
import jax.numpy as jnp
import num2words
import numpy as np
import pytest

import evals.__main__
import evals.lengths
import evals.report.document
import train
from evals import generation
from evals.base import Measured
from evals.generation import Generated
from evals.run import restore
from evals.runs import named
from evals.tasks import translation
from train.engine.optimizer import Optimizer
from train.formats import DataError
from train.recipes import RECIPES
from train.tasks import Captioning, Classification, Translation, to_dict
from train.tokens import END
from zoo import seq2seq

needs_plots = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib"
)


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
    """The quick recipe on the numbers below a thousand, with half of its units."""
    path = tmp_path_factory.mktemp("numbers")
    say = num2words.num2words
    order = np.random.default_rng(0).permutation(1000).tolist()
    (path / "numbers.tsv").write_text("".join(f"{say(n)}\t{say(n, lang='fr')}\n" for n in order))
    recipe = RECIPES["numbers-en-fr"]
    model = dataclasses.replace(recipe.model, features=32, encoder_units=(64,), decoder_units=(64,))
    optimizer = Optimizer(
        name="adam", learning_rate=0.01, schedule="cosine", decay=0.02, warmup=1, clip_norm=1.0
    )
    recipe = dataclasses.replace(
        recipe,
        data=dataclasses.replace(
            recipe.data, corpus="", source=str(path / "numbers.tsv"), buckets=1
        ),
        model=model,
        optimizer=optimizer,
        batch_size=30,
        epochs=8,
        eval_every=8,
    )
    train.run(recipe, path / "run", quiet=True)
    return path / "run"


@pytest.fixture(scope="module", name="evaluation")
def _evaluation(folder):
    return evals.evaluate(folder, example=2)


@pytest.fixture(scope="module", name="run")
def _run(evaluation):
    return evaluation.run


def test_numbers_that_were_never_seen_are_translated(evaluation):
    assert evaluation.metrics["test exact %"] > 90
    assert evaluation.metrics["test perplexity"] == pytest.approx(
        np.exp(evaluation.metrics["test loss nats"])
    )
    assert evaluation.metrics["test BLEU"] > 90
    assert re.search(
        r"sacrebleu nrefs:1\|case:mixed\|.*version:.*, beam 5, length penalty 1", evaluation.note
    )


def test_exact_metric_ignores_white_space(evaluation):
    same = [
        " ".join(target.split()) == found.text
        for (_, target), found in zip(
            evaluation.measured.pairs, evaluation.measured.translations, strict=True
        )
    ]
    assert evaluation.metrics["test exact %"] == pytest.approx(100 * np.mean(same))


def test_scores_are_those_of_the_model_given_its_translation(run):
    source = "seven hundred and six"
    (found,) = translation.translate(run, [source])
    tokens = np.array([END, *found.tokens])
    places = [*run.task.source.encode(source), END]
    inputs = {
        "source": np.array([places]),
        "lengths": np.array([len(places)]),
        "target": tokens[None, :-1],
    }
    log_p = np.asarray(
        jax.nn.log_softmax(jax.jit(seq2seq.apply)(run.recipe.model, run.params, inputs))[0]
    )
    assert found.score == pytest.approx(
        float(np.take_along_axis(log_p, tokens[1:, None], axis=1).sum()), abs=1e-4
    )
    assert found.text == "sept cent six"
    assert found.tokens[-1] == END


def test_sentences_do_not_depend_on_the_others_and_blank_ones_stay_blank(run):
    sentences = ["nine", "", "nine hundred and forty-eight", " ", "one hundred and ten"] * 8
    together = translation.translate(run, sentences)
    for sentence, each in zip(sentences[:5], together, strict=False):
        (alone,) = translation.translate(run, [sentence])
        assert each.text == alone.text
        assert each.score == pytest.approx(alone.score, abs=1e-3)
        assert bool(each.text) == bool(sentence.strip())
    assert translation.translate(run, []) == []


class Hasty:
    """A model that ends at once with probability 0.5, or with 0.48 after one more token."""

    @staticmethod
    def encode(cfg, params, inputs):
        return (), jnp.zeros(len(inputs), int)

    @staticmethod
    def decode_step(cfg, params, carry, tokens, memory):
        return carry + 1, jnp.where(
            carry[:, None] == 0,
            jnp.log(jnp.array([0.5, 0.02, 0.48])),
            jnp.log(jnp.array([1.0, 0, 0])),
        )


def test_a_beam_of_one_takes_the_most_probable_token_also_where_that_is_the_end():
    inputs = np.zeros((2, 1), np.int32)
    one, two = (generation.search(Hasty, None, None, inputs, 4, beam, 1.0) for beam in (1, 2))
    np.testing.assert_array_equal(one.tokens, np.full((2, 1, 4), END))
    np.testing.assert_array_equal(one.lengths, [[1], [1]])
    np.testing.assert_allclose(one.scores, np.log([[0.5], [0.5]]), rtol=1e-6)
    np.testing.assert_array_equal(two.tokens[:, 0, :2], [[2, END], [2, END]])


def test_out_of_range_options_are_named(run):
    with pytest.raises(ValueError, match="beam=0, allowed: 1 to 4"):
        translation.translate(run, ["one"], beam=0)
    with pytest.raises(ValueError, match="length_penalty=-1, allowed"):
        translation.translate(run, ["one"], length_penalty=-1)
    other = run._replace(data=run.data._replace(task=Captioning(run.task.target, 20)))
    with pytest.raises(
        DataError, match=f"{run.folder.path}: translate is not for a model of captioning"
    ):
        translation.translate(other, ["one"])


def test_attention_aligns_with_the_words(run):
    source = "six hundred and forty-two"
    (found,) = translation.translate(run, [source])
    weights = translation.attention(run, source, found.tokens)
    assert weights is not None
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    assert weights.shape == (len(found.tokens), len(run.task.source.encode(source)) + 1)
    svg = translation.alignment(run, source, found)
    assert svg is not None
    assert svg.count("<rect") == weights.size
    assert all(f">{word}<" in svg for word in ("six", "hundred", "cent", "deux", "&lt;/s&gt;"))


def made(texts, sources):
    """Manual translations of the sources."""
    return list(zip(sources, texts, strict=True)), [
        Generated(text, np.zeros(1), 0.0) for text in texts
    ]


def test_bleu_by_length_is_that_of_the_sentences_of_each_length():
    sources = ["w " * n for n in range(1, 41) for _ in range(10)]
    sentences, found = made(["the same old words again"] * 400, sources)
    bins = translation.by_length(sentences, found)
    assert {name: count for name, (count, _) in bins.items()} == {
        "1-8": 80, "9-10": 20, "11-12": 20, "13-14": 20, "15-17": 30, "18 or more": 230
    }  # fmt: skip
    assert all(score == pytest.approx(100) for _, score in bins.values())
    bad = Generated("nothing like it", np.zeros(1), 0.0)
    wrong = [
        bad if len(source.split()) > 17 else each
        for source, each in zip(sources, found, strict=True)
    ]
    assert translation.by_length(sentences, wrong)["18 or more"][1] < 1
    assert translation.by_length(sentences[:5], found[:5]) == {}


def test_frequent_phrases_are_whole_ones():
    sources = ["a man in a hat sits."] * 5 + ["a dog sits."] * 3
    phrases = translation.frequent_phrases(sources, 4)
    assert phrases[0] == "a man in a"
    assert "a dog sits" in phrases
    assert "man in" not in phrases, "it is always a part of longer ones"


@needs_plots
def test_the_report_shows_translations_alignments_lengths_and_phrases(evaluation):
    page = evals.report.document.render(evaluation)
    for title in ("Translations", "Alignments", "Long sentences", "Map of phrases"):
        assert f"<h2>{title}</h2>" in page
    assert page.count("example 2<") == 1
    assert "example 5<" in page
    assert evaluation.measured.pairs[0][0] in page


def test_other_tasks_have_no_translation_sections(evaluation):
    sections = {
        translation.translations,
        translation.alignments,
        translation.lengths,
        translation.phrases,
    }
    assert sections <= set(evals.report.document.sections_of(evaluation))
    data = evaluation.run.data._replace(task=Classification())
    subject = evaluation.subject._replace(run=evaluation.run._replace(data=data))
    other = dataclasses.replace(evaluation, subject=subject, measured=Measured(metrics={}))
    assert not sections & set(evals.report.document.sections_of(other))


def command(*arguments):
    return evals.__main__.main([str(argument) for argument in arguments])


def test_the_command_line_translates_sentences_files_and_standard_input(
    folder, tmp_path, capsys, monkeypatch
):
    assert command("translate", folder, "eleven", "five hundred and three", "--beam", 2) == 0
    assert capsys.readouterr().out == "onze\ncinq cent trois\n"
    file = tmp_path / "numbers.txt"
    file.write_bytes(b"eleven\r\n\nfive hundred and three")
    assert command("translate", folder, "--file", file) == 0
    assert capsys.readouterr().out == "onze\n\ncinq cent trois\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"eleven\n")))
    assert command("translate", folder, "--file", "-", "--beam", 1) == 0
    assert capsys.readouterr().out == "onze\n"
    assert command("translate", folder, "one dozen", "--alignment", tmp_path / "a.svg") == 0
    assert "not in the vocabulary, read as <unk>: 'dozen'" in capsys.readouterr().err
    assert (tmp_path / "a.svg").read_text().startswith("<svg")


def test_a_file_of_sentences_of_a_length_is_one_program(folder, tmp_path, capsys, monkeypatch):
    """Including the last, smaller batch of lines."""
    monkeypatch.setattr(translation, "LINES", 4)
    file = tmp_path / "numbers.txt"
    file.write_text("eleven\n" * 3 + "\n" + "twelve\n" * 4 + "thirteen\n")
    search: Any = generation.search
    search.clear_cache()
    assert command("translate", folder, "--file", file, "--beam", 3) == 0
    assert search._cache_size() == 1
    assert capsys.readouterr().out == "onze\n" * 3 + "\n" + "douze\n" * 4 + "treize\n"
    with pytest.raises(ValueError, match="rows=0, allowed: a positive integer"):
        translation.translate(restore(folder), ["eleven"], rows=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("translate", "RUN", "--beam", 3), "translate: give sentences, or a file with --file"),
        (
            ("translate", "RUN", "one", "two", "--alignment", "a.svg"),
            "--alignment: 2 sentences, allowed: 1",
        ),
        (
            ("translate", "RUN", "--file", "f", "--alignment", "a.svg"),
            "--alignment: 0 sentences, allowed: 1",
        ),
        (
            ("translate", "RUN", "one", "--file", "f"),
            "translate: give sentences, or a file with --file",
        ),
        (("translate", "RUN", "--file", "nowhere.txt"), "nowhere.txt"),
        (("translate", "RUN", "one", "--beam", 0), "beam=0, allowed: 1 to "),
        (("sample", "RUN"), "sample is not for a model of translation; its verbs: translate"),
    ],
)
def test_wrong_options_are_one_clear_error(folder, capsys, arguments, message):
    assert command(*(folder if each == "RUN" else each for each in arguments)) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert captured.out == ""


def test_a_file_that_is_not_utf8_is_named_with_its_line(folder, tmp_path, capsys):
    file = tmp_path / "bad.txt"
    file.write_bytes(b"one\n\xff\n")
    assert command("translate", folder, "--file", file) == 1
    assert "bad.txt:2: not UTF-8 text" in capsys.readouterr().err
    file.write_text("one\ntwo\n", "utf-16")
    assert command("translate", folder, "--file", file) == 1
    assert "bad.txt: UTF-16; expected text in UTF-8: iconv" in capsys.readouterr().err


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le"])
def test_utf16_from_standard_input_is_refused(monkeypatch, codec):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("one\ntwo\n".encode(codec))))
    with pytest.raises(DataError, match=r"^-:1: .*UTF-16; expected text in UTF-8"):
        list(translation.read_lines(pathlib.Path("-")))


def test_a_gzipped_file_is_read_as_training_reads_it(folder, tmp_path, capsys):
    file = tmp_path / "numbers.txt.gz"
    whole = gzip.compress("\ufeffeleven\r\n\r\nfive hundred and three".encode())
    file.write_bytes(whole)
    assert command("translate", folder, "--file", file) == 0
    assert capsys.readouterr().out == "onze\n\ncinq cent trois\n"
    file.write_bytes(whole[:20])
    assert command("translate", folder, "--file", file) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {file}: unreadable: ")
    assert captured.err.count("\n") == 1
    file.write_bytes(gzip.compress(b"one\n\xff\n"))
    assert command("translate", folder, "--file", file) == 1
    assert f"{file}:2: not UTF-8 text" in capsys.readouterr().err


def test_lines_to_translate_may_have_a_mark_and_odd_ends(tmp_path, monkeypatch):
    raw = "\ufeffone\r\n\r\ntwo\u2028\x0c three".encode()
    (tmp_path / "lines.txt").write_bytes(raw)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    for file in (tmp_path / "lines.txt", pathlib.Path("-")):
        assert list(translation.read_lines(file)) == ["one", "", "two\u2028\x0c three"]


@needs_plots
def test_lengths_of_several_runs_are_drawn(folder, tmp_path, capsys):
    assert evals.lengths.main([str(folder), "--plot", str(tmp_path / "l.svg")]) == 0
    assert "numbers-en-fr: 1-8 words" in capsys.readouterr().out
    assert "words in the source" in (tmp_path / "l.svg").read_text()
    assert evals.lengths.main([str(tmp_path), "--plot", str(tmp_path / "l.svg")]) == 1


def test_runs_of_one_recipe_are_labelled_by_folder(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    assert list(named([folder])) == ["numbers-en-fr"]
    assert list(named([folder, other])) == ["run", "other"]
    with pytest.raises(ValueError, match=r"another run is called 'run' too"):
        named([folder, folder])
    with pytest.raises(ValueError, match="5 runs, allowed: 1 to 4"):
        named([folder] * 5)


# ---------------------------------------------------------------- other data

OTHER = [
    ("eleven", "onze"),
    ("one  dozen", "douze"),
    ("five hundred and three", "cinq cent trois"),
    ("nine", "sept"),
]


@pytest.fixture(name="copied")
def _copied(folder, tmp_path):
    """The run, in a folder used only by this test."""
    shutil.copytree(folder, tmp_path / "copied")
    (tmp_path / "copied" / "eval.json").write_text("untouched")
    return tmp_path / "copied"


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_other_sentences_are_measured_with_the_vocabulary_of_the_run(
    copied, tmp_path, capsys, monkeypatch, run, suffix
):
    """All of them, even if too few to split."""
    monkeypatch.setattr(translation, "SECTIONS", ())
    names = [str(tmp_path / f"other.{language}{suffix}") for language in ("en", "fr")]
    for name, lines in zip(names, zip(*OTHER, strict=True), strict=True):
        raw = "".join(f"{line}\n" for line in lines).encode()
        pathlib.Path(name).write_bytes(gzip.compress(raw) if suffix else raw)
    data = f"pairs:{names[0]},{names[1]}"
    assert command(copied, "--data", data) == 0
    assert f"4 test examples of {data}" in capsys.readouterr().out
    assert (copied / "eval.json").read_text() == "untouched"
    assert not (copied / "report.html").exists()
    (file,) = copied.glob("eval-on-*.json")
    (page,) = copied.glob("report-on-*.html")
    assert page.stem.removeprefix("report") == file.stem.removeprefix("eval")
    record = json.loads(file.read_text())
    assert (record["data"], record["split"], record["count"]) == (data, "test", 4)
    words = shlex.split(record["command"])
    assert words == ["python", "-m", "evals", str(copied), "--split", "test", "--data", data]
    found = translation.translate(run, [source for source, _ in OTHER])
    assert found[0].text == "onze"
    exact = [each.text == target for each, (_, target) in zip(found, OTHER, strict=True)]
    assert not all(exact)
    assert record["metrics"]["test exact %"] == 100 * np.mean(exact)
    assert record["intervals"].keys() == {"test exact %"}
    other = evals.evaluate(copied, data=data)
    assert isinstance(run.task, Translation)
    assert to_dict(other.subject.dataset.task) == to_dict(run.task)
    assert run.task.source.encode("dozen")[0] in other.table["inputs"]["source"][1]
    assert [source for source, _ in other.table.extras["sentences"]] == [
        source for source, _ in OTHER
    ]


def test_the_runs_own_data_by_name_are_the_runs_own(folder, evaluation):
    again = evals.evaluate(folder, data=str(evaluation.run.recipe.data))
    assert again.file == evaluation.file == folder / "eval.json"
    assert again.metrics == evaluation.metrics


@pytest.mark.parametrize(
    ("data", "task"),
    [
        ("text:{}", "language"),
        ("digits", "classification into 10 classes"),
        ("adding:5", "regression"),
    ],
)
def test_data_of_another_task_are_one_line_that_names_both(copied, tmp_path, capsys, data, task):
    file = tmp_path / "book.txt"
    file.write_text("one\ntwo\n")
    assert command(copied, "--data", data.format(file)) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert task in captured.err
    assert "translation" in captured.err
    assert captured.out == ""


def test_faults_of_other_sentences_are_named(copied, tmp_path, capsys):
    (tmp_path / "a.en").write_text("one\ntwo\n")
    (tmp_path / "a.fr").write_text("un\n")
    assert command(copied, "--data", f"pairs:{tmp_path}/a.en,{tmp_path}/a.fr") == 1
    assert "expected the same number in both" in capsys.readouterr().err
    (tmp_path / "a.fr").write_text("un\ndeux\n")
    assert (
        command(copied, "--data", f"pairs:{tmp_path}/a.en,{tmp_path}/a.fr", "--split", "validation")
        == 1
    )
    assert "no validation split; it has test" in capsys.readouterr().err
    assert command(copied, "--data", f"pairs:{tmp_path}/a.en,{tmp_path}/a.fr", "--example", 2) == 1
    assert "example=2, allowed: 0 to 1" in capsys.readouterr().err
    assert not list(copied.glob("*-on-*"))
