"""Speed: contenders compute the same step, blocks interleave, the command line reports."""

import dataclasses
import functools
import itertools
import json
import os
import types
from typing import Any

import jax
import numpy as np
import pytest

from evals.speed import contenders as speed_contenders
from evals.speed.__main__ import main, show
from evals.speed.captions import CAPTIONS, pictures
from evals.speed.captions import network as captioner
from evals.speed.contenders import RATE, Deform, Fit, TorchDeform, contenders, example_images
from evals.speed.energy import annealing, dividing
from evals.speed.pixels import PIXELS
from evals.speed.recurrent import RECURRENT, Generated, Looped
from evals.speed.rows import (
    ROWS,
    Line,
    Options,
    Others,
    algorithm_row,
    augment_row,
    beam_row,
    compare,
    convolutions_row,
    generate_row,
    interleave,
    loop_row,
    parallel_row,
    passes,
    step_row,
    unroll_row,
)
from evals.speed.speech import PREFIX_SEARCHES, SPEECH, aligning, utterances
from evals.speed.translation import END, SEARCHES, TRANSLATION, network, sentences
from evals.speed.workloads import DEFORMATIONS, WORKLOADS, convolutional
from tests.conftest import THOROUGH
from train.augment import Augment
from train.engine.step import divide
from zoo import convnet, mlp, rbm, rnnlm
from zoo.parts.convolution import PASSES, Geometry

pytestmark = pytest.mark.slow

TINY = mlp.PRESETS["tiny"]
SMALL = {
    "mlp": {"batch": 7, "width": 9},
    "convnet": {"batch": 7, "side": 12},
    "lenet5": {"batch": 7, "side": 14},
    "vgg32": {"batch": 3, "width": 1 / 2, "side": 16},
    "tdnn": {"batch": 7, "length": 15},
    # lstm-lm is the one's function of a text and the other's two layers
    "lstm-chars": {"batch": 3, "units": 8, "length": 6},
    "lstm-ragged": {"batch": 4, "units": 6, "length": 8},
    "translation": {"batch": 5, "units": 6, "length": 4, "vocabulary": 9},
    "caption": {"batch": 5, "width": 1 / 32, "side": 24, "length": 4, "vocabulary": 9},
    "pixels": {"batch": 3, "width": 1 / 16, "side": 16},
    "ctc": {"batch": 4, "units": 6, "length": 24, "labels": 4},
}
if not THOROUGH:  # convnet is like them
    del SMALL["lenet5"], SMALL["vgg32"]
KEYS = {"row", "peer", "ratio", "ratio_min", "ratio_max", "zoo_ms", "peer_ms"}


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def tiny_convnet(batch=4, width=1, side=4):
    return convolutional(
        convnet.Config(shape=(side, side, 1), stages=(convnet.Stage(features=2),)), batch, width
    )


@pytest.fixture
def tiny_rows(monkeypatch):
    """The rows as they are, of models that compile fast."""
    dense = functools.partial(WORKLOADS["mlp"][0], batch=4, width=8)
    rows: dict[str, Any] = {"mlp": functools.partial(step_row, "mlp", dense, WORKLOADS["mlp"][1])}
    loops = {"loop": (mlp, TINY, 4, None), "loop, promised": (mlp, TINY, 4, 1.05)}
    rows["loop"] = functools.partial(loop_row, loops)
    rows["parallel"] = functools.partial(parallel_row, {"loop": (mlp, TINY, 4, None)})
    rows["augment"] = functools.partial(
        augment_row, {"augment, affine": Augment(rotate=5)}, tiny_convnet
    )
    rows["generate"] = functools.partial(generate_row, {"generate": rnnlm.PRESETS["tiny"]})
    rows["unroll"] = functools.partial(unroll_row, (9,))
    rows["convolutions"] = functools.partial(convolutions_row, [dense, tiny_convnet])
    for row in ROWS:
        monkeypatch.setitem(ROWS, row, rows.get(row, lambda options: []))
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # other tests want theirs


@pytest.fixture(scope="module", params=SMALL)
def trained(request):
    """A small workload, its contenders after three steps, and the losses of the steps."""
    sequences = RECURRENT | TRANSLATION | CAPTIONS | SPEECH
    work = (WORKLOADS | sequences | PIXELS)[request.param][0](**SMALL[request.param])
    found = contenders(work, rate=0.5 if request.param in sequences else 0.02)
    losses = {name: [] for name in found}
    for name, contender in found.items():
        for _ in range(3):
            contender.step()
            outputs = contender.outputs
            loss = divide(outputs)["loss"] if name == "zoo" else outputs.item()
            losses[name].append(loss)
    return work, found, losses


def test_flax_takes_the_same_steps(trained):
    work, found, losses = trained
    assert losses["zoo"][2] < losses["zoo"][1] < losses["zoo"][0]
    np.testing.assert_allclose(losses["flax"], losses["zoo"], rtol=1e-5)
    start = work.module.init(work.cfg, jax.random.key(1))
    named = (*map(work.flax_params, (start, found["zoo"].state.params)), found["flax"].state.params)
    for before, ours, theirs in zip(*map(jax.tree.leaves, named), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-6)
        assert np.abs(ours - before).max() > 1e-4


def test_torch_takes_the_same_steps(trained):
    pytest.importorskip("torch")
    work, found, losses = trained
    np.testing.assert_allclose(losses["torch"], losses["zoo"], rtol=1e-5)
    theirs = [leaf.detach().numpy() for leaf in found["torch"].trained()]
    for mine, leaf in zip(work.torch_params(found["zoo"].state.params), theirs, strict=True):
        np.testing.assert_allclose(leaf, mine, rtol=1e-5, atol=1e-6)


def test_torch_deformation_matches():
    """Tiny deformations do nothing; larger ones displace pixels about equally far."""
    pytest.importorskip("torch")
    shape, tiny = (32, 12, 12, 1), Augment(rotate=1e-6, elastic=1e-6)
    images = np.asarray(example_images(shape))
    differences = {}
    for augment in (tiny, dataclasses.replace(DEFORMATIONS["augment, elastic"], smoothness=2.0)):
        for kind in (Deform, TorchDeform):
            contender = kind(augment, shape)
            contender.step()
            outputs = np.asarray(contender.outputs)
            outputs = np.moveaxis(outputs, 1, -1) if kind is TorchDeform else outputs
            differences[augment, kind] = np.abs(outputs - images).mean()
    assert max(differences[tiny, Deform], differences[tiny, TorchDeform]) < 1e-3
    ours, theirs = (
        difference for (augment, _), difference in differences.items() if augment != tiny
    )
    assert ours > 0.05
    np.testing.assert_allclose(ours, theirs, rtol=0.2)


def test_parameters_hardly_move_while_they_are_timed():
    found = contenders(WORKLOADS["mlp"][0](batch=4, width=8))["zoo"]
    start = jax.tree.map(np.array, found.state.params)
    assert found(200) > 0
    assert int(found.state.step) == 200 + 1 + 200 // 10
    jax.tree.map(
        lambda before, after: np.testing.assert_allclose(after, before, atol=1e4 * RATE),
        start,
        found.state.params,
    )


def test_blocks_interleave_and_their_lengths_follow_the_speed():
    calls = []

    def timed(name, seconds):
        def run(count):
            calls.append((name, count))
            return seconds * (1 + len(calls))

        return run

    times = interleave(
        {"a": timed("a", 0.5), "b": timed("b", 1000.0)}, Options(rounds=3, seconds=10)
    )
    assert calls == [
        ("a", 1),
        ("b", 1),
        *[("a", 10), ("b", 1)],
        *[("b", 1), ("a", 10)],
        *[("a", 10), ("b", 1)],
    ]
    np.testing.assert_allclose(times["a"], [2.0, 3.5, 4.0])
    np.testing.assert_allclose(times["b"], [5000, 6000, 9000])


def test_a_comparison_is_the_median_of_the_pairs():
    line = compare("row", "peer", np.array([1.0, 6.0, 2.0]), np.array([2.0, 2.0, 1.0]), at_most=1.5)
    # The ratio of the medians would be 1.
    assert line == Line(
        row="row",
        peer="peer",
        ratio=2,
        ratio_min=0.5,
        ratio_max=3,
        zoo_ms=2000,
        peer_ms=2000,
        zoo_ms_best=1000,
        peer_ms_best=1000,
        at_most=1.5,
    )


def test_processor_time_of_other_programs(tmp_path, monkeypatch):
    file, tick = tmp_path / "stat", 1 / os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr("time.process_time", lambda: 0.0)
    file.write_text("cpu  100 10 50 1000 40 0 0 0 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    others = Others(file)
    monkeypatch.setattr("time.process_time", lambda: 60 * tick)
    file.write_text("cpu  150 15 75 1090 50 6 5 9 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    # 200 ticks passed; 100 of them busy, 60 of these our own.
    assert others.share() == pytest.approx(40 / 200)
    assert Others(tmp_path / "absent").share() is None


@pytest.mark.parametrize("steps_per_dispatch", [1, 60])
def test_the_loop_is_timed_between_its_logs(monkeypatch, steps_per_dispatch):
    seen = []

    def fit(*arguments, **settings):
        seen.append(real(*arguments, **settings))
        for line in seen[
            -1
        ].history:  # the first log comes late, after compilation; the last one early
            line["seconds"] = {
                seen[-1].history[0]["step"]: 5.0,
                seen[-1].history[-1]["step"]: 5.1,
            }.get(line["step"], line["step"])
        return seen[-1]

    real = speed_contenders.fit
    monkeypatch.setattr(speed_contenders, "fit", fit)
    interval = max(50, steps_per_dispatch)
    measured = Fit(mlp, TINY, 4, steps_per_dispatch)(interval + 1)
    assert [line["step"] for line in seen[0].history] == [
        interval * number for number in (1, 2, 3, 4)
    ]
    assert measured == pytest.approx((3 * interval - 5) / (2 * interval))


def test_a_trainer_that_is_stopped_stops_the_measurement(monkeypatch):
    monkeypatch.setattr(
        speed_contenders,
        "fit",
        lambda *given, **settings: types.SimpleNamespace(complete=False, history=[]),
    )
    with pytest.raises(KeyboardInterrupt):
        Fit(mlp, TINY, 4, 1)(1)


@pytest.mark.usefixtures("tiny_rows")
def test_compilation_option(tmp_path, capsys):
    assert (
        main(["mlp", "--rounds", "1", "--compilation", "--json", str(tmp_path / "speed.json")]) == 0
    )
    rows = [row["row"] for row in json.loads((tmp_path / "speed.json").read_text())]
    assert rows == ["mlp, compile", "mlp, first step"]
    assert main(["mlp", "--compilation", "--own-size"]) == 2
    assert "--own-size and --compilation: give one of them" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny_rows")
def test_all_rows_from_the_command_line(tmp_path, capsys):
    torch = [] if not speed_contenders.has_torch() else ["torch"]
    assert (
        main(["--rounds", "1", "--seconds", "0.001", "--json", str(tmp_path / "speed.json")]) == 0
    )
    written = json.loads((tmp_path / "speed.json").read_text())
    for row in written:
        assert {"jax", "flax", *torch} <= row["versions"].keys()
        assert row["hardware"]
        assert row["date"]
    expected = [
        (size, peer)
        for size in ("mlp", "mlp, batch x2", "mlp, width x2")
        for peer in ["flax", *torch]
    ]
    expected += [(f"mlp, {what}", "flax") for what in ("compile", "first step")]
    expected += [("generate", "Python loop"), ("unroll, 9 steps, remat", "all kept")]
    expected += [(row, "jitted step") for row in ("loop", "loop, 100 steps a dispatch")]
    expected += [("loop, promised", "jitted step"), ("parallel", "jitted step")]
    expected += [("augment, affine", peer) for peer in ("step", *torch)]
    formulations = [row for row in written if row["row"].startswith("convolutions: ")]
    rows = {(row["row"], row["peer"]): row for row in written}
    assert list(rows) == expected + [(row["row"], row["peer"]) for row in formulations]
    assert len(formulations) == 2  # of one convolution
    shown = capsys.readouterr().out
    for (name, peer), row in rows.items():
        assert row.keys() >= KEYS
        assert 0 < row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
        assert name in shown
        assert peer in shown
    assert rows["mlp", "flax"]["at_most"] == 1.05
    assert rows["mlp, width x2", "flax"].keys() >= KEYS | {"zoo_growth", "peer_growth"}
    assert rows["loop", "jitted step"]["at_most"] == 60
    assert rows["loop, promised", "jitted step"]["at_most"] == 1.05
    assert rows["parallel", "jitted step"]["at_most"] == 1.03
    assert "overhead_us" in rows["loop, 100 steps a dispatch", "jitted step"]
    assert rows["generate", "Python loop"]["at_most"] == pytest.approx(1 / 3)
    assert f"{rows['generate', 'Python loop']['tokens_per_second']:,.0f} tokens/s" in shown
    unrolled = rows["unroll, 9 steps, remat", "all kept"]
    assert unrolled.keys() >= KEYS | {"zoo_growth", "peer_growth"}
    assert 0 < unrolled["zoo_bytes"] < unrolled["peer_bytes"]
    assert (
        f"{unrolled['zoo_bytes'] / 1e6:.1f} MB (peer {unrolled['peer_bytes'] / 1e6:.1f})" in shown
    )
    assert f"{rows['augment, affine', 'step']['images_per_second']:,.0f} images/s" in shown
    for row in formulations:
        assert {row["chosen"], row["peer"]} <= row["measured_ms"].keys()
        assert row["measured_ms"].keys() == row["estimated_ms"].keys()
        assert row["peer_ms"] == min(row["measured_ms"].values())
        assert row["zoo_ms"] == row["measured_ms"][row["chosen"]]
        assert f"chose {row['chosen']} of" in shown


def test_python_loop_generates_the_same_text():
    texts = []
    for kind in (Generated, Looped):
        writer = kind(rnnlm.PRESETS["tiny"], tokens=9, rows=2)
        writer.step()
        texts.append(
            np.stack(writer.outputs, axis=1) if kind is Looped else np.asarray(writer.outputs)
        )
    assert texts[0].shape == (2, 9)
    assert len(np.unique(texts[0])) > 2
    np.testing.assert_array_equal(texts[1], texts[0])


TASKS = {
    "beam": functools.partial(sentences, cfg=network(units=8, vocabulary=11)),
    "captioning": functools.partial(pictures, cfg=captioner(width=1 / 32, side=24, vocabulary=11)),
}


@pytest.mark.parametrize(
    ("row", "suppressed"), [("beam", ()), ("beam", (END,)), ("captioning", (END,))]
)
def test_beam_search_contenders_agree(row, suppressed):
    """All steps if END is suppressed; otherwise each search stops when it is done."""
    task = TASKS[row](batch=6, length=12)
    # Doubled, so that some tokens are much more probable than others.
    params = jax.tree.map(
        lambda leaf: 2 * leaf, jax.jit(task.module.init)(task.cfg, jax.random.key(2))
    )
    found = {}
    for name, kind in SEARCHES.items():
        search = kind(task, width=3, suppressed=suppressed, params=params)
        search.step()
        found[name] = search.best()
    ends = (found["zoo"] == END).argmax(axis=1)
    assert found["zoo"].shape == (6, 12)
    assert len(np.unique(found["zoo"], axis=0)) > 4
    assert not ends.any() if suppressed else len(np.unique(ends)) > 2
    for peer in found.keys() - {"zoo"}:
        np.testing.assert_array_equal(found[peer], found["zoo"])


def test_beam_row_compares_every_peer(capsys):
    make = functools.partial(TASKS["beam"], batch=16)
    lines = [
        *beam_row(
            "beam",
            make,
            SEARCHES,
            {"numpy": 0.4},
            "sentences_per_second",
            Options(rounds=1, seconds=0.001),
        )
    ]
    assert [(line.row, line.peer, line.at_most) for line in lines] == [
        ("beam", "numpy", 0.4),
        ("beam", "Python loop", None),
    ]
    for line in lines:
        show(line)
    shown = capsys.readouterr().out
    for line in lines:
        assert line.sentences_per_second == pytest.approx(16e3 / line.zoo_ms)
        assert f"{line.sentences_per_second:,.0f} sentences/s" in shown


def test_prefix_search_contenders_agree():
    """Utterances long enough for the beam to lose prefixes, and for repeated labels."""
    found = {}
    for name, kind in PREFIX_SEARCHES.items():
        search = kind(utterances(batch=5, length=20, labels=5, beam=6))
        search.step()
        found[name] = search.best()
    labels = [row for row, _ in found["zoo"]]
    assert len(set(labels)) == 5
    assert any(a == b for row in labels for a, b in itertools.pairwise(row))
    for peer in found.keys() - {"zoo"}:
        assert [row for row, _ in found[peer]] == labels
        np.testing.assert_allclose(
            [score for _, score in found[peer]], [score for _, score in found["zoo"]], atol=1e-3
        )


def test_contenders_for_the_ctc_loss_agree():
    found = {}
    for name, contender in aligning(batch=3, length=9, labels=4, vocabulary=5).items():
        contender.step()
        loss, gradient = contender.outputs
        gradient = np.moveaxis(gradient.numpy(), 0, 1) if name == "torch" else gradient
        found[name] = float(loss), gradient
    loss, gradient = found["zoo"]
    assert np.abs(gradient).max() > 0.1
    for peer in found.keys() - {"zoo"}:
        assert found[peer][0] == pytest.approx(loss, rel=1e-5)
        np.testing.assert_allclose(found[peer][1], gradient, atol=1e-5)


def test_prefix_search_row_counts_utterances(capsys):
    make = functools.partial(utterances, batch=2, length=5, labels=4, beam=3)
    options = Options(rounds=1, seconds=0.001)
    rate = "utterances_per_second"
    lines = [*beam_row("prefix-search", make, PREFIX_SEARCHES, {"numpy": 0.5}, rate, options)]
    assert [(line.peer, line.at_most) for line in lines] == [("numpy", 0.5), ("dictionaries", None)]
    show(lines[0])
    assert f"{lines[0].utterances_per_second:,.0f} utterances/s" in capsys.readouterr().out
    assert lines[0].utterances_per_second == pytest.approx(2e3 / lines[0].zoo_ms)


def test_convolutions_are_those_of_the_workloads():
    makes = [WORKLOADS[row][0] for row in ("mlp", "lenet5", "tdnn", "lenet5")]
    found = passes(make(batch=2) for make in makes)
    images = [
        Geometry(2, (28, 28), (5, 5), (1, 1), ((2, 2), (2, 2)), 1, 6),
        Geometry(2, (14, 14), (5, 5), (1, 1), ((0, 0),) * 2, 6, 16),
    ]
    # The gradient with respect to the data is not needed.
    assert found[:5] == [
        (images[0], "forward"),
        (images[0], "kernel"),
        *((images[1], which) for which in PASSES),
    ]
    assert {shape.space for shape, _ in found[5:]} == {(100,), (50,), (25,)}
    assert len(found) == 5 + 8


@pytest.mark.usefixtures("without_torch")
def test_without_torch_its_comparisons_are_skipped(monkeypatch, capsys, tmp_path):
    made = WORKLOADS["mlp"][0](batch=4, width=8)
    monkeypatch.setitem(
        ROWS,
        "mlp",
        lambda options: [compare("mlp", peer, np.ones(1), np.ones(1)) for peer in contenders(made)],
    )
    assert main(["mlp", "--json", str(tmp_path / "speed.json")]) == 0
    assert "torch is not installed" in capsys.readouterr().out
    written = json.loads((tmp_path / "speed.json").read_text())
    assert [row["peer"] for row in written] == ["zoo", "flax"]
    assert "torch" not in written[0]["versions"]


def test_comparisons_appear_when_they_are_measured_and_ctrl_c_keeps_them(
    monkeypatch, capsys, tmp_path
):
    """Checks the output and the file between comparisons."""
    file = tmp_path / "speed.json"

    def row(options):
        for number in range(3):
            said = capsys.readouterr().out
            assert (f"mlp, {number - 1}" in said) == (number > 0)
            kept = [each["row"] for each in json.loads(file.read_text())] if number else []
            assert kept == [f"mlp, {each}" for each in range(number)]
            assert [each.name for each in tmp_path.iterdir()] == ([file.name] if number else [])
            if number == 2:
                raise KeyboardInterrupt
            yield compare(f"mlp, {number}", "flax", np.ones(1), np.ones(1))

    monkeypatch.setitem(ROWS, "mlp", row)
    monkeypatch.setitem(ROWS, "loop", lambda options: pytest.fail("after Ctrl-C"))
    assert main(["mlp", "loop", "--json", str(file)]) == 3
    assert capsys.readouterr().err == f"stopped after 2 comparisons; they are in {file}\n"
    assert [each["row"] for each in json.loads(file.read_text())] == ["mlp, 0", "mlp, 1"]


@pytest.mark.usefixtures("tiny_rows")
def test_rows_hand_over_a_comparison_before_they_measure_the_next(monkeypatch):
    measured = []

    def interleave(timed, options):
        measured.append(len(timed))
        return {name: np.ones(1) for name in timed}

    monkeypatch.setattr("evals.speed.rows.interleave", interleave)
    for row, first in (
        ("loop", [3]),
        ("mlp", [3 * len(contenders(WORKLOADS["mlp"][0](batch=4, width=8)))]),
    ):
        measured.clear()
        lines = iter(ROWS[row](Options(rounds=1, seconds=0.001)))
        assert next(lines).row == row
        assert measured == first
        assert [*lines]
        assert len(measured) > 1


def test_a_wrong_command_line_is_one_clear_line(capsys, tmp_path):
    for arguments, said in [
        (["mlpp"], "no row 'mlpp'; did you mean mlp?"),
        (["mlp", "lop"], "no row 'lop'; did you mean loop?"),
        (["--rounds", "0"], "--rounds"),
        (["--seconds", "nan"], "--seconds"),
        (["--seconds", "inf"], "--seconds"),
        (["--json", str(tmp_path / "absent" / "speed.json")], "absent"),
        (["--json", str(tmp_path)], "cannot be written"),
    ]:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("steps", [1, 3])
def test_contrastive_divergence_contenders_agree(steps):
    """Saturated units make sampling deterministic, except hidden ones used by their means."""
    cfg = rbm.Config(visible=6, hidden=4, steps=steps)
    batch = rbm.example_batch(cfg, jax.random.key(0), 5)
    signs = np.array([1, -1, 1, 1, -1, 1], np.float32)
    params = {
        "kernel": jax.random.normal(jax.random.key(1), (6, 4)),
        "bias": 60.0 * jax.numpy.asarray(signs[:4]),
        "visible_bias": 60.0 * jax.numpy.asarray(signs),
    }
    moved = {}
    for name, contender in dividing(cfg, params, batch, 0.1).items():
        for _ in range(2):  # the second one with momentum
            contender.step()
        if name == "zoo":
            moved[name] = [
                contender.state.params[leaf] for leaf in ("kernel", "visible_bias", "bias")
            ]
        else:
            arrays = contender.arrays
            moved[name] = [
                np.asarray(leaf)
                for leaf in (arrays.kernel, arrays.visible_bias, arrays.hidden_bias)
            ]
    assert np.abs(moved["zoo"][0] - params["kernel"]).max() > 0.01
    for peer in moved.keys() - {"zoo"}:
        for mine, theirs in zip(moved["zoo"], moved[peer], strict=True):
            np.testing.assert_allclose(theirs, mine, rtol=1e-5, atol=1e-5)


def test_annealing_contenders_agree():
    estimates = {}
    for name, contender in annealing(temperatures=50, chains=200, visible=12, hidden=5).items():
        contender.step()
        estimates[name] = float(
            contender.outputs.log_partition if name == "zoo" else contender.outputs
        )
    for peer in estimates.keys() - {"zoo"}:
        assert estimates[peer] == pytest.approx(estimates["zoo"], abs=0.05)


def test_a_row_of_an_algorithm_compares_each_peer_at_each_size():
    lines = [
        *algorithm_row(
            "ais",
            lambda temperatures=3, chains=4: annealing(temperatures, chains, 5, 3),
            {"torch": 1.0, "numpy": 1.0},
            Options(1, 0),
        )
    ]
    peers = len({line.peer for line in lines})
    assert [line.row for line in lines] == [
        row for row in ("ais", "ais, temperatures x2", "ais, chains x2") for _ in range(peers)
    ]
    assert all(line.at_most == 1.0 for line in lines if line.row == "ais")
