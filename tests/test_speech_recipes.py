"""The quick recipe of speech: trained, killed and resumed, measured, used."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest
import soundfile

from evals.__main__ import main as evals
from evals.evaluation import evaluate
from evals.transcripts import transcribe
from train.data import spoken_digits
from train.engine.member import Member
from train.engine.trainer import run
from train.recipes import RECIPES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech") / "run"
    run(RECIPES["ctc-digits"], folder, quiet=True)
    return folder


def test_strings_of_digits_are_recognised(folder):
    evaluation = evaluate(folder)
    # The recipe's own bound is for its median over seeds.
    assert evaluation.metrics["test WER %"] < 15
    low, high = evaluation.intervals["test WER %"]
    assert low < evaluation.metrics["test WER %"] < high
    recordings = evaluation.table.extras["recordings"]
    texts = evaluation.table.extras["texts"]
    heard = transcribe(
        evaluation.run,
        [recordings.read(row) for row in range(len(texts))],
        speakers=evaluation.table.extras["speakers"],
        beam=1,
    )
    right = sum(a == b for a, b in zip(heard, texts, strict=True))
    assert 100 * right / len(texts) == pytest.approx(evaluation.metrics["test exact %"], abs=0.5)


def test_a_file_is_transcribed(folder, tmp_path, capsys):
    evaluation = evaluate(folder)
    samples = evaluation.table.extras["recordings"].read(1)
    file = tmp_path / "string.flac"
    soundfile.write(file, samples, 8000)
    assert evals(["transcribe", str(folder), str(file)]) == 0
    name, text = capsys.readouterr().out.strip().split("\t")
    assert name == str(file)
    assert text
    assert set(text.split()) <= set(spoken_digits.WORDS)


def test_a_run_stopped_by_a_signal_resumes_bit_for_bit(tmp_path, monkeypatch):
    recipe = RECIPES["ctc-digits"]
    data = dataclasses.replace(recipe.data, count=64)
    recipe = dataclasses.replace(recipe, data=data, steps=8, eval_every=1)
    expected = run(recipe, quiet=True)
    recorded = Member.record

    def record(self, line):
        recorded(self, line)
        if line["step"] >= 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Member, "record", record)
    stopped = run(recipe, tmp_path / "run", quiet=True)
    assert not stopped.complete
    monkeypatch.undo()
    resumed = run(recipe, tmp_path / "run", quiet=True)
    assert resumed.complete
    jax.tree.map(np.testing.assert_array_equal, resumed.state, expected.state)
