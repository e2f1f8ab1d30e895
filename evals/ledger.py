"""The ledger: what every recipe was measured to reach, in ``results.json`` beside this file.

    python -m evals.ledger                     prints it, with what is not measured yet
    python -m evals.ledger add RUN_DIR ...     merges evaluated runs, one seed each, into their recipe's rows
    python -m evals.ledger markdown README.md  writes the table between the markers of a document; --check only compares

It is the only source of numbers in the documents, also of how many published results are reached ("9 of 12 published results"),
which ``markdown`` rewrites wherever a document says it.  A row belongs to one recipe and one metric among its targets:

    recipe, metric
    published, published_kind       "result": the source reports it; "bound": its tests assert less; null where there is none
    reached                         whether the median is at least as good as published (below a bound); null where there is none
    value, spread                   median over seeds, [least, greatest]
    seeds, values, times            aligned: the measured value and the training seconds of each seed
    command                         repeats it, with the recipe's own seed
    seconds                         median training seconds
    hardware, date, version         of the newest of its runs; version is purezoo's
"""

if __name__ == "__main__":  # before what takes seconds to import
    import sys

    from train.entry import run

    sys.exit(run("evals.ledger"))

import dataclasses
import json
import pathlib
import re
import shlex
import statistics
import sys
from typing import Annotated, Any

import tyro

from train import entry

RESULTS = pathlib.Path(__file__).with_name("results.json")
BEGIN, END = "<!-- ledger:begin -->", "<!-- ledger:end -->"
CLAIM = re.compile(r"\d+ of \d+ published results")
Row = dict[str, Any]


class LedgerError(ValueError):
    """A run that cannot enter the ledger, or a document without its markers: says which and why."""


@dataclasses.dataclass(frozen=True)
class Show:
    """Prints the ledger, with the recipes that have no result yet."""

    file: pathlib.Path = RESULTS
    """The ledger's file."""


@dataclasses.dataclass(frozen=True)
class Add:
    """Merges evaluated runs into the ledger, one seed each; a seed that is there already is replaced."""

    run_dirs: Annotated[
        tuple[pathlib.Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN_DIR [RUN_DIR ...]"),
    ]
    """Complete runs of registered recipes, which python -m evals has measured."""
    file: pathlib.Path = RESULTS
    """The ledger's file."""


@dataclasses.dataclass(frozen=True)
class Markdown:
    """Rewrites the table between a document's markers <!-- ledger:begin --> and <!-- ledger:end -->, and counts of results."""

    document: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="DOCUMENT")] = (
        pathlib.Path("README.md")
    )
    """A Markdown file."""
    check: bool = False
    """Only compare: status 1 when the document is not up to date."""
    file: pathlib.Path = RESULTS
    """The ledger's file."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 an error or a difference, 2 a wrong command line."""
    command = tyro.cli(
        Show | Add | Markdown, default=Show(), prog=entry.program("evals.ledger"), args=arguments
    )  # pyright: ignore
    from train.engine.run_folder import RunError

    try:
        match command:
            case Add((), _):
                raise LedgerError("add: no RUN_DIR, allowed: one or more")
            case Add(run_dirs, file):
                for run_dir in run_dirs:
                    print("\n".join(add(run_dir, file)))
            case Markdown(document, check, file):
                return write_markdown(document, read(file), check)
            case Show(file):
                show(read(file))
    except (LedgerError, RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def read(file: pathlib.Path = RESULTS) -> list[Row]:
    """The rows of a ledger's file.  Raises LedgerError naming the file when it is none."""
    try:
        rows = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise LedgerError(f"{file}: unreadable: {error}") from error
    if not isinstance(rows, list):
        raise LedgerError(f"{file}: expected a JSON list")
    return rows


def add(run_dir: pathlib.Path, file: pathlib.Path = RESULTS) -> list[str]:
    """Merges a run's evaluation into the ledger's file; returns what it did, a line for each metric.

    Raises LedgerError unless the run is complete, a registered recipe's but for the seed, and evaluated at its best checkpoint;
    RunError if this is no run folder.
    """
    from train.engine.run_folder import write_text
    from train.recipes import RECIPES

    evaluation = check(run_dir)
    recipe = RECIPES[evaluation["recipe"]]
    rows = {(row["recipe"], row["metric"]): row for row in read(file)}
    said = []
    for target in recipe.targets:
        key = (recipe.name, target.metric)
        if target.metric not in evaluation["metrics"]:
            raise LedgerError(
                f"{run_dir}: eval.json has no {target.metric!r}; it has {', '.join(evaluation['metrics'])}"
            )
        earlier = rows.get(key)
        rows[key] = row = merge(earlier, recipe.name, target, evaluation)
        replaced = (
            " (replaces an earlier run)"
            if earlier and evaluation["seed"] in earlier["seeds"]
            else ""
        )
        value = _number(target.metric, evaluation["metrics"][target.metric])
        said.append(
            f"{recipe.name}, {target.metric}: seed {evaluation['seed']} {value}{replaced}; now {_value(row)}"
        )
    order = list(RECIPES)
    ordered = sorted(
        rows.values(),
        key=lambda row: order.index(row["recipe"]) if row["recipe"] in order else len(order),
    )
    write_text(file, _dumps(ordered))
    return said


def check(run_dir: pathlib.Path) -> dict[str, Any]:
    """eval.json of a run that may enter the ledger; raises like ``add`` for any other."""
    from evals.evaluation import FORMAT
    from train.engine.run_folder import RunFolder, differences, read_json
    from train.recipe import to_dict, written_out
    from train.recipes import RECIPES

    folder = RunFolder.open(run_dir)
    recipe = folder.recipe()
    if recipe.name not in RECIPES:
        raise LedgerError(f"{run_dir}: {recipe.name!r} is not a registered recipe")
    registered = dataclasses.replace(RECIPES[recipe.name], seed=recipe.seed)
    if not registered.targets:
        raise LedgerError(f"{run_dir}: recipe {recipe.name} has no targets, so no metric to enter")
    changed = list(
        differences(
            {"recipe": to_dict(written_out(recipe))}, {"recipe": to_dict(written_out(registered))}
        )
    )
    if changed:
        raise LedgerError(
            f"{run_dir}: not recipe {recipe.name} as registered (here): {'; '.join(changed)}"
        )
    if not folder.summary.exists():
        again = f"{entry.program('train')} {shlex.join([recipe.name, '--out', str(run_dir)])}"
        raise LedgerError(f"{run_dir}: the run is not complete; {again} resumes it")
    measure = f"{entry.program('evals')} {shlex.quote(str(run_dir))}"
    if not (folder.path / "eval.json").exists():
        raise LedgerError(f"{run_dir}: not evaluated yet; first {measure}")
    evaluation = read_json(folder.path / "eval.json")
    expected = {
        "format": FORMAT,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "step": read_json(folder.summary)["best_step"],
    }
    stale = [
        f"{key} {evaluation.get(key)}, the run {value}"
        for key, value in expected.items()
        if evaluation.get(key) != value
    ]
    if stale or not evaluation["training"]["complete"]:
        why = "; ".join(stale) or "it was not complete yet"
        raise LedgerError(
            f"{run_dir}: eval.json does not belong to this run as it is: {why}; again: {measure}"
        )
    return evaluation


def merge(row: Row | None, recipe: str, target: Any, evaluation: dict[str, Any]) -> Row:
    """The row (None: a new one) with one more seed."""
    runs = (
        {}
        if row is None
        else dict(zip(row["seeds"], zip(row["values"], row["times"], strict=True), strict=True))
    )
    trained = evaluation["training"]
    runs[evaluation["seed"]] = (round(evaluation["metrics"][target.metric], 6), trained["seconds"])
    seeds = sorted(runs)
    values, times = ([runs[seed][part] for seed in seeds] for part in (0, 1))
    value = round(statistics.median(values), 6)
    newest = {
        "hardware": trained["hardware"],
        "date": trained["date"],
        "version": trained["versions"]["purezoo"],
    }
    if row is not None and row["date"] > newest["date"]:
        newest = {key: row[key] for key in newest}
    return {
        "recipe": recipe,
        "metric": target.metric,
        "published": target.published,
        "published_kind": None if target.published is None else target.published_kind,
        "reached": target.as_published(value),
        "value": value,
        "spread": [min(values), max(values)],
        "seeds": seeds,
        "values": values,
        "times": times,
        "command": f"python -m train {recipe} && python -m evals runs/{recipe}",
        "seconds": round(statistics.median(times), 2),
        **newest,
    }


def show(rows: list[Row]) -> None:
    """Prints a table of the rows, and of the registered recipes that have none."""
    from rich.console import Console
    from rich.table import Table

    from evals.metrics import reached
    from train.recipes import RECIPES

    columns = (
        "recipe",
        "metric",
        "published",
        "measured",
        "reached",
        "seeds",
        "expected",
        "",
        "time",
    )
    table = Table(*columns, box=None, pad_edge=False)
    measured = {(row["recipe"], row["metric"]): row for row in rows}
    targets = {
        (recipe.name, target.metric): target
        for recipe in RECIPES.values()
        for target in recipe.targets
    }
    for key in [*targets, *(key for key in measured if key not in targets)]:
        row, target = measured.get(key), targets.get(key)
        bound = "" if target is None else _bound(target)
        published = (row or {"published": None}) if target is None else dataclasses.asdict(target)
        cells = [*key, _published(published)]
        if row is None:
            table.add_row(*cells, "[dim]not measured[/dim]", "", "", bound, "", "")
            continue
        verdict = "ok" if bound else ""
        if target is None:
            verdict = "not registered"
        elif not reached(target, row["value"]):
            verdict = "[red]missed[/red]"
        found = row["reached"] if target is None else target.as_published(row["value"])
        cells += [_value(row), _REACHED[found].replace("**no**", "[red]no[/red]")]
        table.add_row(*cells, str(len(row["seeds"])), bound, verdict, _time(row["seconds"]))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    results, bounds = _counts(rows)
    print(f"{results} published results and {bounds} bounds that their tests assert are reached")


def markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table, with how to repeat them."""
    lines = ["| recipe | metric | published | measured | reached | seeds | time |"]
    lines.append("| --- | --- | ---: | ---: | :---: | ---: | ---: |")
    for row in rows:
        cells = [
            f"`{row['recipe']}`",
            row["metric"],
            _published(row),
            _value(row),
            _REACHED[row["reached"]],
        ]
        cells += [str(len(row["seeds"])), _time(row["seconds"])]
        lines.append("| " + " | ".join(cells) + " |")
    if not rows:
        return "Nothing is measured yet."
    example = rows[0]["command"].replace(rows[0]["recipe"], "RECIPE")
    made = sorted({f"{row['hardware']}, purezoo {row['version']}" for row in rows})
    results, bounds = _counts(rows)
    return "\n".join(
        [
            *lines,
            "",
            "Published: what the source reports; `< 8`: a bound that the source's tests assert.  Measured: median over seeds",
            "(least to greatest).  Reached: whether the median is at least as good as what is published;",
            f"{results} results and {bounds} bounds are.  Time: of one training.  Measured on {'; '.join(made)}.",
            "",
            f"`{example}` repeats a row; `--seed` and `--out` give other seeds.",
        ]
    )


def count(rows: list[Row], kind: str) -> tuple[int, int]:
    """How many published numbers of a kind, "result" or "bound", are reached, and how many there are."""
    verdicts = [row["reached"] for row in rows if row["published_kind"] == kind]
    return verdicts.count(True), len(verdicts)


def _counts(rows: list[Row]) -> tuple[str, str]:
    """How many results and bounds are reached: "9 of 12", "8 of 8"."""
    results, bounds = (" of ".join(map(str, count(rows, kind))) for kind in ("result", "bound"))
    return results, bounds


def claim(rows: list[Row]) -> str:
    """What README and the package's description say: "9 of 12 published results"."""
    return f"{_counts(rows)[0]} published results"


def write_markdown(document: pathlib.Path, rows: list[Row], check: bool = False) -> int:
    """Puts the table between a document's markers and ``claim`` wherever it is made, or with ``check`` only compares: 1 when it
    differs.

    Raises LedgerError when the markers are missing.
    """
    from train.engine.run_folder import write_text

    text = document.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise LedgerError(f"{document}: no lines {BEGIN} and {END}, between which the table goes")
    before, after = (CLAIM.sub(claim(rows), part) for part in (before, after))
    wanted = f"{before}{BEGIN}\n{markdown(rows)}\n{END}{after}"
    if wanted == text:
        print(f"{document}: up to date")
    elif check:
        rewrite = f"{entry.program('evals.ledger')} markdown {shlex.quote(str(document))}"
        print(f"{document}: says other numbers than the ledger; {rewrite} rewrites it")
        return 1
    else:
        write_text(document, wanted)
        print(f"{document}: rewritten")
    return 0


def _dumps(rows: list[Row]) -> str:
    """JSON with one line for each key, lists too, so that a difference of two versions can be read."""
    objects = [
        ",\n".join(f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in row.items())
        for row in rows
    ]
    return "[\n" + ",\n".join(f"  {{\n{lines}\n  }}" for lines in objects) + "\n]\n"


_REACHED = {True: "yes", False: "**no**", None: ""}


def _published(row: Row) -> str:
    """The published number of a row, or of a target's fields: "1.65", of a bound "< 8"."""
    if row["published"] is None:
        return ""
    return f"{'< ' if row['published_kind'] == 'bound' else ''}{row['published']:g}"


def _value(row: Row) -> str:
    shown = [_number(row["metric"], value) for value in (row["value"], *row["spread"])]
    return shown[0] + (f" ({shown[1]} to {shown[2]})" if len(row["seeds"]) > 1 else "")


def _number(metric: str, value: float) -> str:
    return f"{value:.2f}" if metric.endswith("%") else f"{value:.4g}"


def _bound(target: Any) -> str:
    parts = [("<=", target.at_most), (">=", target.at_least)]
    return " ".join(f"{sign} {bound:g}" for sign, bound in parts if bound is not None)


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
