"""Pairs of sentences as data: tokens and back, faulty lines, batches of one length."""

import dataclasses
import gzip
import os
import pathlib
from typing import Any, get_args

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import train
import zoo
from tests.conftest import THOROUGH
from tests.helpers.data import sentences_of
from train import tokens
from train.batches import Batches
from train.data import load_data, pairs, parse, with_settings
from train.dataset import Table
from train.engine.parallel import Layout, Parallel
from train.engine.stage import evaluation_batches
from train.formats import DataError
from train.samplers import Bucketed, bucket_edges, bucket_of
from train.tasks import Translation
from train.tokens import END, UNKNOWN, Tokenizer

ROOT = pathlib.Path(os.environ.get("ZOO_DATA_DIR") or "/nowhere").absolute()
WORDS: dict[str, Any] = {"tokens": "words"}
CORPUS = ["the cat sat, it sat.", "A dog's day", "zwei  Hunde\tim Haus", "ça va?"]


def files(path, lines, names=("corpus.en", "corpus.fr")):
    """A pair of files; returns their data's name."""
    for name, column in zip(names, zip(*lines, strict=True), strict=True):
        (path / name).write_text("".join(f"{cell}\n" for cell in column))
    return "pairs:" + ",".join(str(path / name) for name in names)


def counted(count):
    return [
        (f"line number {'very ' * (n % 7)}{n}", f"ligne {'tres ' * (n % 5)}{n}")
        for n in range(count)
    ]


@pytest.mark.parametrize("kind", get_args(tokens.Kind))
def test_sentences_round_trip_except_white_space_and_unknown_tokens(kind):
    tokenizer = tokens.fit(kind, CORPUS, size=60, min_count=1)
    assert tokenizer.vocabulary[:2] == ("</s>", "<unk>")
    assert len(set(tokenizer.vocabulary)) == len(tokenizer.vocabulary)
    again = Tokenizer.from_dict(tokenizer.to_dict())
    for sentence in CORPUS:
        coded = tokenizer.encode(sentence)
        assert END not in coded
        assert UNKNOWN not in coded
        assert again.encode(sentence) == coded
        assert again.decode([*coded, END, 3, 3]) == " ".join(sentence.split())
    assert tokenizer.encode(" ") == []
    assert UNKNOWN in tokenizer.encode("Ω")
    assert tokenizer.unknown(["the Ω cat", "Ω"]) == ["Ω"]


def test_rare_words_are_unknown_and_subword_vocabulary_is_filled():
    assert set(tokens.fit("words", CORPUS, size=1, min_count=2).vocabulary) == {
        "</s>",
        "<unk>",
        "▁sat",
    }
    large = tokens.fit("subwords", CORPUS, size=5000, min_count=1)
    small = tokens.fit("subwords", CORPUS, size=35, min_count=1)
    assert len(small.vocabulary) <= 40 < len(large.vocabulary) < 5000
    assert tokens.fit("subwords", CORPUS, size=5000, min_count=1).model == large.model


def test_targets_are_shifted_decoder_inputs(tmp_path):
    dataset = load_data(files(tmp_path, counted(60)), **WORDS)
    assert {split: len(table["mask"]) for split, table in dataset.splits.items()} == {
        "train": 54,
        "validation": 3,
        "test": 3,
    }
    assert isinstance(dataset.task, Translation)
    source, target = dataset.task.source, dataset.task.target
    for split, table in dataset.splits.items():
        inputs = table["inputs"]
        for row, (said, meant) in enumerate(dataset.splits[split].extras["sentences"]):
            length, count = inputs["lengths"][row], table["mask"][row].sum()
            assert inputs["source"][row, :length].tolist() == [*source.encode(said), END]
            assert table["targets"][row, :count].tolist() == [*target.encode(meant), END]
            assert inputs["target"][row, :count].tolist() == [END, *target.encode(meant)]
            assert not table["mask"][row, count:].any()
    assert [said for said, _ in dataset.splits["test"].extras["sentences"]] == [
        said for said, _ in counted(60)[57:]
    ]


def test_files_of_splits_a_tsv_and_gzipped_ones_are_the_same_data(tmp_path, monkeypatch):
    lines = counted(40)
    for split, part in {"train": lines[:30], "dev": lines[30:35], "test": lines[35:]}.items():
        for name, column in zip(("en", "fr"), zip(*part, strict=True), strict=True):
            (tmp_path / f"{split}.{name}.gz").write_bytes(gzip.compress("\n".join(column).encode()))
        (tmp_path / f"{split}.tsv").write_text("".join(f"{a}\t{b}\r\n" for a, b in part))
    monkeypatch.chdir(tmp_path)
    two = load_data("pairs:{split}.en,{split}.fr", **WORDS)
    one = load_data("pairs:{split}.tsv", **WORDS)
    assert two.fingerprint == one.fingerprint
    assert sentences_of(two) == sentences_of(one)
    assert len(two.splits["validation"].extras["sentences"]) == 5
    with pytest.raises(DataError, match=r"no file \{split\}.de with \{split\} replaced by train"):
        load_data("pairs:{split}.en,{split}.de")
    (tmp_path / "val.en").write_text("one\n")
    with pytest.raises(
        DataError, match=r"/val.en and .*/dev.en.gz are of the same split, expected one of them"
    ):
        load_data("pairs:{split}.en,{split}.fr")
    with pytest.raises(DataError, match="expected in both or in none"):
        load_data("pairs:{split}.en,train.fr")


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"\n", "a sentence is empty"),
        (b"  \n", "a sentence is empty"),
        (b"caf\xe9\n", "not UTF-8 text"),
        (b"word " * 50 + b"\n", "more than max_length=40 tokens"),
    ],
)
@pytest.mark.parametrize("side", ["corpus.en", "corpus.fr"])
def test_unusable_lines_are_named_or_skipped_and_counted(tmp_path, raw, what, side):
    name = files(tmp_path, counted(60))
    file = tmp_path / side
    good = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*good[:4], raw, *good[5:]]))
    with pytest.raises(DataError, match=rf"{what}: {file}:5; data.on_bad=skip"):
        load_data(name, **WORDS, max_length=40)
    left = load_data(name, **WORDS, max_length=40, on_bad="skip")
    assert f"left out: 1 lines, {what}" in left.notes
    assert len(left.splits["train"].extras["sentences"]) == 53
    assert counted(60)[4] not in left.splits["train"].extras["sentences"]


def test_faults_of_whole_files_are_named(tmp_path):
    name = files(tmp_path, counted(60))
    (tmp_path / "corpus.fr").write_text("one\n")
    with pytest.raises(
        DataError,
        match=r"corpus.en has 60 lines, .*corpus.fr has 1 lines; expected the same number in both",
    ):
        load_data(name)
    (tmp_path / "bad.tsv").write_text("a\tb\nc\n" * 10)
    with pytest.raises(
        DataError,
        match=r"not two columns that a tab separates: .*bad.tsv:2, .*bad.tsv:4,.* and 5 more",
    ):
        load_data(f"pairs:{tmp_path / 'bad.tsv'}")
    (tmp_path / "empty.tsv").write_text("")
    with pytest.raises(DataError, match="no pair of sentences in train"):
        load_data(f"pairs:{tmp_path / 'empty.tsv'}")
    (tmp_path / "cut.tsv").write_bytes(gzip.compress(b"a\tb\n" * 1000)[:30])
    with pytest.raises(DataError, match=r"cut.tsv: unreadable: Compressed file ended"):
        load_data(f"pairs:{tmp_path / 'cut.tsv'}")
    with pytest.raises(DataError, match=r"no such file or folder: .*nowhere.en"):
        load_data("pairs:nowhere.en,nowhere.fr")
    with pytest.raises(DataError, match=r"language 'xx', allowed: .*fr"):
        load_data("numbers-en-xx")
    with pytest.raises(
        DataError, match=r"data 'numbers-en-am': num2words fails on \d+ in language 'am': "
    ):
        load_data("numbers-en-am")


@pytest.mark.parametrize("on_bad", ["error", "skip"])
@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_refused_whole(tmp_path, codec, on_bad):
    file = tmp_path / "p.tsv"
    file.write_bytes("".join(f"{a}\t{b}\n" for a, b in counted(40)).encode(codec))
    with pytest.raises(DataError, match=rf"^{file}: .*UTF-16; expected text in UTF-8: iconv"):
        load_data(f"pairs:{file}", **WORDS, on_bad=on_bad)


ODD = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
"""Characters that end a line for ``str.splitlines``, but not for tools that write such files."""


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_unicode_line_separators_do_not_end_lines(tmp_path, end, mark):
    lines = [
        (f"{ODD[number % 8]} {a} {ODD[number % 7]} {a}", b)
        for number, (a, b) in enumerate(counted(60))
    ]
    if end != "\r":
        lines[3] = ("a stray\rone", "one")
    for side, name in enumerate(("en", "fr")):
        (tmp_path / name).write_bytes((mark + "".join(line[side] + end for line in lines)).encode())
    (tmp_path / "both.tsv").write_bytes(
        (mark + "".join("\t".join(line) + end for line in lines)).encode()
    )
    two = load_data(f"pairs:{tmp_path}/en,{tmp_path}/fr", **WORDS)
    assert two.splits["train"].extras["sentences"] == tuple(lines[:54])
    assert load_data(f"pairs:{tmp_path}/both.tsv", **WORDS).fingerprint == two.fingerprint


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", "bytes"),
        ("on_bad", "ignore"),
        ("subwords", 0),
        ("max_length", -1),
        ("buckets", 0.5),
    ],
)
def test_unknown_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f"data.{field}={value!r}, allowed"):
        pairs.Config(**{field: value})


def test_no_number_is_in_two_splits_and_words_are_those_of_the_library():
    dataset = load_data("numbers-en-fr", **WORDS)
    said = {
        split: {source for source, _ in lines} for split, lines in sentences_of(dataset).items()
    }
    assert {split: len(lines) for split, lines in said.items()} == pairs.NUMBERS
    assert not said["train"] & said["test"]
    assert not said["validation"] & (said["train"] | said["test"])
    everything = dict(line for lines in sentences_of(dataset).values() for line in lines)
    assert everything["nine hundred and eighty-one"] == "neuf cent quatre-vingt-un"


@settings(max_examples=100 if THOROUGH else 20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=40),
    st.integers(1, 6),
    st.integers(1, 7),
)
def test_buckets_hold_every_sentence_and_every_epoch_is_a_permutation(lengths, buckets, batch_size):
    most = np.max(lengths, axis=0)
    edges = bucket_edges(np.array(lengths), most, buckets)
    assert all(
        list(edge) == sorted(set(edge)) and edge[-1] == m
        for edge, m in zip(edges, most, strict=True)
    )
    table = pairs._table(
        [([5] * (a - 1), [6] * (b - 1)) for a, b in lengths], np.array(lengths), edges
    )
    widths = {"inputs.source": edges[0]} | dict.fromkeys(
        ("inputs.target", "targets", "mask"), edges[1]
    )
    bucket = bucket_of(np.array(lengths), edges)
    batches = Batches(Table(table, Bucketed(bucket, widths)), batch_size, seed=3)
    for epoch in (0, 1):
        seen = []
        for step in range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch):
            rows = batches.rows(step)
            rows = rows[rows >= 0]
            seen += rows.tolist()
            assert len({int(bucket[row]) for row in rows}) == 1
        assert sorted(seen) == list(range(len(lengths)))


def test_batches_are_trimmed_to_their_bucket_without_loss():
    lengths = np.array([(3, 4), (9, 2), (5, 5), (2, 9), (8, 8), (3, 3)])
    edges = bucket_edges(lengths, lengths.max(axis=0), 2)
    table = pairs._table(
        [(list(range(2, a + 1)), list(range(2, b + 1))) for a, b in lengths], lengths, edges
    )
    widths = {"inputs.source": edges[0]} | dict.fromkeys(
        ("inputs.target", "targets", "mask"), edges[1]
    )
    buckets = bucket_of(lengths, edges)
    batches = evaluation_batches(Table(table, Bucketed(buckets, widths)), 2, None)
    shapes = set()
    for step in range(batches.steps_per_epoch):
        batch, rows = batches.batch(step), batches.rows(step)
        shapes.add((batch["inputs"]["source"].shape[1], batch["targets"].shape[1]))
        for index, row in enumerate(rows):
            source = np.asarray(batch["inputs"]["source"][index])
            if row < 0:
                assert not batch["mask"][index].any()
                continue
            assert (
                source[: lengths[row, 0]] == table["inputs"]["source"][row, : lengths[row, 0]]
            ).all()
            assert int(batch["mask"][index].sum()) == lengths[row, 1]
    assert shapes == set(zip(*edges, strict=True))
    assert pairs.padding(table, buckets, widths) == pytest.approx(
        1 - lengths.sum() / sum(edges[0][bucket] + edges[1][bucket] for bucket in buckets)
    )


SETTINGS = {"steps": 14, "eval_every": 0.5, "batch_size": 6, "preprocess": "none"}


@pytest.fixture(scope="module", name="corpus")
def _corpus(tmp_path_factory):
    return with_settings(
        parse(files(tmp_path_factory.mktemp("corpus"), counted(40))), {**WORDS, "buckets": 2}
    )


def _trained(corpus, **more):
    tiny = zoo.seq2seq.PRESETS["tiny"]
    simple: dict[str, Any] = {
        "encoder": "forward",
        "attention": "none",
        "input_feeding": False,
    }  # it compiles faster
    cfg = dataclasses.replace(tiny, encoder_units=(3,), decoder_units=(4,), **simple)
    return train.fit(zoo.seq2seq, cfg, corpus, **{**SETTINGS, **more})


@pytest.fixture(scope="module", name="reference")
def _reference(corpus):
    return _trained(corpus)


def test_replicas_and_dispatches_equal_separate_runs(corpus, reference):
    together = _trained(corpus, replicas=2, steps_per_dispatch=3).members
    for seed, result in enumerate((reference, _trained(corpus, seed=1))):
        for mine, theirs in zip(_leaves(result), _leaves(together[f"seed-{seed}"]), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", ["jit", "shard_map"] if THOROUGH else ["jit"])
def test_bucketed_batches_train_equally_on_several_devices(corpus, reference, strategy):
    spread = _trained(corpus, parallel=Parallel(devices=4, strategy=strategy))
    for mine, theirs in zip(_leaves(reference), _leaves(spread), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    assert Layout(Parallel(devices=4)).rows(6) == 8, "so batches were padded"


def test_run_interrupted_within_an_epoch_resumes_bit_for_bit(corpus, tmp_path):
    whole = _trained(corpus, out=tmp_path)
    for file in (tmp_path / "checkpoints" / "14").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    again = _trained(corpus, out=tmp_path)
    for mine, theirs in zip(_leaves(whole), _leaves(again), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def _leaves(result):
    return jax.tree.leaves(result.state.params)


def test_models_of_text_and_pairs_of_sentences_do_not_mix(corpus):
    with pytest.raises(
        ValueError,
        match=r"data topics: inputs are an array, allowed for zoo.seq2seq: lengths, source, target",
    ):
        train.fit(zoo.seq2seq, zoo.seq2seq.PRESETS["tiny"], "topics", steps=1, preprocess="none")
    with pytest.raises(
        ValueError, match=r"inputs are lengths, source, target, allowed for zoo.rnnlm: an array"
    ):
        train.fit(zoo.rnnlm, zoo.rnnlm.PRESETS["tiny"], corpus, **SETTINGS)
    with pytest.raises(ValueError, match=r"tokens, allowed for zoo.mlp"):
        train.fit(zoo.mlp, zoo.mlp.PRESETS["tiny"], "topics", steps=1, preprocess="none")
    with pytest.raises(
        ValueError,
        match="preprocess='unit', allowed for inputs of several arrays without an image: none",
    ):
        train.fit(
            zoo.seq2seq, zoo.seq2seq.PRESETS["tiny"], corpus, **{**SETTINGS, "preprocess": "unit"}
        )


@pytest.mark.skipif(not (ROOT / "multi30k").is_dir(), reason="needs ZOO_DATA_DIR with multi30k")
def test_multi30k_is_read_whole():
    dataset = load_data("multi30k-en-fr", ROOT, **WORDS)
    counts = {split: len(lines) for split, lines in sentences_of(dataset).items()}
    assert counts == {"train": 29_000, "validation": 1_014, "test": 1_000}
    assert (
        dataset.splits["test"].extras["sentences"][0][0]
        == "A man in an orange hat starring at something."
    )
    train_table = dataset.splits["train"]
    assert pairs.padding(train_table, train_table.sampler.buckets, train_table.sampler.widths) < 0.2
