"""Commands for runs (`endofm-lab compare`, `benchmark`, `paper-table`, `score`) and models (`endofm-lab models`)."""

from pathlib import Path
from typing import Any

from tqdm import tqdm

from endofm_lab.benchmarking.config import read_benchmark
from endofm_lab.benchmarking.page import not_ranked, task_table
from endofm_lab.benchmarking.plan import Plan
from endofm_lab.benchmarking.run import benchmark as benchmarking
from endofm_lab.benchmarking.run import plan_facts
from endofm_lab.cli.command import Output, command
from endofm_lab.cli.train import record_text
from endofm_lab.figures.comparison import intervals
from endofm_lab.figures.export import FigureFormat, export_all
from endofm_lab.folders.provenance import provenance
from endofm_lab.metrics.capsule_vision import read_probabilities, score_files, write_submission
from endofm_lab.models import building, fetch, publishing, shelf
from endofm_lab.models.recipe import list_model_recipes
from endofm_lab.reports.comparison import rows, summary, write_comparison, write_paper_table
from endofm_lab.runs import paper_table as published
from endofm_lab.runs.compare import compare as compare_runs
from endofm_lab.runs.run import find_runs, read_run
from endofm_lab.runs.tables import TableFormat, markdown_table, with_provenance


@command(positional=("runs",))
def compare(
    runs: tuple[Path, ...],
    output: Output,
    out: Path | None = None,
    by: str | None = None,
    figures: Path | None = None,
    figure_format: FigureFormat = "html",
    table_format: TableFormat = "markdown",
) -> None:
    """Compare finished runs in one table with intervals over patients and a paired test, ranked only if that is fair.

    Runs whose test sets or protocols differ are shown in the given order without ranks, and the reasons are printed.
    The folder contains comparison.md, .csv, .tex, .html and .json; without --out nothing is written. The provenance of
    the table is below it; that of the CSV table, which stays machine-readable, is in comparison.json.

    Args:
        runs: folders with report.json and predictions.parquet.
        by: metric to rank by; by default the usual metric of the task, such as f1, dice, ap50 or jaccard.
        table_format: format of the printed table: markdown, csv, or latex for the LaTeX package booktabs.
    """
    comparison = compare_runs([read_run(folder) for folder in runs], by)
    paths = [] if out is None else write_comparison(comparison, out)
    if figures is not None:
        charts = {f"intervals of {name}": intervals(comparison, name) for name in comparison.lines[0].metrics}
        paths += export_all(charts, figures, figure_format)
    facts = {**summary(comparison), "runs": rows(comparison.table()), "provenance": provenance()}
    output.result({**facts, "written": paths})
    output.say(with_provenance(comparison.text(table_format), table_format))
    if paths:
        output.written(*paths)


@command(positional=("file",))
def benchmark(
    file: Path,
    out: Path,
    output: Output,
    add: tuple[Path, ...] = (),
    dry_run: bool = False,
    device: str = "auto",
    workers: int = 0,
) -> None:
    """Compare encoders on tasks with methods and label budgets, all named in one YAML file (docs/benchmark.md).

    The folder contains a run for every cell, benchmark.json, benchmark.csv and benchmark.html. The same command
    continues a benchmark that was stopped; finished cells are not computed again.

    Args:
        file: the YAML file.
        add: folders of finished runs or of other benchmarks, whose runs join the table if they were tested on the same
            rows.
        dry_run: read and check everything, print the audits and the cells, and write nothing.
    """
    if dry_run:
        planned = plan_facts(Plan.of(read_benchmark(file)), out)
        output.say(*_plan_lines(planned), *planned["cells"])
        output.result(planned)
        return
    result: dict[str, Any] = {}
    for record in benchmarking(file, out, add=add, device=device, workers=workers):
        result = record.get("result", {})
        output.say(*_benchmark_lines(record))
    output.result({"out": out, **result})
    for name, facts in result["tasks"].items():
        table = task_table([row for row in result["rows"] if row["task"] == name])
        cells = [[str(cell) for cell in row] for row in table.to_numpy().tolist()]
        output.say(f"\n{name}", markdown_table(list(map(str, table)), cells), *not_ranked(facts))
    output.written(out / "benchmark.html")


def _plan_lines(plan: dict[str, Any]) -> list[str]:
    """Tasks with their audits, and the number of cells, as lines for people."""
    lines = []
    for name, facts in plan["tasks"].items():
        training = "; ".join(f"{budget}: {part['words']}" for budget, part in facts["training"].items())
        lines += [f"Task {name}: tested on {facts['test']['words']}, trained on {training}. Audit: {facts['audit']}"]
    return [*lines, f"{len(plan['cells'])} cells, of which {len(plan['done'])} are done"]


def _benchmark_lines(record: dict[str, Any]) -> list[str]:
    """A record of a benchmark as lines for people; nothing for single steps."""
    if "plan" in record:
        return _plan_lines(record["plan"])
    if "features" in record and record["done"] == record["rows"]:
        return [f"Features of {record['features']}: {record['rows']:,} clips"]
    if "test" in record:
        metric, value = next(iter(record["test"].items()))
        return [f"{record['cell']}: seed {record['seed']}, {metric} {value:.3f}"]
    return [f"Degraded: {record['degraded']}"] if "degraded" in record else []


@command()
def paper_table(
    output: Output, runs: Path = Path("runs"), out: Path | None = None, table_format: TableFormat = "markdown"
) -> None:
    """Show the published results next to your own runs, with differences between the protocols marked.

    The folder contains paper_table.md, .csv, .tex and .json; without --out nothing is written.

    Args:
        runs: folder that is searched for finished runs.
        table_format: format of the table: markdown, csv with one row per value, or latex with the package booktabs.
    """
    own_runs, problems = find_runs(runs)
    table = published.paper_table(own_runs, table_format)
    paths = [] if out is None else write_paper_table(own_runs, out)
    facts = {"table": table, "values": rows(published.paper_values(own_runs)), "left_out": problems}
    output.result({**facts, "provenance": provenance(), "written": paths})
    output.say(with_provenance(table, table_format), *(f"Left out: {problem}" for problem in problems))
    if paths:
        output.written(*paths)


@command()
def capsule_vision(labels: Path, probabilities: Path, output: Output, submission: Path | None = None) -> None:
    """Score a Capsule Vision 2024 submission after checking it for mistakes that would make the score wrong.

    Args:
        labels: table with the columns image and class (CSV or XLSX).
        probabilities: table with an image column and ten probability columns (CSV or XLSX).
        submission: also write the checked probabilities as a submission (.xlsx or .csv) to this path.
    """
    result = score_files(labels, probabilities)
    if submission is not None:
        table = read_probabilities(probabilities)
        write_submission(submission, [str(name) for name in table.index], table.to_numpy())
    output.result(result)
    output.say(_score_text(result))


def _score_text(result: dict) -> str:
    """The scores as aligned text."""
    lines = [f"{name:<22}{_number(value):>8}" for name, value in result.items() if name != "class_wise_metrics"]
    classes = result["class_wise_metrics"]
    keys = list(next(iter(classes.values())))
    lines += ["", f"{'class (p >= 0.5)':<22}" + "".join(f"{key:>12}" for key in keys)]
    lines += [f"{name:<22}" + "".join(f"{_number(row[key]):>12}" for key in keys) for name, row in classes.items()]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


SCORE = {"capsule-vision": capsule_vision}


@command()
def list_models(output: Output) -> None:
    """List the models of this machine by name, and those that can be built, with their state."""
    entries = shelf.list_models()
    output.result([entry.to_json() for entry in entries])
    for entry in entries:
        output.say(f"{entry.name:<20} {entry.task:<15} {entry.state:<15} {entry.about}")


@command(positional=("name",))
def show_model(name: str, output: Output) -> None:
    """Print a model's recipe: data and its licence, training, expected numbers, intended use, limits and state.

    Args:
        name: name of a model recipe or of a built model.
    """
    text, recipes = shelf.show(name), {recipe.name: recipe.facts for recipe in list_model_recipes()}
    output.result({"state": shelf.state_of(shelf.folder_of(name)), "recipe": recipes.get(name), "text": text})
    output.say(text)


@command(building.build, positional=("name",))
def build_model(name: str, settings: dict[str, Any], output: Output) -> None:
    """Turn a public data set into a calibrated model with a card, tested once on its held-out part.

    The same command continues a build that was stopped. The model is then known by its name everywhere.

    Args:
        name: name of a model recipe, or path of one.
    """
    for record in building.build(name, **settings):
        if "stage" in record:
            output.say(f"{record['stage'].capitalize()}: {record['words']}")
        elif "built" in record:
            built = record["built"]
            output.say("", *built["expected"])
            output.result(built)
            output.written(built["out"])
        elif lines := record_text(record):
            output.say(*lines)


@command(positional=("name",))
def get_model(name: str, output: Output, agree: bool = False) -> None:
    """Fetch a model, or the initial weights of a recipe, from the Hugging Face Hub, after its licence was agreed to.

    Without --agree nothing is fetched, and source, size, licence and SHA-256 are shown. The same command continues a
    download that was stopped.

    Args:
        name: hf://OWNER/NAME, or the name of a model recipe.
        agree: the licence is agreed to.
    """
    with tqdm(unit="B", unit_scale=True, disable=not output.progress) as bar:
        for done, total in fetch.get(name, agree):
            bar.total, bar.n = total, done
            bar.refresh()
    output.result({"out": fetch.folder_with(name)})
    output.say(f"Fetched to {fetch.folder_with(name)}.")


@command(publishing.publish, positional=("name",))
def publish(name: str, out: Path, settings: dict[str, Any], output: Output) -> None:
    """Write a model with a page in the Hugging Face Hub's format into a folder; nothing is uploaded.

    Args:
        name: name or folder of a model.
    """
    folder = publishing.publish(name, out, **settings)
    output.result({"out": folder})
    output.written(folder)


MODELS = {"list": list_models, "show": show_model, "build": build_model, "get": get_model, "publish": publish}
