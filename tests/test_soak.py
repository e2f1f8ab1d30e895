"""The soak test in short form: kills happen, and differences are reported."""

import pytest

from evals import soak
from tests.conftest import THOROUGH

# When a checkpoint file is damaged, orbax closes its event loop with reads still in progress.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

KILLS = "2" if THOROUGH else "1"


def test_killed_runs_equal_the_uninterrupted_run(tmp_path, capsys):
    document = tmp_path / "faults.md"
    document.write_text(f"before\n{soak.BEGIN}\nstale\n{soak.END}\nafter\n")
    options = [
        "--kills",
        KILLS,
        "--two",
        "0",
        "--aimed",
        "1",
        "--epochs",
        "1",
        "--keep",
        str(tmp_path / "runs"),
    ]
    assert soak.main([*options, "--document", str(document)]) == 0, capsys.readouterr().err
    text = document.read_text()
    assert text.startswith(f"before\n{soak.BEGIN}\n| | |")
    assert text.endswith(f"{soak.END}\nafter\n")
    assert f"| kills (SIGKILL) | {KILLS} |" in text
    assert "| failures | 0 |" in text
    assert "stale" not in text


def test_differences_are_failures(tmp_path):
    """A run without its newest checkpoint, one with a flipped bit, one with a different log."""
    run = soak.Run(tmp_path / "run", 1, soak.Command())
    expected = soak.Whole(1.0, [], {6: [("float32", b"\0\0\0\0")]})
    tally = soak.Tally()
    for states, history, message in (
        ({12: [("float32", b"\0\0\0\0")]}, [], r"checkpoints of steps \[12\]"),
        ({6: [("float32", b"\0\0\1\0")]}, [], "step 6: 1 of 1 leaves differ"),
        ({6: [("int32", b"\0\0\0\0")]}, [], "step 6: 1 of 1 leaves differ"),
        ({6: [("float32", b"\0\0\0\0")]}, [{"step": 1}], "metrics.jsonl differs"),
    ):
        run.states, run.history = lambda states=states: states, lambda history=history: history
        with pytest.raises(soak.Failure, match=message):
            soak._compare(run, expected, tally)
    for said, newest, message in (
        ("resuming at step 6 of 88", 12, "resumed at step 6 although the checkpoint of step 12"),
        ("mlp-digits  step 3/88", 12, "trained from the beginning"),
        ("damaged checkpoint passed over: 12", 6, "a checkpoint is damaged"),
    ):
        run.said = lambda index=0, said=said: said
        with pytest.raises(soak.Failure, match=message):
            soak._check_start(run, newest, tally)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kills", "0"], "positive numbers"),
        (["--two", "2"], "allowed: 0 to 1"),
        (["--document", "nowhere.md"], "no file with the lines"),
    ],
)
def test_a_wrong_command_line_is_one_line(options, message, capsys):
    assert soak.main(options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
