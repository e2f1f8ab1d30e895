"""The examples in the docstrings of public entry points run, and print what they show."""

import doctest

import pytest

import evals.intervals
import evals.metrics
import train.data
import train.engine.trainer
import zoo

ENTRY_POINTS = [
    zoo.create,
    zoo.list_models,
    train.data.parse,
    train.data.load_data,
    train.engine.trainer.fit,
    evals.metrics.confusion_matrix,
    evals.intervals.wilson,
]


@pytest.mark.parametrize("entry_point", ENTRY_POINTS, ids=lambda function: function.__name__)
def test_the_example_of_a_docstring_runs(entry_point):
    source = entry_point.__doc__
    example = doctest.DocTestParser().get_doctest(source, {}, entry_point.__name__, None, None)
    report = []
    results = doctest.DocTestRunner().run(example, out=report.append)
    assert results.attempted >= 2
    assert results.failed == 0, "".join(report)
