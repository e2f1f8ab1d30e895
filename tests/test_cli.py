"""The command line for its users: help, typos, missing files, one clear line each."""

import inspect
import os
import pathlib
import re
import subprocess
import sys

import pytest

import evals.__main__
from evals import gradients
from evals.verbs import FORMER, VERBS
from train import entry
from train.__main__ import main, parse
from train.engine.progress import Progress
from train.recipes import RECIPES

ROOT = pathlib.Path(__file__).parent.parent


def _main(*arguments):
    try:
        return main(list(arguments))
    except SystemExit as stop:
        return stop.code


def _no_traceback(captured):
    assert "Traceback" not in captured.err + captured.out
    return captured


def test_data_option_applies_to_every_stage():
    recipe, _ = parse(
        RECIPES["dbn-digits"], ["--data", "npz:mine.npz", "--preprocess", "none", "--epochs", "3"]
    )
    assert {(str(stage.data), stage.preprocess) for stage in recipe.stages} == {
        ("npz:mine.npz", "none")
    }
    assert [stage.epochs for stage in recipe.stages] == [50, 50, 3]
    assert parse(RECIPES["dbn-digits"], [])[0] == RECIPES["dbn-digits"]


def test_list_shows_every_recipe_with_its_expected_result(capsys):
    assert _main("--list") == 0
    shown = capsys.readouterr().out
    for name, recipe in RECIPES.items():
        assert name in shown
        assert recipe.targets[0].metric in shown


def test_an_unknown_recipe_or_option_suggests_the_nearest(capsys):
    assert _main("mlp-digts") == 2
    assert (
        "no recipe 'mlp-digts'; did you mean mlp-digits" in _no_traceback(capsys.readouterr()).err
    )
    assert _main("mlp-digits", "--optimizer.learnig-rate", "1") == 2
    assert "--optimizer.learning-rate" in _no_traceback(capsys.readouterr()).err


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--data", "mnits"), 2, "did you mean 'mnist'?"),
        (("--data", "npz:/no/such.npz"), 1, "no such file or folder: /no/such.npz"),
        (("--data", "folder:/no/such"), 1, "no such file or folder: /no/such"),
        (("--data", "mnist", "--data-dir", "/no/such"), 1, "/no/such: no such directory"),
        (("--model.sizes", "64", "5"), 1, "train targets hold class 9, the model has 5 outputs"),
        (("--model.sizes", "60", "10"), 1, "sizes[0]=60"),
        (("--model.dropout", "2"), 2, "dropout=2.0, allowed: a probability of dropping"),
        (("--optimizer.momentum", "1"), 2, "momentum=1.0, allowed: 0 <= momentum < 1"),
        (("--batch-size", "0"), 2, "batch_size=0, allowed: a positive number"),
        (("--select-by", "bleu"), 1, "select_by='bleu', allowed: accuracy, loss"),
        (("--seed", "-1"), 2, "seed=-1, allowed"),
        (("--parallel", "threads"), 2, "invalid choice 'threads'"),
        (("--devices", "99"), 1, "devices=99, allowed: 1 to 8, those available"),
        (("--accumulate", "0"), 1, "accumulate=0, allowed: a positive integer"),
        (
            ("--parallel", "pmap", "--replicas", "2"),
            1,
            "replicas: 2, allowed with parallel='pmap': 1",
        ),
        (
            ("--coordinator", "localhost:1234"),
            1,
            "coordinator, num-processes, process-id: give all three",
        ),
        (("--replicas", "0"), 2, "replicas=0, allowed: a positive number"),
        (("--sweep", "seed", "1", "2"), 2, "sweep of 'seed', allowed: optimizer.learning-rate"),
    ],
)
def test_bad_input_is_one_clear_error_before_any_work(tmp_path, capsys, options, status, message):
    assert _main("mlp-digits", "--out", str(tmp_path / "run"), *options) == status
    captured = _no_traceback(capsys.readouterr())
    assert message in " ".join(captured.err.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


def test_run_prints_its_folder_and_restarting_reports_completion(tmp_path, capsys):
    options = ("mlp-digits", "--steps", "42", "--out", str(tmp_path / "run"))
    assert _main(*options) == 0
    first = capsys.readouterr().out
    assert f"next: {entry.program('evals')} {tmp_path / 'run'}" in first
    assert "step 42/42" in first
    assert "validation accuracy" in first
    assert _main(*options) == 0
    assert "the run is complete: 42 steps" in capsys.readouterr().out
    assert _main(*options, "--batch-size", "32") == 1
    assert "batch_size is 64 there and 32 here" in capsys.readouterr().err


def test_tensorboard_option_writes_event_files(tmp_path):
    pytest.importorskip("tensorboardX")
    assert (
        _main(
            "mlp-digits",
            "--steps",
            "21",
            "--quiet",
            "--tensorboard",
            "--out",
            str(tmp_path / "run"),
        )
        == 0
    )
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_missing_tensorboard_is_reported_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert _main("mlp-digits", "--tensorboard", "--out", str(tmp_path / "run")) == 1
    assert (
        capsys.readouterr().err
        == "error: --tensorboard needs tensorboardX: pip install 'purezoo[tensorboard]'\n"
    )
    assert not (tmp_path / "run").exists()


def test_dumb_terminal_gets_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    with Progress("name", 4, 2) as progress:
        progress.update({"step": 3, "split": "train", "loss": 0.5}, 8)
    assert capsys.readouterr().out == "name  step 3/4  epoch 1.5  loss 0.5000\n"


def test_message_follows_the_newest_line_and_no_time_is_left(capsys):
    with Progress("name", 40, 2) as progress:
        for step in (1, 2):
            progress.update({"step": step, "split": "train", "loss": 0.5}, 8)
        progress.say("stopped")
    step, message = capsys.readouterr().out.splitlines()
    assert step.startswith("name  step 2/40")
    assert "left" not in step
    assert message == "stopped"


OWN = {
    "predict": {"--invert"},
    "sample": {"--tokens", "--prompt", "--temperature", "--top-k", "--seed"},
    "translate": {"--beam", "--length-penalty", "--file", "--alignment"},
    "caption": {"--beam", "--length-penalty", "--invert"},
    "segment": {"--invert"},
    "transcribe": {"--beam", "--lexicon", "--each"},
}
"""The options of each verb of zoo-evals."""
MEASURING = {"--split", "--data", "--data-dir", "--report", "--example"}


def _evals(*arguments):
    try:
        return evals.__main__.main(list(map(str, arguments)))
    except SystemExit as stop:
        return stop.code


def _shown(text):
    """Text without box-drawing frames, on one line."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize(("verb", "options"), OWN.items())
def test_help_of_each_verb_shows_its_own_options(capsys, verb, options):
    assert OWN.keys() == VERBS.keys()
    assert _evals(verb, "--help") == 0
    out = capsys.readouterr().out
    assert "RUN_DIR" in out
    shown = {option for option in re.findall(r"--[a-z][a-z-]*", out) if "--no-" not in option}
    assert shown - {"--help"} == options
    assert _shown(VERBS[verb].__doc__ or "").partition(".")[0] in _shown(out)


def test_help_of_measuring_names_the_verbs_and_none_of_their_options(capsys):
    assert _evals("--help") == 0
    out = capsys.readouterr().out
    assert (
        set(re.findall(r"--[a-z][a-z-]*", out)) - {"--help", "--no-report", "--prompt"} == MEASURING
    )
    for verb, of in VERBS.items():
        assert f"{verb} RUN_DIR {of.usage} ({of.does})" in _shown(out)


@pytest.mark.parametrize("form", ["{} 5", "{}=5"])
@pytest.mark.parametrize(("option", "instead"), FORMER.items())
def test_an_option_that_became_a_verb_is_one_line_that_names_it(
    classifier, capsys, option, instead, form
):
    assert instead.partition(" ")[0] in VERBS
    for words in (form.format(option).split(), ["--beam", "3", *form.format(option).split()]):
        assert _evals(classifier, *words) == 2
        captured = capsys.readouterr()
        assert (
            captured.err == f"error: {option} is a verb now: {entry.program('evals')} {instead}\n"
        )
        assert captured.out == ""
    assert {path.name for path in classifier.iterdir()} & {"eval.json", "report.html"} == set(), (
        "nothing is measured"
    )


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("pedict", "did you mean predict?"),
        ("smaple", "did you mean sample?"),
        ("translat", "did you mean translate?"),
        ("captions", "did you mean caption?"),
        ("Segment", "did you mean segment?"),
        ("xyzzy", "verbs: predict, sample, translate, caption, segment, transcribe"),
    ],
)
def test_a_mistyped_verb_suggests_the_right_one(classifier, capsys, typed, hint):
    for more in ((), ("x.png",), ("--invert",)):
        assert _evals(typed, classifier, *more) == 2
        captured = capsys.readouterr()
        assert captured.err == f"error: neither a verb nor a run folder: {typed!r}; {hint}\n"
        assert captured.out == ""


def test_a_verb_after_the_run_folder_is_one_line_that_says_so(classifier, capsys):
    assert _evals(classifier, "predict", "x.png") == 2
    call = f"{entry.program('evals')} predict {classifier} x.png"
    message = f"error: the verb comes before the run folder: {call}\n"
    assert capsys.readouterr().err == message


def test_a_mistyped_verb_alone_suggests_the_right_one(capsys):
    assert _evals("predit") == 2
    assert "'predit'; did you mean predict?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "more"),
    [("sample", ()), ("translate", ("one",)), ("caption", ("x.png",)), ("segment", ("x.png",))],
)
def test_a_verb_that_the_task_lacks_is_one_line_that_names_those_it_has(
    classifier, capsys, verb, more
):
    assert _evals(verb, classifier, *more) == 1
    captured = capsys.readouterr()
    assert (
        captured.err
        == f"error: {classifier}: {verb} is not for a model of classification; its verbs: predict\n"
    )
    assert captured.out == ""


@pytest.mark.parametrize("verb", ["", *OWN])
def test_each_verb_takes_only_its_own_options(classifier, capsys, verb):
    own = OWN[verb] if verb else MEASURING
    for option in sorted(set.union(MEASURING, *OWN.values()) - own):
        words = (option,) if option in ("--invert", "--report") else (option, "1")
        assert _evals(*([verb] if verb else []), classifier, *words) == 2
        captured = _no_traceback(capsys.readouterr())
        assert f"Unrecognized options: {option}" in _shown(captured.err)
        assert captured.out == ""


@pytest.mark.parametrize(
    "verb", [verb for verb in VERBS if "files" in inspect.signature(VERBS[verb]).parameters]
)
def test_file_verb_needs_a_file(classifier, capsys, verb):
    assert _evals(verb, classifier) == 2
    captured = _no_traceback(capsys.readouterr())
    assert "FILE" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_needs_a_run_folder(tmp_path, capsys, verb):
    assert _evals(verb) == 2
    assert "RUN_DIR" in _no_traceback(capsys.readouterr()).err
    assert _evals(verb, tmp_path / "none", "x") in ((2,) if verb == "sample" else (1,))
    captured = _no_traceback(capsys.readouterr())
    assert verb == "sample" or captured.err.startswith(f"error: {tmp_path / 'none'}")


def test_gradients_without_matplotlib_are_one_clear_error(tmp_path, capsys, monkeypatch):
    run = str(tmp_path / "run")
    assert _main("adding-lstm", "--data", "adding:5", "--steps", "1", "--quiet", "--out", run) == 0
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert gradients.main([run, "--plot", str(tmp_path / "plot.svg")]) == 1
    assert "error: import of matplotlib" in _no_traceback(capsys.readouterr()).err


def test_packages_import_fast_and_in_one_direction():
    """zoo needs neither train nor evals nor flax; train does not need evals."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for package, absent in (
        ("zoo", ("train", "evals", "flax", "orbax", "matplotlib")),
        ("train.engine.trainer", ("evals", "matplotlib", "torch")),
    ):
        script = (
            f"import sys, {package}; print([name for name in {absent!r} if name in sys.modules])"
        )
        shown = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert shown.strip() == "[]"
