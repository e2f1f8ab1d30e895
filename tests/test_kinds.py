"""Every kind of data follows the protocol of ``train.data.base``, in CLI and documents too."""

import dataclasses
import inspect
import json
import pathlib
import re

import pytest

from train import data
from train.__main__ import main, parse
from train.data import (
    KINDS,
    DataError,
    captions,
    digits,
    folder,
    forms,
    load_data,
    masks,
    mnist,
    npz,
    pairs,
    pixels,
    scenes,
    text,
)
from train.data.base import Finder, Sentences, Source
from train.recipe import Recipe, from_dict, to_dict
from train.recipes import RECIPES

TRAINING = (pathlib.Path(__file__).parent.parent / "docs" / "training.md").read_text()
EXAMPLES = {
    "digits": ("digits",),
    "mnist": ("mnist",),
    "fashion_mnist": ("fashion_mnist",),
    "npz": ("npz:a.npz", "npz:~/b@c.npz"),
    "folder": ("folder:a/b", "folder:C:/a@b"),
    "stream": ("stream:a/b",),
    "fsdd": ("fsdd:a", "fsdd:a@home@bob", "fsdd:a@home/b"),
    "speech": ("speech:a.tsv", "speech:a:b"),
    "an4": ("an4", "an4:a/an4"),
    "librispeech": ("librispeech:a",),
    "timit": ("timit:a",),
    "states": ("states:an4", "states:timit:a/b"),
    "spoken": ("spoken-digits", "spoken-digits:a"),
    "moving_digits": ("moving_digits",),
    "topics": ("topics",),
    "brown": ("brown",),
    "tinyshakespeare": ("tinyshakespeare",),
    "text": ("text:a.txt", "text:a:b"),
    "adding": ("adding:2", "adding:9999"),
    "copy": ("copy:100",),
    "numbers": ("numbers-en-fr", "numbers-de-pt_BR"),
    "multi30k": ("multi30k-en-fr",),
    "pairs": ("pairs:a.tsv", "pairs:{split}.en,{split}.fr"),
    "digit_scenes": ("digit_scenes", "digit_scenes:7"),
    "stamps": ("stamps:a", "stamps:a@fr", "stamps:a@7", "stamps:a@fr,7"),
    "digit_pixels": ("digit_pixels", "digit_pixels:7"),
    "stamp_pixels": ("stamp_pixels:a", "stamp_pixels:a@7"),
    "masks": ("masks:a",),
    "captions": ("captions:a.json", "captions:captions_{split}2014.json"),
    "synthetic": ("synthetic:40x6x5x3/4",),
}
"""By the first word of the form."""
NAMES = [name for names in EXAMPLES.values() for name in names]
RECORDED = {
    "features": "mfcc", "bands": 30, "coefficients": 20, "deltas": 2, "normalise": "global",
    "buckets": 2, "on_bad": "skip",
}  # fmt: skip
SETTINGS = {
    "text": {"tokens": "words", "window": 7, "min_count": 3},
    "pairs": {"tokens": "words", "min_count": 3, "max_length": 9, "on_bad": "skip", "buckets": 2},
    "captions": {"subwords": 50, "max_length": 9, "on_bad": "skip", "image_shape": (4, 5, 3)},
    "folder": {"image_shape": (4, 5, 3)},
    "masks": {"image_shape": (4, 5, 3)},
    "scenes": {"max_length": 9},
    "speech": {"units": "words", "rate": 8000, **RECORDED},
    "timit": {"rate": 8000, **RECORDED},
    "states": {
        **{name: value for name, value in RECORDED.items() if name != "buckets"},
        "features": "log_mel",
        "deltas": 1,
        "rate": 8000,
        "context": 7,
        "states": 2,
        "labelled": 0.5,
    },
    "spoken_digits": {"units": "characters", "count": 7, **RECORDED},
}
"""{kind: settings}, each with a value other than its default."""


def settings_of(source: Source) -> set[str]:
    return {field.name for field in dataclasses.fields(source)} - set(source.identity)


def changed(source: Source) -> Source:
    return dataclasses.replace(source, **SETTINGS.get(source.kind, {}))


# ---------------------------------------------------------------- protocol


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_modules_with_the_names_of_the_protocol(kind):
    module = KINDS[kind]
    config = module.Config
    assert getattr(module, "__name__", "") == f"train.data.{kind}"
    assert issubclass(config, Source)
    assert config.kind == kind
    assert dataclasses.is_dataclass(config)
    assert config.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    assert list(inspect.signature(module.load).parameters) == ["cfg", "find"]
    fields = {field.name for field in dataclasses.fields(config)}
    assert {*config.identity, *config.counts} <= fields
    assert config() == config(), "every field has a default"
    assert hash(config()) == hash(config())
    assert bool(module.FORMS) == (kind != "arrays"), "what is in memory has no name"
    assert set(SETTINGS.get(kind, {})) <= settings_of(config())
    assert settings_of(config()) == set() or kind in SETTINGS


def test_data_modules_are_kinds_or_listed_exceptions():
    modules = {path.stem for path in pathlib.Path(data.__file__).parent.glob("*.py")}
    assert modules - KINDS.keys() == {"__init__", "base"}
    assert forms().keys() == EXAMPLES.keys()
    assert sum(len(kind.FORMS) for kind in KINDS.values()) == len(forms()), (
        "no two kinds have a form of one word"
    )


@pytest.mark.parametrize("name", NAMES)
def test_forms_match_their_names(name):
    source = data.parse(name)
    word = re.match(r"\w+", name)
    assert word
    assert word[0] in KINDS[source.kind].FORMS
    assert str(source) == name
    default = type(source)()
    assert all(
        getattr(source, field) == getattr(default, field) for field in settings_of(source)
    ), "the name says no setting"


@pytest.mark.parametrize("kind", KINDS)
def test_sources_round_trip_through_json(kind):
    for source in (
        KINDS[kind].Config(),
        *(data.parse(name) for name in NAMES if data.parse(name).kind == kind),
    ):
        for each in (source, changed(source)):
            fields = json.loads(json.dumps(data.to_dict(each)))
            assert fields["kind"] == kind
            assert data.from_dict(fields) == each
            recipe = Recipe(name="mine", model=RECIPES["mlp-digits"].model, data=each)
            assert from_dict(json.loads(json.dumps(to_dict(recipe)))) == recipe
    for broken in ({"kind": "none"}, {**data.to_dict(KINDS[kind].Config()), "another": 1}, {}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            data.from_dict(broken)


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize("name", NAMES)
def test_like_copies_settings_but_not_identity(name):
    for other in NAMES:
        before = changed(data.parse(other))
        after = data.parse(name, like=before)
        assert str(after) == name
        if after.kind == before.kind:
            assert all(
                getattr(after, field) == getattr(before, field) for field in settings_of(after)
            )


@pytest.mark.parametrize(
    ("name", "like", "expected"),
    [
        (
            "text:a",
            text.Config(corpus="brown", tokens="words", window=35),
            {"tokens": "words", "window": 35},
        ),
        (
            "pairs:a,b",
            pairs.Config(corpus="numbers-en-fr", subwords=50, buckets=2),
            {"subwords": 50, "buckets": 2},
        ),
        (
            "captions:a",
            pairs.Config(tokens="words", min_count=3),
            {"tokens": "words", "min_count": 3},
        ),
        (
            "captions:a",
            scenes.Config(path="stamps", language="fr", count=5, max_length=9),
            {"max_length": 9},
        ),
        ("folder:a", captions.Config(path="b", image_shape=(4, 5, 3)), {"image_shape": (4, 5, 3)}),
        ("stream:a", folder.Config(path="b", image_shape=(4, 5, 3)), {"image_shape": (4, 5, 3)}),
        ("text:a", pairs.Config(min_count=1), {"tokens": "characters"}),
        ("captions:a", folder.Config(path="b"), {"image_shape": (28, 28, 1)}),
        ("fashion_mnist", mnist.Config(), {"name": "fashion_mnist"}),
        ("digits", text.Config(window=7), {}),
    ],
)
def test_like_copies_common_allowed_settings(name, like, expected):
    found = data.parse(name, like=like)
    assert {field: getattr(found, field) for field in expected} == expected
    assert str(found) == name


def test_settings_of_load_data_are_those_of_the_kind():
    assert load_data("topics", window=7).splits["train"]["inputs"].shape[1] == 7
    assert load_data(text.Config(corpus="topics", window=7), window=9).source == text.Config(
        corpus="topics", window=9
    )
    with pytest.raises(ValueError, match=r"^data digits: no setting 'image_shape'; it has none$"):
        load_data("digits", image_shape=(8, 8, 1))
    with pytest.raises(
        ValueError,
        match=r"^data topics: no setting 'subwords'; it has corpus, path, tokens, window, "
        r"min_count$",
    ):
        load_data("topics", subwords=7)
    with pytest.raises(ValueError, match=r"^data\.window=0, allowed: a positive integer$"):
        load_data("topics", window=0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: text.Config(corpus="brown", path="a"),
            r"data\.path='a', allowed with data\.corpus='brown': ''",
        ),
        (
            lambda: pairs.Config(corpus="multi30k-en-fr", source="a"),
            r"data\.source='a', allowed with data\.corpus='multi30k-en-fr'",
        ),
        (
            lambda: pairs.Config(corpus="europarl"),
            r"data\.corpus='europarl', allowed: numbers-en-fr .*, multi30k-en-fr",
        ),
        (lambda: text.Config(corpus="ptb"), r"data\.corpus='ptb', allowed: "),  # pyright: ignore[reportArgumentType]
        (
            lambda: mnist.Config(name="kmnist"),  # pyright: ignore
            r"data\.name='kmnist', allowed: mnist, fashion_mnist",
        ),
        (
            lambda: folder.Config(image_shape=(4, 5)),  # pyright: ignore
            r"data\.image_shape=\(4, 5\), allowed: a tuple of 3",
        ),
        (
            lambda: scenes.Config(language="fr"),
            r"data\.language='fr', allowed without data\.path: en",
        ),
        (lambda: scenes.Config(count=0), r"data\.count=0, allowed: a positive integer"),
        (lambda: captions.Config(max_length=0), r"data\.max_length=0, allowed: a positive integer"),
    ],
)
def test_invalid_settings_are_named(make, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        make()


@pytest.mark.parametrize("kind", ["npz", "folder", "fsdd", "text", "masks", "captions", "pairs"])
def test_without_a_path_nothing_is_read(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data\.path='', allowed: a file or folder"):
        load_data(KINDS[kind].Config())


def test_datasets_know_their_source():
    source = text.Config(corpus="topics", window=9)
    assert load_data(source).source == source
    assert load_data("digits").source == digits.Config()
    assert data.load(digits.Config(), Finder()).fingerprint == load_data("digits").fingerprint


def test_in_memory_data_cannot_be_reloaded():
    with pytest.raises(
        DataError,
        match="data 'mine': arrays in memory, which are gone; npz:FILE reads them from a file",
    ):
        load_data(data.arrays.Config(name="mine"))
    assert "arrays" not in forms()


def test_recipes_take_a_config_or_its_one_word():
    model = RECIPES["mlp-digits"].model
    assert Recipe(name="mine", model=model, data="text:a").data == text.Config(path="a")
    with pytest.raises(ValueError, match=r"recipe mine: data=7, allowed: a Config of train\.data"):
        Recipe(name="mine", model=model, data=7)
    with pytest.raises(DataError, match="did you mean 'mnist'"):
        Recipe(name="mine", model=model, data="mnits")


# ---------------------------------------------------------------- command line


def said(capsys, *arguments: str) -> tuple[int, str, str]:
    try:
        status = main(list(arguments))
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return status, captured.out, captured.err


OF_KINDS = {
    "mlp-digits": digits.Config,
    "rnnlm-brown": text.Config,
    "numbers-en-fr": pairs.Config,
    "captions-flickr8k": captions.Config,
    "pixels-digits": pixels.Config,
    "pixels-voc": masks.Config,
}


def data_options(shown: str) -> set[str]:
    """Except the negations of flags."""
    return {
        each
        for each in re.findall(r"--data\.[a-z-]*[a-z]", shown)
        if not each.startswith("--data.no-")
    }


def options_of(config: type[Source]) -> set[str]:
    return {f"--data.{field.name}".replace("_", "-") for field in dataclasses.fields(config)}


@pytest.mark.parametrize("recipe", OF_KINDS)
def test_help_shows_the_settings_of_the_recipes_own_kind(capsys, recipe):
    assert isinstance(RECIPES[recipe].data, OF_KINDS[recipe])
    status, shown, _ = said(capsys, recipe, "--help")
    assert status == 0
    assert data_options(shown) == options_of(OF_KINDS[recipe])
    assert all(form.shown in shown for form in forms().values())
    for name in ("text:a", "folder:a"):
        status, shown, _ = said(capsys, recipe, "--data", name, "--help")
        assert status == 0
        assert data_options(shown) == options_of(type(data.parse(name)))


@pytest.mark.parametrize(
    ("recipe", "arguments", "expected"),
    [
        (
            "rnnlm-brown",
            ["--data", "text:a"],
            text.Config(path="a", tokens="words", window=35, min_count=4),
        ),
        (
            "rnnlm-brown",
            ["--data=text:a"],
            text.Config(path="a", tokens="words", window=35, min_count=4),
        ),
        (
            "rnnlm-brown",
            ["--data.window", "5", "--data", "text:a"],
            text.Config(path="a", tokens="words", window=5, min_count=4),
        ),
        (
            "rnnlm-brown",
            ["--data.window", "5"],
            text.Config(corpus="brown", tokens="words", window=5, min_count=4),
        ),
        ("rnnlm-topics", ["--data", "brown"], text.Config(corpus="brown")),
        (
            "numbers-en-fr",
            ["--data", "pairs:a,b"],
            pairs.Config(source="a", target="b", tokens="words", buckets=3),
        ),
        (
            "multi30k-en-fr",
            ["--data", "pairs:a,b"],
            pairs.Config(source="a", target="b", subwords=6000),
        ),
        (
            "mlp-digits",
            ["--data", "folder:a", "--data.image-shape", "8", "8", "1"],
            folder.Config(path="a", image_shape=(8, 8, 1)),
        ),
        (
            "multi30k-en-fr",
            ["--data.tokens", "words"],
            pairs.Config(corpus="multi30k-en-fr", tokens="words", subwords=6000),
        ),
        ("mlp-digits", ["--data", "folder:a"], folder.Config(path="a")),
        ("mlp-tanh500", ["--data", "fashion_mnist"], mnist.Config(name="fashion_mnist")),
        (
            "captions-digits",
            ["--data", "captions:a", "--data.tokens", "words"],
            captions.Config(path="a", tokens="words"),
        ),
        ("pixels-voc", ["--data", "masks:a"], masks.Config(path="a", image_shape=(512, 512, 3))),
        ("pixels-voc", ["--data", "masks:a", "--data.image-shape", "None"], masks.Config(path="a")),
        ("dbn-digits", ["--data", "npz:a"], npz.Config(path="a")),
    ],
)
def test_data_of_another_kind_keep_the_settings_of_the_recipe(recipe, arguments, expected):
    found, _ = parse(RECIPES[recipe], arguments)
    assert [stage.data for stage in found.stages] == [expected] * len(found.stages)
    assert parse(RECIPES[recipe], [])[0] == RECIPES[recipe]


def test_settings_return_with_their_kind(capsys):
    status, _, error = said(capsys, "mlp-digits", "--data.window", "5")
    assert status == 2
    assert "--data.window" in error
    for arguments in (["--data"], ["--data", "--quiet"], ["--data="]):
        status, out, error = said(capsys, "mlp-digits", *arguments)
        assert (status, out) == (2, "")
        assert error == "error: --data: no value, allowed: a kind of data such as folder:DIR\n"


@pytest.mark.parametrize(
    ("option", "now"),
    [
        ("--text.window", "--data.window"),
        ("--text.min-count", "--data.min-count"),
        ("--pairs.subwords", "--data.subwords"),
        ("--pairs.on-bad", "--data.on-bad"),
        ("--image-shape", "--data.image-shape"),
    ],
)
def test_renamed_options_name_their_replacement(capsys, option, now):
    for arguments in ([option, "7"], [f"{option}=7"], ["--seed", "1", option, "7", "--quiet"]):
        assert said(capsys, "rnnlm-brown", *arguments) == (2, "", f"error: {option} is {now} now\n")


@pytest.mark.parametrize("name", ["folder", "masks"])
def test_images_of_several_sizes_name_the_option(name, tmp_path):
    from PIL import Image

    for index in range(6):
        for place in ("images", "masks"):
            (tmp_path / place).mkdir(exist_ok=True)
            Image.new("L", (8 + index % 2, 6), index % 2).save(
                tmp_path / place / f"{index}-{place[0]}.png"
            )
            Image.new("L", (8 + index % 2, 6), index % 2).save(tmp_path / place / f"{index}.png")
    for file in tmp_path.glob("*/*-*.png"):
        if name == "masks" or file.parent.name == "images":
            file.unlink()
    with pytest.raises(
        DataError,
        match=r"images of 2 sizes, such as 6x8 and 6x9; .* such as --data\.image-shape 6 8 1$",
    ):
        load_data(f"{name}:{tmp_path}")


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("RGB", 3), ("P", 3), ("RGBA", 3), ("LA", 3)]
)
def test_images_of_one_size_need_no_shape(mode, channels, tmp_path):
    from PIL import Image

    for index in range(12):
        (tmp_path / "ab"[index % 2]).mkdir(exist_ok=True)
        Image.new("L", (8, 6), index).convert(mode).save(
            tmp_path / "ab"[index % 2] / f"{index}.png"
        )
    assert load_data(f"folder:{tmp_path}").splits["train"]["inputs"].shape == (10, 6, 8, channels)


# ---------------------------------------------------------------- documents


def test_the_table_of_data_in_the_documents_has_every_form():
    part = TRAINING[TRAINING.index("\n## Data\n") : TRAINING.index("\n### ")]
    rows = [
        re.split(r" \| ", line.strip("| ")) for line in part.splitlines() if line.startswith("| `")
    ]
    listed = {shown.strip("`"): about for shown, about, *_ in rows}
    assert list(listed) == [form.shown for form in forms().values()]
    for form in forms().values():
        assert listed[form.shown].startswith(form.about)


def test_sentences_are_read_equally_in_both_kinds():
    shared = {field.name for field in dataclasses.fields(Sentences)}
    assert shared < settings_of(pairs.Config())
    assert shared < settings_of(captions.Config())
