"""The report's tables: one row an arm, for the terminal, Markdown and the page alike."""

from typing import Any

from rich.console import Console
from rich.table import Table


def _number(pattern: str):
    return lambda value: "–" if value is None else pattern.format(value)


def _distance(arm: dict[str, Any]) -> str:
    value = arm.get("fid") if arm.get("fid") is not None else arm.get("fd")
    return _number("{:.2f}")(value)


def _distance_interval(arm: dict[str, Any]) -> str:
    found = arm.get("distance_interval")
    return "–" if found is None else f"[{found['low']:.2f}, {found['high']:.2f}]"


def _distance_change(arm: dict[str, Any]) -> str:
    found = arm.get("distance_change")
    if found is None:
        return "–"
    return f"{found['value']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


def _infinite(arm: dict[str, Any]) -> str:
    found = arm.get("extrapolation")
    return "–" if found is None else f"{found['infinite']:.2f}"


def _kid(arm: dict[str, Any]) -> str:
    found = arm.get("kid")
    return "–" if found is None else f"{found['mean']:.4f} ± {found['spread']:.4f}"


def _paired(name: str, pattern: str):
    def show(arm: dict[str, Any]) -> str:
        if arm["is_baseline"]:
            return "–"
        return _number(pattern)((arm.get("paired") or {}).get(name))

    return show


def _accuracy(arm: dict[str, Any]) -> str:
    value = arm.get("prompt_accuracy")
    return "–" if value is None else f"{value:.1%}"


def _change(arm: dict[str, Any]) -> str:
    change = (arm.get("change") or {}).get("prompt_accuracy")
    if change is None:
        return "–"
    return f"{change['value']:+.1%} [{change['low']:+.1%}, {change['high']:+.1%}]"


def _column(key: str, pattern: str):
    show = _number(pattern)
    return lambda arm: show(arm.get(key))


def _macs(arm: dict[str, Any]) -> str:
    value = arm.get("macs_per_image_with_attention")
    if value is None:
        return "–"
    return f"{value / 1e12:.2f} T" if value >= 1e11 else f"{value / 1e9:.2f} G"


def _every(arms: list[dict[str, Any]]) -> list[tuple[str, Any, str]]:
    """(heading, function of an arm, the tables it stands in: speed, pictures, sets, brief)."""
    label = next((arm["distance_label"] for arm in arms if arm.get("distance_label")), "FD")
    kernel = "KID" if label.startswith("FID") else "kernel distance"
    return [
        ("model", lambda arm: arm["model"], "speed pictures sets brief"),
        ("arm", lambda arm: arm["arm"], "speed pictures sets brief"),
        ("images", _column("images", "{}"), "speed brief"),
        ("errors", _column("errors", "{}"), "speed brief"),
        ("images/s per worker", _column("images_per_second_per_worker", "{:.2f}"), "speed brief"),
        ("speed-up", _column("speedup", "{:.2f}x"), "speed brief"),
        ("MACs per image", _macs, "speed"),
        ("MACs saved", _column("macs_saved", "{:.1%}"), "speed brief"),
        ("$ per 1,000 images", _column("usd_per_1000_images", "{:.4f}"), "speed brief"),
        (label, _distance, "sets brief"),
        ("its 95%", _distance_interval, "sets"),
        ("its change [95%]", _distance_change, "sets"),
        ("of infinitely many", _infinite, "sets"),
        (kernel, _kid, "sets"),
        ("precision", _column("precision", "{:.2f}"), "sets"),
        ("recall", _column("recall", "{:.2f}"), "sets"),
        ("PSNR (dB)", _paired("psnr", "{:.1f}"), "pictures brief"),
        ("SSIM", _paired("ssim", "{:.3f}"), "pictures"),
        ("LPIPS", _paired("lpips", "{:.3f}"), "pictures"),
        ("CLIP score", _column("clip_score", "{:.2f}"), "pictures brief"),
        ("prompt accuracy", _accuracy, "pictures brief"),
        ("accuracy change [95%]", _change, "pictures brief"),
    ]


def rows(arms: list[dict[str, Any]], table: str) -> list[list[str]]:
    """The heading row, then one row an arm, of ``table``: speed, pictures, sets or brief.

    Columns that no arm has a value in are left out.
    """
    chosen = [
        (head, show)
        for head, show, tables in _every(arms)
        if table in tables.split() and any(show(arm) != "–" for arm in arms)
    ]
    return [[head for head, _ in chosen], *([show(arm) for _, show in chosen] for arm in arms)]


def markdown(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def show(arms: list[dict[str, Any]]) -> None:
    """Prints the brief table to the terminal, or plainly into a log."""
    head, *body = rows(arms, "brief")
    table = Table(show_edge=False, pad_edge=False)
    for name in head:
        table.add_column(name, justify="left" if name in ("model", "arm") else "right")
    for line in body:
        table.add_row(*line)
    console = Console()
    Console(width=None if console.is_terminal else 160).print(table)
