"""Transcripts, their error rates, report and command, on words that are spelled in tones."""

import base64
import dataclasses
import importlib.util
import io
import itertools
import json
import re
import sys
import wave

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import evals
import evals.__main__
import evals.report.document
import train
import train.data
from evals import transcripts
from evals.base import Measured
from evals.error_rates import NEEDS_JIWER, Edit, ErrorCounts, count_errors
from evals.intervals import bootstrap, wilson
from evals.metrics import format_metric, show_metric
from evals.report import utterances
from evals.tasks import transcription
from evals.transcripts import aligned, dictionary_of, scored, text_of, transcribe
from tests.helpers import tones
from train.engine.optimizer import Optimizer
from train.formats import DataError
from train.tasks import Classification, Transcription
from zoo import ctc
from zoo.parts import labelling

needs_jiwer = pytest.mark.skipif(importlib.util.find_spec("jiwer") is None, reason="needs jiwer")
needs_plots = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib"
)
RECIPE = train.Recipe(
    name="tones",
    model=ctc.Config(features=2, vocabulary=2, units=(24,), stack=3),
    data=tones.Config(),
    preprocess="none",
    select_by="loss",
    optimizer=Optimizer(name="adam", learning_rate=0.01, clip_norm=1.0),
    batch_size=16,
    epochs=5,
    eval_every=5,
)


@pytest.fixture(scope="module", autouse=True)
def _tones():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.data.KINDS, "tones", tones)
        yield


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory, _tones):
    folder = tmp_path_factory.mktemp("tones") / "run"
    train.run(RECIPE, folder, quiet=True)
    return folder


@pytest.fixture(scope="module", name="evaluation")
def _evaluation(folder):
    return evals.evaluate(folder, example=3)


@pytest.fixture(scope="module", name="run")
def _run(evaluation):
    return evaluation.run


def command(*arguments):
    return evals.__main__.main([str(argument) for argument in arguments])


# ---------------------------------------------------------------- error rates


@needs_jiwer
def test_errors_by_hand():
    counts = count_errors(
        [tuple("one two"), ("a",), (), ("x", "y")], [tuple("on twoo"), ("a",), ("b",), ()]
    )
    assert counts.errors.tolist() == [2, 0, 1, 2]
    assert counts.labels.tolist() == [7, 1, 0, 2]
    assert counts.rate == 100 * 5 / 10
    assert counts.edits[0] == [
        Edit("equal", ("o", "n"), ("o", "n")),
        Edit("delete", ("e",), ()),
        Edit("equal", (" ", "t", "w"), (" ", "t", "w")),
        Edit("insert", (), ("o",)),
        Edit("equal", ("o",), ("o",)),
    ]
    assert counts.of(np.array([3, 1])).rate == pytest.approx(100 * 2 / 3)
    assert np.isnan(counts.of(np.array([2])).rate)
    with pytest.raises(ValueError, match="1 transcripts of 0 references, allowed: the same number"):
        count_errors([], [()])


@needs_jiwer
def test_labels_are_compared_as_they_are():
    """Not stripped, split or lower-cased."""
    pairs = [(" a", "a"), ("a  b", "a b"), ("A", "a"), ("a ", " a")]
    counts = count_errors(*([tuple(pair[side]) for pair in pairs] for side in (0, 1)))
    assert counts.errors.tolist() == [1, 1, 1, 2]
    assert count_errors([("ice cream", "")], [("ice", "cream")]).errors.tolist() == [2]


SENTENCES = st.lists(
    st.lists(st.sampled_from("ab "), max_size=6).map(tuple), min_size=3, max_size=3
)


@needs_jiwer
@settings(max_examples=25, deadline=None)
@given(SENTENCES, SENTENCES)
def test_errors_are_edit_distances_and_edits_lead_to_the_transcript(references, found):
    counts = count_errors(references, found)

    def packed(sentences):
        ids = [["ab ".index(label) for label in each] for each in sentences]
        lengths = jnp.array(list(map(len, ids)))
        return jnp.array([each + [0] * (6 - len(each)) for each in ids]), lengths

    distances = labelling.edit_distance(*packed(references), *packed(found))
    np.testing.assert_array_equal(counts.errors, distances)
    for edits, reference, transcript in zip(counts.edits, references, found, strict=True):
        assert sum((edit.reference for edit in edits), ()) == reference
        assert sum((edit.transcript for edit in edits), ()) == transcript


@needs_jiwer
def test_the_rate_is_that_of_jiwer_on_clean_text():
    import jiwer

    references, found = ["one two three", "six"], ["one too three", "six six seven"]
    words = count_errors(*([tuple(text.split()) for text in each] for each in (references, found)))
    assert words.rate == pytest.approx(100 * jiwer.wer(references, found))
    letters = count_errors(*([tuple(text) for text in each] for each in (references, found)))
    assert letters.rate == pytest.approx(100 * jiwer.cer(references, found))


def test_the_bootstrap_draws_groups():
    errors, labels = np.array([5, 0, 1, 9, 2, 3]), np.array([10, 10, 5, 20, 10, 5])
    groups = ["a", "a", "b", "c", "d", "d"]
    random, rates = np.random.default_rng(1), []
    above, below = np.array([5, 1, 9, 5]), np.array([20, 5, 20, 15])
    for _ in range(20000):
        drawn = random.integers(0, 4, 4)
        rates.append(above[drawn].sum() / below[drawn].sum())
    assert bootstrap(errors, labels, groups) == pytest.approx(
        np.quantile(rates, (0.025, 0.975)), abs=0.01
    )
    assert bootstrap(errors, labels, groups) == bootstrap(errors, labels, groups)
    assert bootstrap(errors, labels, ["a", "a", "a", "b", "b", "b"]) is None
    assert bootstrap(errors, np.array([10, 10, 0, 0, 10, 5]), groups) is None, "two have labels"
    assert bootstrap(0 * errors, labels, groups) is None, "0 to 0 would claim certainty"
    with pytest.raises(ValueError, match="6, 6 and 5, allowed: the same number"):
        bootstrap(errors, labels, groups[1:])


def test_a_percentage_may_be_followed_by_words():
    assert format_metric("test WER % with lexicon", 12.34, 130) == (
        "test WER with lexicon",
        "12.3",
        "%",
    )
    assert (
        show_metric("test CER %", 111.2, 130, (90.0, 130.0))
        == "test CER 111.2 %, 95 % interval 90.0 to 130.0"
    )


# ---------------------------------------------------------------- metrics


@needs_jiwer
def test_metrics_of_characters_are_sums_over_the_recordings(evaluation):
    measured, table = evaluation.measured, evaluation.table
    texts = table.extras["texts"]
    assert ["".join(labels) for labels in measured.references] == list(texts)
    found = ["".join(labels) for labels in measured.transcripts]
    assert 0 < evaluation.metrics["test CER %"] < 30
    new = [text not in evaluation.subject.dataset.splits["train"].extras["texts"] for text in texts]
    assert 0 < sum(new) < len(new)
    for rows, suffix in (([True] * len(new), ""), (new, " of new sentences")):
        pairs = [(a, b) for a, b, use in zip(texts, found, rows, strict=True) if use]
        for name, split in (("CER", tuple), ("WER", str.split)):
            sides = [[tuple(split(pair[side])) for pair in pairs] for side in (0, 1)]
            assert evaluation.metrics[f"test {name} %{suffix}"] == count_errors(*sides).rate
    exact = float(np.mean([a == b for a, b in zip(texts, found, strict=True)]))
    assert evaluation.metrics["test exact %"] == pytest.approx(100 * exact)
    assert evaluation.intervals["test exact %"] == pytest.approx(
        [100 * end for end in wilson(exact, 40)]
    )
    ends = bootstrap(measured.counts.errors, measured.counts.labels, table.extras["speakers"])
    assert ends is not None
    assert evaluation.intervals["test CER %"] == pytest.approx([100 * end for end in ends])
    low, high = evaluation.intervals["test CER %"]
    assert low < evaluation.metrics["test CER %"] < high
    assert not {"test label_error", "test unaligned", "test unaligned %"} & set(evaluation.metrics)
    errors, labels = measured.counts.errors.sum(), measured.counts.labels.sum()
    assert f"CER: {errors} errors in {labels} characters, WER: " in evaluation.note
    assert f"new sentences, {sum(new)} of 40: " in evaluation.note
    assert "bootstrap of 4 speakers, 2,000 draws" in evaluation.note
    assert "(transductive)" in evaluation.note


@needs_jiwer
def test_the_lexicon_finds_words_only(evaluation):
    assert evaluation.metrics["test WER % with lexicon"] < evaluation.metrics["test WER %"]
    assert "with lexicon, 4 words, no language model, beam 25" in evaluation.note
    known = dictionary_of(evaluation.run.task)
    assert known is not None
    assert known.language is None
    assert sorted(known.words) == sorted(tones.WORDS)
    for ids in transcripts.decode(evaluation.run, evaluation.table, 25, known):
        text = "".join(evaluation.run.task.vocabulary[label] for label in ids)
        assert set(text.split(" ")) <= set(tones.WORDS)


def test_words_that_cannot_be_spelled_are_left_out(run, monkeypatch):
    task = dataclasses.replace(run.task, words=("bad", "zed", ""))
    known = dictionary_of(task, ["bad bad", "bad zed"])
    assert known is not None
    assert known.words == ("bad",)
    assert known.language is None
    monkeypatch.setattr(transcripts, "LANGUAGE_WEIGHT", 0.5)
    known = dictionary_of(task, ["bad bad", "bad zed"])
    assert known is not None
    assert known.language is not None
    monkeypatch.setattr(transcripts, "MOST_WORDS", 0)
    known = dictionary_of(task, ["bad bad"])
    assert known is not None
    assert known.language is None
    assert dictionary_of(dataclasses.replace(task, words=())) is None
    assert dictionary_of(dataclasses.replace(task, units="words")) is None
    assert dictionary_of(dataclasses.replace(task, vocabulary=("", "a", "b", "d"))) is None


def _measured(evaluation, monkeypatch, task, references, found, **extras):
    """``measure`` of a made task, references and transcripts."""
    ids = {label: number for number, label in enumerate(task.vocabulary)}
    rows = [[ids[label] for label in each] for each in references]
    most = max(map(len, rows))
    targets = np.array([each + [0] * (most - len(each)) for each in rows])
    monkeypatch.setattr(
        transcription,
        "decode",
        lambda *_: [np.array([ids[label] for label in each], int) for each in found],
    )
    table = evaluation.table.having(targets=targets, mask=targets > 0)
    table = dataclasses.replace(table, extras={"texts": tuple(map(" ".join, references)), **extras})
    run = evaluation.run._replace(data=evaluation.run.data._replace(task=task))
    return transcription.measure(evaluation.subject._replace(run=run, table=table))


@needs_jiwer
def test_phones_that_do_not_count_are_removed_on_both_sides(evaluation, monkeypatch):
    front_end = evaluation.run.task.features
    task = Transcription(("", "AH", "AX", "N", "SIL"), "phones", front_end, "global",
                         scored=("", "AH", "AH", "N", ""))  # fmt: skip
    references = [("SIL", "N", "AX", "SIL"), ("N", "SIL", "N")]
    found = [("N", "AH"), ("SIL", "N", "AH")]
    measured = _measured(evaluation, monkeypatch, task, references, found)
    assert measured.metrics["test PER %"] == 100 * 1 / 4
    assert measured.metrics["test exact %"] == 50
    assert measured.intervals == {}, "the speakers are not known"
    assert "PER: 1 errors in 4 phones" in measured.note
    assert "bootstrap" not in measured.note
    assert not any("of new sentences" in name for name in measured.metrics), "all are new"
    nothing = _measured(evaluation, monkeypatch, task, [("SIL",)], [("N",)])
    assert not any("PER" in name for name in nothing.metrics)


@needs_jiwer
def test_words_have_no_characters(evaluation, monkeypatch):
    task = Transcription(("", "one", "two"), "words", evaluation.run.task.features, "utterance",
                         words=("one", "two"))  # fmt: skip
    measured = _measured(
        evaluation, monkeypatch, task, [("one", "two")], [("two",)], speakers=("a",)
    )
    rates = {name for name in measured.metrics if "ER %" in name}
    assert rates == {"test WER %"}
    assert measured.metrics["test WER %"] == 50


def test_without_jiwer_there_is_a_note(evaluation, monkeypatch):
    monkeypatch.setattr(transcription, "has_jiwer", lambda: False)
    measured = transcription.measure(evaluation.subject)
    assert measured.note == NEEDS_JIWER
    assert measured.metrics.keys() == {"test loss nats", "test exact %"}
    bare = dataclasses.replace(evaluation, measured=measured)
    assert utterances.worst_utterances(bare) is None
    assert utterances.by_speaker_and_length(bare) is None


def test_recordings_too_short_for_their_labels_are_a_metric(evaluation):
    means = evaluation.subject.means | {"unaligned": 0.05}
    measured = transcription.measure(evaluation.subject._replace(means=means))
    assert measured.metrics["test unaligned %"] == pytest.approx(5)


def test_intervals_of_a_task_are_kept_beside_those_of_shares(evaluation):
    measured = Measured(
        metrics={"test a %": 50.0, "test b": 3.0},
        shares={"test a %": 10},
        intervals={"test b": (2.0, 5.0)},
    )
    both = dataclasses.replace(evaluation, measured=measured).intervals
    assert both.keys() == {"test a %", "test b"}
    assert both["test b"] == (2.0, 5.0)


def test_the_record_has_the_intervals(folder, evaluation):
    evals.evaluation.write_evaluation(evaluation)
    record = json.loads((folder / "eval.json").read_text())
    assert record["intervals"]["test CER %"] == list(evaluation.intervals["test CER %"])


# ---------------------------------------------------------------- transcripts of recordings


def test_recordings_have_the_transcripts_of_the_table(evaluation, run):
    table = evaluation.table
    recordings = [table.extras["recordings"].read(row) for row in range(table.size)]
    found = transcribe(run, recordings, speakers=table.extras["speakers"], beam=1)
    expected = [text_of(run.task, labels) for labels in evaluation.measured.transcripts]
    assert found == expected
    assert transcribe(run, recordings[:3], speakers=["a", "b", "c"], beam=1) != []
    assert transcribe(run, []) == []


def test_recordings_that_cannot_be_transcribed_are_named(run):
    with pytest.raises(ValueError, match=r"recordings\[1\]: shorter than a frame, 200 samples"):
        transcribe(run, [np.ones(4000, np.float32), np.ones(199, np.float32)])
    with pytest.raises(ValueError, match="beam=0, allowed: a positive integer"):
        transcribe(run, [np.ones(4000, np.float32)], beam=0)
    other = run._replace(data=run.data._replace(task=Classification()))
    with pytest.raises(DataError, match="transcribe is not for a model of classification"):
        transcribe(other, [])


def test_scored_labels_and_text(run):
    assert scored(run.task, [run.task.vocabulary.index(letter) for letter in "b a"]) == (
        "b",
        " ",
        "a",
    )
    assert text_of(run.task, " a  b ") == "a b"
    assert text_of(dataclasses.replace(run.task, units="phones"), ["AH", "N"]) == "AH N"


def test_the_alignment_has_a_probability_for_each_step_and_all_labels_in_order(evaluation, run):
    table, ids = evaluation.table, transcripts.decode(evaluation.run, evaluation.table)
    rows = [7, 0, 3]
    for row, heard in zip(rows, aligned(run, table, rows), strict=True):
        outputs, places = heard.outputs, heard.places
        steps = -(-int(table["inputs"]["lengths"][row]) // 3)
        assert outputs.shape == (steps, len(run.task.vocabulary))
        np.testing.assert_allclose(outputs.sum(axis=1), 1, rtol=1e-5)
        assert [spike.label for spike in heard.found] == ids[row].tolist()
        assert places is not None
        assert len(places) == steps
        found = [place for place, _ in itertools.groupby(places.tolist()) if place >= 0]
        assert found == list(range(table["mask"][row].sum()))
    assert transcripts.pictures(run).step == pytest.approx(0.03, rel=1e-4)


def test_letters_are_aligned_with_their_tones(evaluation, run):
    """A letter lies within a step of its 80 ms or of the silence of 60 ms before or after it."""
    table, near, count = evaluation.table, [], 0
    rows = np.flatnonzero(evaluation.measured.counts.errors == 0)[:10].tolist()
    for row, heard in zip(rows, aligned(run, table, rows), strict=True):
        places = heard.places
        assert places is not None
        text, begin = table.extras["texts"][row], 0.05
        letters = utterances.segments(places, text, [False] * len(text))
        for each in letters:
            end = begin + (0.08 if each.text != " " else 0)
            middle = (each.first + each.after) / 2 * 0.03
            near.append(begin - 0.09 < middle < end + 0.09)
            begin, count = end + 0.06, count + 1
    assert count > 30
    assert np.mean(near) > 0.9


def test_a_reference_that_does_not_fit_has_no_alignment(evaluation, run):
    table = evaluation.table
    lengths = table["inputs"]["lengths"].copy()
    lengths[3] = 4
    short = table.having(inputs={**table["inputs"], "lengths": lengths})
    (found,) = aligned(run, short, [3])
    assert len(found.outputs) == 2
    assert found.places is None
    assert aligned(run, short, [4])[0].places is not None
    if importlib.util.find_spec("matplotlib") is not None:
        changed = dataclasses.replace(evaluation, subject=evaluation.subject._replace(table=short))
        assert "too short for the reference" in str(utterances.example_utterance(changed))


def _write(file, samples, rate=tones.RATE):
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


@pytest.fixture(name="files")
def _files(tmp_path):
    """Sentences of one speaker, without noise to speak of."""
    texts = {"one.wav": "bad cab", "two.wav": "add", "three.wav": "dad bad add"}
    for seed, (name, text) in enumerate(texts.items()):
        _write(tmp_path / name, tones.tone(text, "bob", 70 + seed))
    return {tmp_path / name: text for name, text in texts.items()}


def test_the_command_transcribes_files(folder, files, capsys):
    assert command("transcribe", folder, *files) == 0
    captured = capsys.readouterr()
    assert captured.out == "".join(f"{file}\t{text}\n" for file, text in files.items())
    assert captured.err == ""
    for options in (["--beam", 1], ["--no-lexicon"], ["--each"]):
        assert command("transcribe", folder, *files, *options) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.partition("\t")[0] for line in lines] == list(map(str, files))


def test_files_are_of_one_speaker_unless_each_is_alone(folder, files, monkeypatch):
    given_speakers = []

    def spied(run, recordings, *, speakers, **settings):
        given_speakers.append(list(speakers))
        return [""] * len(recordings)

    monkeypatch.setattr(transcription, "transcribe", spied)
    assert command("transcribe", folder, *files) == 0
    assert command("transcribe", folder, *files, "--each") == 0
    assert [len(set(speakers)) for speakers in given_speakers] == [1, 3]


def test_the_command_reads_standard_input(folder, files, capsys, monkeypatch):
    file = next(iter(files))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    assert command("transcribe", folder, "-", "--each") == 0
    assert capsys.readouterr().out == f"-\t{files[file]}\n"


def test_faulty_files_are_named_and_the_others_transcribed(folder, files, tmp_path, capsys):
    _write(tmp_path / "short.wav", np.linspace(0, 1, 50))
    _write(tmp_path / "silent.wav", np.zeros(4000))
    (tmp_path / "text.wav").write_text("hello")
    faulty = [tmp_path / name for name in ("short.wav", "silent.wav", "text.wav", "none.wav")]
    first, *others = files
    assert command("transcribe", folder, first, *faulty, *others) == 1
    captured = capsys.readouterr()
    assert [line.partition("\t")[0] for line in captured.out.splitlines()] == list(map(str, files))
    errors = captured.err.splitlines()
    assert len(errors) == 4
    for file, error in zip(faulty, errors, strict=True):
        assert error.startswith(f"error: {file}: ")
    assert errors[0].endswith("0.006 s, allowed: at least 0.025 s")
    assert "silent" in errors[1]
    assert command("transcribe", folder, *faulty) == 1
    assert capsys.readouterr().out == ""
    assert command("transcribe", folder, first, "--beam", 0) == 1
    assert "beam=0, allowed: a positive integer" in capsys.readouterr().err


def test_many_clipped_samples_are_a_message(folder, files, tmp_path, capsys):
    _write(tmp_path / "loud.wav", 30 * tones.tone("bad cab", "bob", 3))
    assert command("transcribe", folder, tmp_path / "loud.wav") == 0
    assert re.search(r"loud.wav: \d+\.\d % of the samples are clipped\n", capsys.readouterr().err)


# ---------------------------------------------------------------- report


@needs_plots
@needs_jiwer
def test_the_report_shows_an_utterance_the_worst_ones_and_rates(evaluation):
    page = evals.report.document.render(evaluation)
    for title in ("An utterance", "Worst transcripts", "Errors by speaker and length"):
        assert f"<h2>{title}</h2>" in page
    assert "Example 3 of the test split, speaker dan" in page
    for word in set(evaluation.table.extras["texts"][3].split()):
        assert re.search(rf"<text[^>]*>{word}</text>", page), "the words of the alignment"
    worst = np.flatnonzero(evaluation.measured.counts.errors)
    assert page.count("<audio") == 1 + min(len(worst), utterances.WORST)
    assert page.count("where the reference lies</summary>") == min(len(worst), utterances.WORST)
    assert all(f"<th>{speaker}</th>" in page for speaker in tones.SPEAKERS)
    assert "test WER with lexicon" in page


@needs_plots
@needs_jiwer
def test_sounds_are_those_of_the_recordings(evaluation):
    section = utterances.example_utterance(evaluation)
    assert section is not None
    (data,) = re.findall(
        r'<audio controls preload="none" src="data:audio/wav;base64,([^"]+)"', section
    )
    with wave.open(io.BytesIO(base64.b64decode(data))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (tones.RATE, 1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    original = evaluation.table.extras["recordings"].read(3)
    np.testing.assert_allclose(samples, original, atol=1 / 32768)


class _Lost(tuple):
    def read(self, row):
        raise DataError("gone.wav: no such file")


@needs_plots
@needs_jiwer
def test_recordings_that_are_gone_have_no_player(evaluation, monkeypatch):
    def rendered(table):
        changed = dataclasses.replace(evaluation, subject=evaluation.subject._replace(table=table))
        return evals.report.document.render(changed)

    table = evaluation.table
    lost = table.extras | {"recordings": _Lost()}
    without = {name: value for name, value in lost.items() if name != "recordings"}
    for extras in (lost, without):
        assert "<audio" not in rendered(dataclasses.replace(table, extras=extras))
    one = len(str(utterances._sound(evaluation, 4)))
    monkeypatch.setattr(utterances, "MOST_SOUND", 3 * one)
    section = utterances.worst_utterances(evaluation)
    assert section is not None
    assert 1 <= section.count("<audio") <= 5


@needs_plots
@needs_jiwer
def test_perfect_transcripts_of_one_speaker_have_no_such_sections(evaluation):
    measured, none = evaluation.measured, np.zeros(40, int)
    perfect = dataclasses.replace(
        measured, counts=measured.counts._replace(errors=none), speakers=("ann",) * 40
    )
    perfect = dataclasses.replace(evaluation, measured=perfect)
    assert utterances.worst_utterances(perfect) is None
    section = utterances.by_speaker_and_length(perfect)
    assert section is None or "ann" not in section


def test_spikes_are_the_best_path_at_its_peaks():
    outputs = np.array([[0.9, 0.1, 0], [0.3, 0.6, 0.1], [0.1, 0.9, 0], [0.8, 0.2, 0],
                        [0, 0.7, 0.3], [0.1, 0.2, 0.7]])  # fmt: skip
    assert transcripts.spikes(outputs) == [(2, 1), (4, 1), (5, 2)]
    found = transcripts.spikes(outputs)
    ids, count = labelling.best_path(jnp.log(outputs + 1e-9)[None], jnp.array([6]))
    assert [spike.label for spike in found] == ids[0, : int(count[0])].tolist()
    edits = [Edit("equal", ("a",), ("a",)), Edit("delete", ("b",), ()), Edit("insert", (), ("c",))]
    in_transcript = [edit.transcript for edit in edits]
    wrong = utterances.wrong_labels(in_transcript, edits, [True, False, True])
    assert wrong == [False, False, True]
    in_reference = [edit.reference for edit in edits]
    assert utterances.wrong_labels(in_reference, edits, [True, True]) == [False, True]
    assert utterances.wrong_labels([], [], [True]) == [False]


def test_labels_and_words_of_an_alignment():
    places = np.array([-1, 0, 0, 1, -1, 2, 3, -1, -1, 4])
    letters = utterances.segments(places, "ab cd", [False, False, False, True, False])
    assert letters == [
        ("a", 1, 3, False), ("b", 3, 4, False), (" ", 5, 6, False), ("c", 6, 7, True),
        ("d", 9, 10, False),
    ]  # fmt: skip
    assert utterances.words(letters) == [("ab", 1, 4, False), ("cd", 6, 10, True)]
    assert utterances.words(utterances.segments(places[:1], "", [])) == []


def test_texts_that_would_touch_are_on_two_lines():
    assert utterances.staggered([], []) == []
    assert utterances.staggered([0, 2, 4], [1, 1, 1]) == [0, 0, 0]
    assert utterances.staggered([0, 0.5, 1, 5], [1, 1, 1, 1]) == [0, 1, 0, 0]
    # A third one touches either line: it goes where less is in its way.
    assert utterances.staggered([0, 0.2, 0.3], [1, 1, 1]) == [0, 1, 0]


def test_rates_by_speaker_and_bins_of_lengths():
    counts = ErrorCounts(np.array([1, 2, 0, 3]), np.array([4, 4, 5, 0]), [[]] * 4)
    assert utterances.by_speaker(counts, ["a", "b", "a", "c"]) == {
        "b": 50.0,
        "a": pytest.approx(100 / 9),
    }
    lengths = np.array([1] * 15 + [2, 3, 4] * 5)
    bins = utterances.by_length(lengths)
    assert {name: len(rows) for name, rows in bins.items()} == {"1": 15, "2": 5, "3-4": 10}
    np.testing.assert_array_equal(np.sort(np.concatenate(list(bins.values()))), np.arange(30))
    assert list(utterances.by_length(np.array([7, 9]))) == ["7-9"]


@needs_plots
def test_marks_are_escaped_and_name_what_is_missing():
    edits = [
        Edit("equal", ("<",), ("<",)),
        Edit("substitute", ("a",), (" ",)),
        Edit("delete", ("b",), ()),
    ]
    text = utterances.marked(edits, "")
    assert "&lt;<b" in text
    assert 'title="instead of a">␣</b>' in text
    assert '<del class="note">b</del>' in text
    spaced = utterances.marked(
        [Edit("equal", ("AH", "N"), ("AH", "N")), Edit("insert", (), ("T",))], " "
    )
    assert ">AH N <b" in spaced
