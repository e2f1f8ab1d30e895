"""Runs the documents' Python blocks and parses their commands."""

import pathlib
import re
import shlex

import pytest

import train.__main__
from train.recipes import FAMILIES, RECIPES

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{document.name}-{number}")
    for document in DOCUMENTS
    for number, block in enumerate(
        re.findall(r"<!-- run -->\n```python\n(.*?)```", document.read_text(), re.S)
    )
]
COMMANDS = sorted(
    {
        match.strip()
        for document in DOCUMENTS
        for match in re.findall(
            r"(?:python -m train|zoo-train) ([a-z][^#`\n]*?)(?:  |`|$|, | &&|; )",
            document.read_text(),
            re.M,
        )
    }
)


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(compile(block, "block", "exec"), scope)
    if "accuracy" in scope:
        assert scope["accuracy"] > 0.6
        assert scope["logits"].shape == (5, 10)


def test_documents_contain_python_blocks_and_commands():
    assert len(BLOCKS) >= 2
    assert len(COMMANDS) >= 2


def _names_a_recipe(command):
    """Commands with a real recipe, without --help."""
    name, *options = shlex.split(command)
    return not name.isupper() and "--help" not in options


@pytest.mark.parametrize("command", [command for command in COMMANDS if _names_a_recipe(command)])
def test_train_commands_parse(command):
    name, *options = shlex.split(command)
    assert name in RECIPES
    train.__main__.parse(RECIPES[name], options)


def test_the_readme_has_no_image_that_a_package_page_could_not_show():
    assert re.findall(r"!\[[^\]]*\]\((?!https://)", (ROOT / "README.md").read_text()) == []


def test_links_resolve():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_recipes_are_explained_where_they_are_defined():
    explained = "".join(family.__doc__ or "" for family in FAMILIES)
    for name in RECIPES:
        assert name in explained or name.startswith(
            ("mlp-toolbox-", "convnet-tdnn-without-", "rbm20-", "rbm500-")
        )
