"""A whole run of the demo in a terminal: every width shows it whole, and all of it is ours."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tgate_batch.report.result_table import rows
from tgate_batch.report.verdict import verdicts

WIDTHS = (80, *(pytest.param(wide, marks=pytest.mark.slow) for wide in (100, 120)), 160)
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours, and moves of the cursor
OURS_ALONE = {"HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM"}  # of the tests; a user has none of them
OURS = [  # every line that a run of the demo may say before its table
    r"demo: (checking config, prompts and output|opening the output) \.\.\.",
    r"8 prompts in \d+ shards, 3 arms and 1 model: 24 images -> \S+/out",
    r"demo: a StableDiffusionPipeline, settings like demo; 25 steps of DPMSolverMultistepScheduler "
    r"\(the checkpoint's own\), guidance 4, 64 x 64 pixels",
    r"starting Ray \.\.\.",
    r"loading demo on \d workers?",
    r"(all|demo [a-z-]+) +[━╸╺ ]+ +\d+/\d+",
    r"\d+\.\d\d images/s, ((\d+ min )?\d+ s left|stalled)",
    r"warning: worker 1 died; other workers get its tasks",
    r"measuring: \d of \d shards",
    r"reference: \d of 8 images",
    r"scoring: \d of 3 arms are concluded",
]


def in_terminal(
    here: Path, columns: int, *words: str, meanwhile: Callable[[int, str], None] | None = None
) -> list[str]:
    """The lines of a command in a terminal of so many columns, as they were written.

    ``meanwhile`` is told the process and what it wrote so far.
    """
    inside, outside = pty.openpty()
    fcntl.ioctl(outside, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in OURS_ALONE}
    process = subprocess.Popen(
        [sys.executable, "-m", "tgate_batch", *words],
        cwd=here,
        env=environment,
        stdin=outside,
        stdout=outside,
        stderr=outside,
        start_new_session=True,
    )
    os.close(outside)
    written = b""
    try:
        while piece := os.read(inside, 65536):
            written += piece
            if meanwhile is not None:
                meanwhile(process.pid, written.decode(errors="replace"))
    except OSError:  # nobody has the terminal open any more
        pass
    finally:
        os.close(inside)
    assert process.wait() == 0, written.decode()
    lines = re.split(r"[\r\n]+", CODES.sub("", written.decode()))
    return [line.rstrip() for line in lines if line.strip()]


def demo(here: Path, columns: int, *settings: str, **how) -> list[str]:
    settings = ("prompts.limit=8", "prompts.shard_size=4", *settings)
    words = [word for setting in settings for word in ("--set", setting)]
    options = ("render", "--config", "demo", "--output", "out", *words)
    return in_terminal(here, columns, *options, **how)


class Killing:
    """Kills the worker once the first pictures are drawn."""

    killed = False

    def __call__(self, pid: int, written: str) -> None:
        if self.killed or "images/s" not in written:
            return
        for child in psutil.Process(pid).children(recursive=True):
            if "_RayWorker" in " ".join(child.cmdline()):
                child.send_signal(signal.SIGKILL)
                self.killed = True
                return


@pytest.fixture(scope="module")
def here() -> Iterator[Path]:
    """A folder with a short name: the lines that hold it are to fit 80 columns."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder).resolve()


@pytest.fixture(scope="module")
def disturbed(here) -> list[str]:
    """What a run under Ray says in 80 columns, whose worker is killed in the middle."""
    killing = Killing()
    lines = demo(here, 80, "workers.max=1", meanwhile=killing)
    assert killing.killed
    return lines


def check(lines: list[str], here: Path, columns: int) -> None:
    """Every line is ours and fits, and no figure or heading of the table is cut or broken."""
    assert [line for line in lines if len(line) > columns] == []
    summary = json.loads((here / "out" / "report" / "report.json").read_text())
    table = [line for line in lines if is_of_table(line, summary)]
    first = lines.index(table[0])
    said, lines_of_table, rest = lines[:first], lines[first:][: len(table)], lines[first:]
    assert lines_of_table == table
    assert [line for line in whole(said) if not any(re.fullmatch(p, line) for p in OURS)] == []
    check_table(table, summary)
    images, errors = (sum(arm[key] for arm in summary["arms"]) for key in ("images", "errors"))
    told = whole(rest[len(table) :])
    assert [line for line in told if not line.startswith("Not shown: ")] == [
        *verdicts(summary),
        f"{images} images, {errors} errors",
        f"report: {here / 'out' / 'report' / 'index.html'}",
    ]


def check_table(table: list[str], summary: dict) -> None:
    """Each heading and each arm's figures, as the report formats them, are cells of the table."""
    cells = Counter(cell for line in table for cell in re.split(r" {2,}", line.strip()))
    heads, *arms = rows(summary["arms"], "brief")
    for number, heading in enumerate(heads[2:], start=2):
        assert cells[heading] >= 1
        shown = Counter(arm[number] for arm in arms)
        assert all(cells[figure] >= count for figure, count in shown.items())


def whole(lines: list[str]) -> list[str]:
    """Lines that were broken between words to fit, put together again."""
    found: list[str] = []
    for line in lines:
        if line.startswith("  "):
            found[-1] += " " + line.strip()
        else:
            found.append(line)
    return found


def is_of_table(line: str, summary: dict) -> bool:
    """A heading with its figures, the names of arms, or a rule; no bar."""
    heads, *arms = rows(summary["arms"], "brief")
    names = [" ".join(arm[:2]) for arm in arms]
    cells = re.split(r" {2,}", line.strip())
    return "━" not in line and (
        cells[0] in (*heads[2:], *names)
        or (cells[0] in [arm[0] for arm in arms] and len(cells) == len(heads))
        or cells == heads
        or set(line) <= {"-", " "}
    )


def test_first_line_of_a_run_says_what_is_being_done(disturbed):
    assert disturbed[0] == "demo: checking config, prompts and output ..."


def test_no_line_is_of_another_library_where_a_worker_is_killed(disturbed, here):
    assert "warning: worker 1 died; other workers get its tasks" in disturbed
    check(disturbed, here, 80)


@pytest.mark.parametrize("columns", WIDTHS)
def test_no_figure_and_no_heading_is_cut_at_any_width(disturbed, here, columns):
    words = ("report", "--config", "demo", "--output", "out")
    check(in_terminal(here, columns, *words), here, columns)


@pytest.mark.slow
@pytest.mark.parametrize("columns", WIDTHS)
def test_whole_run_of_the_demo_says_its_own_lines_alone(columns):
    with tempfile.TemporaryDirectory() as folder:
        lines = demo(Path(folder).resolve(), columns)
        check(lines, Path(folder).resolve(), columns)
    assert not any(line.startswith("warning") for line in lines)


FIRST = """
import sys
from tgate_batch import console
from tgate_batch.cli.main import run

def first(text, **facts):
    print(text, file=console.out())
    heavy = {"torch", "ray", "diffusers", "transformers", "scipy", "matplotlib"}
    print(*heavy & {*sys.modules}, file=console.out())
    sys.exit()

console.info = first
run(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "words",
    [
        "render --config demo",
        "score --config demo",
        "report --config demo",
        "reference --config coco10k --from val2014/",
        "verify out",
        "export out --to files",
        "macs",
        "bench encode",
    ],
)
def test_first_line_comes_before_anything_heavy_is_imported(words, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FIRST, *words.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    line, imported = done.stdout.splitlines()
    assert line.endswith(" ...")
    assert imported == ""
