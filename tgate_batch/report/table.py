"""The report's table: one row an arm, for the terminal, Markdown and the page alike."""

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


def columns(arms: list[dict[str, Any]], brief: bool = False) -> list[tuple[str, Any]]:
    """(heading, function of an arm) of every column that some arm has a value in.

    ``brief`` leaves out what a terminal has no room for.
    """
    label = next((arm["distance_label"] for arm in arms if arm.get("distance_label")), "FD")
    more = [
        ("its 95%", _distance_interval),
        ("its change [95%]", _distance_change),
        ("of infinitely many", _infinite),
        ("KID" if label.startswith("FID") else "kernel distance", _kid),
        ("precision", _column("precision", "{:.2f}")),
        ("recall", _column("recall", "{:.2f}")),
    ]
    every = [
        ("model", lambda arm: arm["model"]),
        ("arm", lambda arm: arm["arm"]),
        ("images", _column("images", "{}")),
        ("errors", _column("errors", "{}")),
        ("images/s per worker", _column("images_per_second_per_worker", "{:.2f}")),
        ("speed-up", _column("speedup", "{:.2f}x")),
        ("MACs per image", _macs),
        ("MACs saved", _column("macs_saved", "{:.1%}")),
        (label, _distance),
        *(() if brief else more),
        ("PSNR (dB)", _paired("psnr", "{:.1f}")),
        ("SSIM", _paired("ssim", "{:.3f}")),
        ("LPIPS", _paired("lpips", "{:.3f}")),
        ("prompt accuracy", _accuracy),
        ("accuracy change [95%]", _change),
        ("CLIP score", _column("clip_score", "{:.2f}")),
        ("$ per 1,000 images", _column("usd_per_1000_images", "{:.4f}")),
    ]
    return [(head, show) for head, show in every if any(show(arm) != "–" for arm in arms)]


def rows(arms: list[dict[str, Any]], brief: bool = False) -> list[list[str]]:
    """The heading row, then one row an arm."""
    chosen = columns(arms, brief)
    return [[head for head, _ in chosen], *([show(arm) for _, show in chosen] for arm in arms)]


def markdown(arms: list[dict[str, Any]]) -> str:
    head, *body = rows(arms)
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def show(arms: list[dict[str, Any]]) -> None:
    """Prints the table to the terminal, or plainly into a log."""
    head, *body = rows(arms, brief=True)
    table = Table(show_edge=False, pad_edge=False)
    for name in head:
        table.add_column(name, justify="left" if name in ("model", "arm") else "right")
    for line in body:
        table.add_row(*line)
    console = Console()
    Console(width=None if console.is_terminal else 200).print(table)
