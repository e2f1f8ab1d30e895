"""Report sections on models without targets: content against the models and numpy."""

import base64
import dataclasses
import functools
import io
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

import evals
import evals.report.checkpoints
import evals.report.document
import evals.report.examples
import evals.report.maps
import evals.tasks.density
import evals.tasks.reconstruction
import train
import zoo
from tests.helpers.evaluations import changed
from train.batches import fit_scaling
from train.engine.checkpoint import Checkpoints
from train.engine.run_folder import abstract_state
from train.tasks import Density

SECTIONS = {
    "Reconstructions": evals.tasks.reconstruction.reconstructions,
    "Fantasies": evals.tasks.reconstruction.fantasies,
    "Codes": evals.tasks.reconstruction.codes,
    "Weights and units": evals.report.checkpoints.histograms,
    "Free energy": evals.report.checkpoints.free_energies,
}
STEPS = (0, 1, 4)


@pytest.fixture(autouse=True, scope="module")
def _short():
    """Few chain steps and points suffice here; likelihoods are not tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evals.tasks.density, "likelihoods", lambda *_: {})
        patch.setattr(evals.tasks.reconstruction, "STEPS", STEPS)
        patch.setattr(evals.tasks.reconstruction, "CODES", 100)
        yield


def fitted(folder, module, cfg, epochs=3, learning_rate=0.1):
    """Evaluation of a few epochs, each kept."""
    optimizer = train.Optimizer(learning_rate=learning_rate)
    train.fit(
        module,
        cfg,
        "digits",
        out=folder / "run",
        epochs=epochs,
        batch_size=200,
        keep_every=1,
        optimizer=optimizer,
    )
    return evals.evaluate(folder / "run")


@pytest.fixture(scope="module")
def rbm(tmp_path_factory):
    cfg = zoo.parts.config.replace(zoo.rbm.PRESETS["digits"], initializer_deviation=0.3)
    return fitted(tmp_path_factory.mktemp("rbm"), zoo.rbm, cfg)


@pytest.fixture(scope="module")
def dbn(tmp_path_factory):
    cfg = zoo.parts.config.replace(
        zoo.dbn.PRESETS["digits"], trains="all", initializer_deviation=0.3
    )
    return fitted(tmp_path_factory.mktemp("dbn"), zoo.dbn, cfg)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return fitted(
        tmp_path_factory.mktemp("autoencoder"),
        zoo.autoencoder,
        zoo.autoencoder.PRESETS["digits"],
        1,
        0.001,
    )


def vectors_of(rbm):
    """The same RBM for inputs that are not images, and without classes."""
    inputs = rbm.table["inputs"].reshape(-1, 64)
    run = rbm.run._replace(data=rbm.run.data._replace(task=Density(), input_shape=(64,)))
    return changed(rbm, run=run, table=rbm.table.having(inputs=inputs))


KINDS = {
    "rbm": {*SECTIONS},
    "dbn": {*SECTIONS},
    "autoencoder": {"Reconstructions", "Codes", "Weights and units"},
    "vectors": {"Weights and units", "Free energy"},
}


def evaluation_of(kind, request):
    return (
        vectors_of(request.getfixturevalue("rbm"))
        if kind == "vectors"
        else request.getfixturevalue(kind)
    )


def text_of(section, evaluation):
    text = section(evaluation)
    assert text is not None
    return text


once = functools.cache(text_of)


def shown(text):
    """{what a picture shows: its pixels} of HTML."""
    found = re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="([^"]*)"', text)
    assert len({name for _, name in found}) == len(found)
    return {
        name: np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data, name in found
    }


def rows_of(text):
    """Cells of the last table, its header left out."""
    lines = re.findall(r"<tr>(.*?)</tr>", text[text.rindex("<table") :])
    return [re.sub("<[^>]*>", "|", line).strip("|").split("||") for line in lines[1:]]


def scaled(table: Any, rows: Any = ...) -> Any:
    return jnp.asarray(table["inputs"][rows].reshape(-1, 64) / 16, jnp.float32)


def close(pixels, values):
    np.testing.assert_allclose(
        pixels.astype(float).ravel(), 255 * np.clip(np.ravel(values), 0, 1), atol=1
    )


@pytest.mark.parametrize("kind", KINDS)
def test_sections_appear_for_matching_models(kind, request, monkeypatch):
    evaluation = evaluation_of(kind, request)
    if kind != "rbm":  # the only one whose plots are drawn here, because each is slow
        monkeypatch.setattr(evals.report.checkpoints, "plot", lambda *_: "")
        monkeypatch.setattr(evals.tasks.reconstruction, "plot", lambda *_: "")
    there = {title: once(SECTIONS[title], evaluation) for title in KINDS[kind]}
    of_task = evals.report.document.sections_of(evaluation)
    others = (SECTIONS[title] for title in set(SECTIONS) - set(there))
    assert all(section(evaluation) is None for section in others if section in of_task)
    assert {SECTIONS[title] for title in there} <= set(of_task)
    assert all(text.startswith(f"<section><h2>{title}</h2>") for title, text in there.items())
    assert sum(map(len, there.values())) < 2**19


def test_the_report_of_a_run_is_always_the_same_bytes(rbm):
    again = evals.evaluate(rbm.run.folder.path)
    assert [once(section, rbm) for section in SECTIONS.values()] == [
        section(again) for section in SECTIONS.values()
    ]


@pytest.mark.parametrize("kind", ["rbm", "dbn", "autoencoder"])
def test_reconstructions_equal_the_trace_with_errors(kind, request):
    evaluation = evaluation_of(kind, request)
    run, text = evaluation.run, once(evals.tasks.reconstruction.reconstructions, evaluation)
    pictures = shown(text)
    examples = [int(each.split()[1]) for each in pictures if each.startswith("example")]
    inputs = scaled(evaluation.table, examples)
    outputs = run.module.trace(run.recipe.model, run.params, inputs)[1]["reconstruction"]
    assert len(examples) == 12
    assert set(evaluation.table["targets"][examples]) == set(range(10))
    captions = re.findall(r"<b>(\d)</b> ([\d.]+)</figcaption>", text)
    for index, example in enumerate(examples):
        close(pictures[f"example {example}"], inputs[index])
        close(pictures[f"reconstruction of example {example}"], outputs[index])
        assert int(captions[index][0]) == evaluation.table["targets"][example]
        assert float(captions[index][1]) == pytest.approx(
            float(jnp.square(inputs[index] - outputs[index]).sum()), abs=0.006
        )
    inputs = scaled(evaluation.table)
    outputs = run.module.trace(run.recipe.model, run.params, inputs)[1]["reconstruction"]
    mean = float(jnp.square(inputs - outputs).sum(axis=1).mean())
    constant = float(inputs.var(axis=0).sum())
    assert f"The mean of 300 examples is {mean:.2f}; " in text
    assert f"it would be {constant:.2f}." in text


@pytest.mark.parametrize("kind", ["rbm", "dbn"])
def test_chains_equal_the_models(kind, request):
    evaluation = evaluation_of(kind, request)
    run, cfg = evaluation.run, evaluation.run.recipe.model
    module: Any = run.module
    start = np.asarray(scaled(evaluation.table, slice(4)))
    keys = jax.random.split(jax.random.key(7), 4)
    columns = evals.tasks.reconstruction.dreams(run, start, jax.random.key(7))
    np.testing.assert_array_equal(columns[0], start)
    for steps, means in zip(STEPS[1:], columns[1:], strict=True):
        np.testing.assert_allclose(
            means, module.fantasies(cfg, run.params, jnp.asarray(start), keys, steps), atol=1e-6
        )
        if kind == "dbn":
            continue
        # What the chain draws its states from, by the same key.
        sampled = module.sample(cfg, run.params, jnp.asarray(start), keys, steps)
        before = module.sample(cfg, run.params, jnp.asarray(start), keys, steps - 1)
        after, hidden = module.gibbs_step(
            cfg, run.params, before, jax.vmap(jax.random.fold_in, (0, None))(keys, steps - 1)
        )
        np.testing.assert_array_equal(after, sampled)
        np.testing.assert_allclose(
            means, jax.nn.sigmoid(module.visible_field(cfg, run.params, hidden)), atol=1e-6
        )


def test_dbn_with_one_rbm_samples_like_the_rbm(rbm, dbn):
    cfg = zoo.dbn.Config(sizes=(64, 100))
    run = dbn.run._replace(
        recipe=dataclasses.replace(dbn.run.recipe, model=cfg), params={"layer_0": rbm.run.params}
    )
    start = np.asarray(scaled(rbm.table, slice(4)))
    of_net, of_machine = (
        evals.tasks.reconstruction.dreams(each, start, jax.random.key(7)) for each in (run, rbm.run)
    )
    np.testing.assert_array_equal(of_net, of_machine)


def test_fantasies_show_chains_from_examples_and_from_noise(rbm, monkeypatch):
    kept = []
    original = evals.tasks.reconstruction.dreams
    monkeypatch.setattr(
        evals.tasks.reconstruction,
        "dreams",
        lambda *given: kept.append(original(*given)) or kept[0],
    )
    text = text_of(evals.tasks.reconstruction.fantasies, rbm)
    pictures = shown(text)
    assert len(pictures) == 10 * len(STEPS)
    for steps, values in zip(STEPS, kept[0], strict=True):
        for chain in range(10):
            close(pictures[f"chain {chain}, {steps} steps"], values[chain])
    starts = kept[0][0]
    known = {each.tobytes() for each in np.asarray(scaled(rbm.table))}
    assert [each.tobytes() in known for each in starts] == [True] * 5 + [False] * 5
    assert set(np.unique(starts[5:])) == {0, 1}


def test_maps_are_of_the_code(rbm, dbn, autoencoder, monkeypatch):
    """The last map is t-SNE's; neighbours' errors are scikit-learn's."""
    maps = {}
    monkeypatch.setattr(
        evals.tasks.reconstruction, "_scatter", lambda points, targets, colors: points
    )
    monkeypatch.setattr(
        evals.tasks.reconstruction,
        "plot",
        lambda name, points: maps.setdefault(name, points) is None or "",
    )
    for evaluation, coded in (
        (rbm, zoo.rbm.apply),
        (dbn, zoo.dbn.apply),
        (autoencoder, zoo.autoencoder.encode),
    ):
        maps.clear()
        lines = {
            line[0]: (int(line[1]), float(line[2]))
            for line in rows_of(text_of(evals.tasks.reconstruction.codes, evaluation))
        }
        inputs, targets = (
            scaled(evaluation.table, slice(None, None, 3)),
            evaluation.table["targets"][::3],
        )
        code = np.asarray(coded(evaluation.run.recipe.model, evaluation.run.params, inputs))
        for points, other in (
            (maps["PCA of the inputs"], np.asarray(inputs)),
            (maps["PCA of the code"], code),
        ):
            np.testing.assert_allclose(
                abs(points), abs(PCA(2).fit_transform(other.astype(np.float64))), atol=1e-3
            )
        spaces = {"inputs": inputs, "code": code, **maps}
        assert list(lines) == [
            "inputs",
            "code",
            "PCA of the inputs",
            "PCA of the code",
            "t-SNE of the code",
        ]
        for name, points in spaces.items():
            classifier = KNeighborsClassifier(1).fit(np.asarray(points, np.float64), targets)
            neighbours = classifier.kneighbors(return_distance=False)[
                :, 0
            ]  # embedded points, others
            assert lines[name][0] == points.shape[1]
            assert lines[name][1] == pytest.approx(
                100 * (targets[neighbours] != targets).mean(), abs=1.05
            )


def test_a_code_of_two_units_is_its_own_map(autoencoder, monkeypatch):
    cfg = zoo.autoencoder.Config(sizes=(64, 2))
    params = zoo.autoencoder.init(cfg, jax.random.key(0))
    run = autoencoder.run._replace(
        params=params, recipe=dataclasses.replace(autoencoder.run.recipe, model=cfg)
    )
    maps = {}
    monkeypatch.setattr(
        evals.tasks.reconstruction, "_scatter", lambda points, targets, colors: points
    )
    monkeypatch.setattr(
        evals.tasks.reconstruction,
        "plot",
        lambda name, points: maps.setdefault(name, points) is None or "",
    )
    text_of(evals.tasks.reconstruction.codes, changed(autoencoder, run=run))
    assert list(maps) == ["PCA of the inputs", "code"]
    np.testing.assert_allclose(
        maps["code"],
        zoo.autoencoder.encode(cfg, params, scaled(autoencoder.table, slice(None, None, 3))),
        atol=1e-5,
    )


@pytest.mark.parametrize("kind", ["rbm", "dbn", "autoencoder"])
def test_histograms_count_all_of_every_checkpoint(kind, request, monkeypatch):
    evaluation = evaluation_of(kind, request)
    run, drawn = evaluation.run, {}

    def capture(name, draw):
        draw(axes := Axes())
        drawn[name] = axes.lines
        return ""

    class Axes:
        def __init__(self):
            self.figure, self.lines = self, []

        def stairs(self, counts, edges, **_):
            self.lines.append((counts, edges))

        def __getattr__(self, _):
            return lambda *given, **named: None

    monkeypatch.setattr(evals.report.checkpoints, "plot", capture)
    text = text_of(evals.report.checkpoints.histograms, evaluation)
    with Checkpoints(run.folder.checkpoints, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        states = [checkpoints.load(abstract_state(run.recipe), step).params for step in steps]
    assert len(steps) == (1 if kind == "autoencoder" else 3)
    epochs = [round(step / 7) for step in steps]
    assert re.findall(r"</i>epoch (\d)", text) == [str(epoch) for epoch in epochs]
    leaves = [zoo.parts.parameters.leaves_by_path(params) for params in states]
    layers = [name for name in drawn if name.endswith(", means")]
    assert set(drawn) == {*leaves[0], *layers}
    for name in leaves[0]:
        assert len(drawn[name]) == len(steps)
        for (counts, edges), values in zip(drawn[name], leaves, strict=True):
            assert counts.sum() == values[name].size
            np.testing.assert_array_equal(counts, np.histogram(values[name], edges)[0])
    pictures = shown(text)
    assert [f"{name.removesuffix(', means')}, units" for name in layers] == list(pictures)
    for name in layers:
        layer = name.removesuffix(", means")
        for (counts, edges), params in zip(drawn[name], states, strict=True):
            values = np.asarray(
                run.module.trace(run.recipe.model, params, scaled(evaluation.table))[1][layer]
            )
            assert counts.sum() == values.shape[1]
            widened = [
                edges[0] - 1e-5,
                *edges[1:-1],
                edges[-1] + 1e-5,
            ]  # means round otherwise here
            assert abs(counts - np.histogram(values.mean(axis=0), widened)[0]).sum() <= 4
        rows = evals.report.examples.spread(evaluation, 100)
        values = run.module.trace(run.recipe.model, run.params, scaled(evaluation.table, rows))[1][
            layer
        ]
        if kind != "autoencoder":
            close(pictures[f"{layer}, units"], values)
        assert pictures[f"{layer}, units"].shape == values.shape


def upwards(evaluation, params, inputs):
    """The inputs of the top RBM."""
    return zoo.rbm.apply(evaluation.run.recipe.model.machines[0], params["layer_0"], inputs)


@pytest.mark.parametrize("kind", ["rbm", "dbn"])
def test_free_energies_equal_the_models(kind, request):
    evaluation = evaluation_of(kind, request)
    run, splits = evaluation.run, train.load_data("digits").splits
    text = once(evals.report.checkpoints.free_energies, evaluation)
    assert "of 100 training and 100 validation examples" in text
    lines = rows_of(text)
    rows = np.linspace(0, len(splits["train"]["inputs"]) - 1, 100).round().astype(int)
    with Checkpoints(run.folder.checkpoints, read_only=True) as checkpoints:
        for line, step in zip(lines, checkpoints.steps(), strict=True):
            params = checkpoints.load(abstract_state(run.recipe), step).params
            expected = []
            for inputs in (scaled(splits["train"], rows), scaled(splits["validation"])):
                if kind == "rbm":
                    energies = zoo.rbm.free_energy(run.recipe.model, params, inputs)
                else:
                    seen = upwards(evaluation, params, inputs)
                    energies = zoo.rbm.free_energy(
                        run.recipe.model.machines[1], params["layer_1"], seen
                    )
                expected.append(float(energies.mean()))
            assert [float(cell) for cell in line[1:]] == pytest.approx(
                [*expected, expected[1] - expected[0]], abs=0.006
            )


def test_models_trained_on_validation_data_are_compared_with_the_test_split(rbm):
    recipe = dataclasses.replace(rbm.run.recipe, train_on="train+validation")
    text = text_of(
        evals.report.checkpoints.free_energies, changed(rbm, run=rbm.run._replace(recipe=recipe))
    )
    assert "of 300 training and 300 test examples" in text
    assert "With the test split, not the validation split, as the run was trained on it." in text


def test_free_energies_use_the_labelled_training_examples(rbm):
    recipe = dataclasses.replace(rbm.run.recipe, labels=50)
    few = changed(rbm, run=rbm.run._replace(recipe=recipe))
    _, tables = evals.report.checkpoints._tables(few)
    targets = tables["train"]["targets"]
    np.testing.assert_array_equal(np.bincount(targets), 5)
    assert len(tables["validation"]["inputs"]) == 50


def test_missing_data_are_named(rbm, tmp_path):
    recipe = dataclasses.replace(rbm.run.recipe, data=f"npz:{tmp_path / 'gone.npz'}")
    text = text_of(
        evals.report.checkpoints.free_energies, changed(rbm, run=rbm.run._replace(recipe=recipe))
    )
    assert "could not be loaded" in text
    assert "gone.npz" in text


@pytest.mark.parametrize("kind", ["unit", "standardize", "zscore", "none"])
def test_pixels_of_scaled_inputs_are_the_raw_ones(rbm, kind):
    raw = np.random.default_rng(0).integers(0, 17, (20, 8, 8, 1)).astype(np.float32)
    raw[:, 0] = 3  # never varies
    scaling = fit_scaling(kind, raw, (0, 16))
    run = rbm.run._replace(data=rbm.run.data._replace(scaling=scaling))
    run = run._replace(recipe=dataclasses.replace(run.recipe, preprocess=kind))
    evaluation = changed(rbm, run=run, table={"inputs": raw})
    pixels = evals.tasks.reconstruction.as_pixels(
        evaluation, np.asarray(scaling(jnp.asarray(raw))).reshape(20, 64)
    )
    np.testing.assert_allclose(pixels, raw[..., 0] * 255 / 16, atol=0.51)


@given(st.sets(st.integers(0, 50), min_size=1), st.integers(2, 9), st.data())
def test_chosen_checkpoints_hold_the_best_and_the_last(steps, most, data):
    steps = sorted(steps)
    best = data.draw(st.sampled_from(steps))
    picked = evals.report.checkpoints.chosen(steps, best, most)
    assert picked == sorted(set(picked))
    assert {best, steps[-1]} <= set(picked) <= set(steps)
    assert len(picked) == min(most, len(steps))


def test_filters_are_the_encoders_where_a_decoders_would_fit(autoencoder):
    cfg = zoo.autoencoder.Config(sizes=(64, 64))
    run = autoencoder.run._replace(params=zoo.autoencoder.init(cfg, jax.random.key(0)))
    assert "<code>layer_0.kernel</code>" in text_of(
        evals.report.maps.first_weights, changed(autoencoder, run=run)
    )
