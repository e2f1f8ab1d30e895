"""Imports run one way, zoo <- train <- evals, without cycles."""

import ast
import graphlib
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("zoo", "train", "evals")


def graph():
    """{module: the modules that it imports, inside functions too}.

    The packages' own __init__ files only name their members, and are left out.
    """
    files = {}
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            if file.name != "__init__.py":
                files[".".join(file.relative_to(ROOT).with_suffix("").parts)] = file
    imports = {}
    for name, file in files.items():
        imported = set()
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.level == 0, f"{file}: a relative import"
                imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
        imports[name] = {module for module in imported if module in files} - {name}
    return imports


def test_no_import_cycles():
    imports = graph()
    assert len(imports) > 100
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError that shows the circle


def test_packages_import_only_those_below_them():
    for name, imported in graph().items():
        allowed = PACKAGES[: PACKAGES.index(name.split(".")[0]) + 1]
        assert {module.split(".")[0] for module in imported} <= set(allowed), name
