"""The report as files: ``report.json``, ``report.md``, and a self-contained page."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tgate_batch.errors import printable
from tgate_batch.output import layout, seal
from tgate_batch.output.run import Run, describe
from tgate_batch.render.timing import BESIDE, ON_DEVICE
from tgate_batch.report import result_table
from tgate_batch.report.columns import ArmFigures
from tgate_batch.report.gallery import galleries
from tgate_batch.report.plots import plots
from tgate_batch.report.plots.base import Plot, name_of
from tgate_batch.report.sections import ReportTable, cost_notes, notes, report_tables
from tgate_batch.report.summary import summarize
from tgate_batch.report.verdict import judge_arms, standing, verdicts

_MOST_ROWS = 200  # of a table, on the page


def write(run: Run) -> dict[str, Any]:
    """Writes ``report/`` from the scores on disk; returns the content of ``report.json``."""
    summary = summarize(run)
    run.folder.write(layout.REPORT_JSON, json.dumps(seal.with_seal(summary), indent=2))
    run.folder.write(layout.REPORT_MARKDOWN, seal.text_with_seal(_markdown(summary)))
    run.folder.write(layout.REPORT_PAGE, seal.text_with_seal(_html(run, summary)))
    return summary


def _markdown(summary: dict[str, Any]) -> str:
    arms = summary["arms"]
    lines = [f"# Run {summary['run']['output']}", ""]
    lines += [*(f"- {line}" for line in verdicts(summary)), ""]
    for table in report_tables(summary):
        lines += [f"## {table.title}", "", *result_table.markdown(table.rows).split("\n"), ""]
        lines += [table.note, ""] if table.note else []
    lines += [f"- {note}" for note in (*notes(arms), *cost_notes(summary))]
    for arm in summary["arms"]:
        for one in arm["thresholds"]:
            lines.append(f"- threshold: {arm['model']} {arm['arm']}: {one['verdict']}")
        for row in arm["error_rows"]:
            lines.append(
                f"- error: {arm['model']} {arm['arm']} prompt {row['prompt_id']}: {row['error']}"
            )
    return "".join(printable(line).replace("<", "\\<") + "\n" for line in lines)


def _html(run: Run, summary: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("tgate_batch.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    arms, script = summary["arms"], _text("page.js")
    config = describe(run)["config"]
    indices = {(arm["model"], arm["arm"]): index for index, arm in enumerate(arms)}
    return environment.get_template("page.html").render(
        run=summary["run"],
        arms=arms,
        names=[name_of(arm, arms) for arm in arms],
        verdicts=[(indices[each.model, each.arm], each) for each in judge_arms(summary)],
        judged_thresholds=_thresholds(arms),
        plots=_grouped(plots(summary)),
        report_tables=[_without_model(table, arms) for table in report_tables(summary)],
        most_rows=_MOST_ROWS,
        notes=[*notes(arms), *cost_notes(summary)],
        workers=summary["workers"],
        times=_times(summary["workers"]),
        galleries=galleries(run, arms),
        errors=_errors(arms),
        broken=[(name_of(arm, arms), arm) for arm in arms if arm["broken"]],
        settings=yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100),
        style=Markup(_text("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        standing=standing,
        svg=lambda drawing: Markup(_shown(drawing)),
        strong=_strong,
        indices=indices,
    )


def _shown(value: Any) -> Any:
    """Removes unprintable characters from a run's text; markup is unchanged."""
    return printable(value, keep="\n\t") if type(value) is str else value


def _strong(sentence: str) -> Markup:
    """Returns a verdict with its first figure, the speed, in bold."""
    figure = r"(?<= renders )[\d.,]+(?: \[[^\]]*\])?(?: times)?"
    return Markup(re.sub(figure, r"<strong>\g<0></strong>", str(escape(_shown(sentence))), count=1))


def _text(name: str) -> str:
    return resources.files("tgate_batch.report").joinpath(name).read_text(encoding="utf-8")


def _grouped(plots: Sequence[Plot]) -> list[list[Plot]]:
    """Groups the plots into cells: quality, then time, then one plot per cell."""
    quality = [plot for plot in plots if plot.name.startswith(("frontier-", "changed-"))]
    time = [plot for plot in plots if plot.name in ("stages", "whole")]
    others = [[plot] for plot in plots if plot not in quality and plot not in time]
    return [group for group in (quality, time, *others) if group]


def _without_model(table: ReportTable, arms: Sequence[ArmFigures]) -> ReportTable:
    """Drops the model column if all arms have the same model."""
    if len({arm["model"] for arm in arms}) > 1:
        return table
    index = table.rows[0].index("model")
    rows = [[*row[:index], *row[index + 1 :]] for row in table.rows]
    return table._replace(rows=rows, labels=table.labels - 1)


def _thresholds(arms: Sequence[ArmFigures]) -> list[tuple[str, dict[str, Any]]]:
    """Every threshold with its arm's name, failed ones first."""
    every = [(name_of(arm, arms), one) for arm in arms for one in arm["thresholds"]]
    order = ("failed", "undecided", "passed")
    return sorted(every, key=lambda item: order.index(standing(item[1])))


class ErrorKind(NamedTuple):
    """Failed rows of an arm with one kind of error: count, message and some prompt ids."""

    arm: str
    rows: int
    error: str
    prompts: list[str]
    more: bool


def _errors(arms: Sequence[ArmFigures]) -> list[ErrorKind]:
    errors = []
    for arm in arms:
        for kind in arm.get("error_kinds") or ():
            named = [row for row in arm["error_rows"] if row["error_kind"] == kind["kind"]]
            ids = list(dict.fromkeys(row["prompt_id"] for row in named))
            more = kind["rows"] > len(named)
            errors.append(ErrorKind(name_of(arm, arms), kind["rows"], kind["error"], ids, more))
    return errors


def _times(workers: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Stages in order, with their share of the workers' wall time."""
    if workers is None or not workers["seconds"]["wall"]:
        return []
    seconds = workers["seconds"]
    return [
        {"name": name, "seconds": seconds[name], "share": seconds[name] / seconds["wall"]}
        for name in (*ON_DEVICE, "idle", *BESIDE)
    ]
