"""Prompt files of the Stable Diffusion web UI: its option lines, and its prompt syntax."""

import re
import shlex
from collections.abc import Iterable, Iterator

from tgate_batch import console
from tgate_batch.errors import shown
from tgate_batch.records import Prompt

_WORDS = {"prompt": "text", "negative_prompt": "negative_prompt"}  # its option -> a row's column
_NUMBERS = {
    "seed": "seed",
    "cfg_scale": "guidance_scale",
    "height": "height",
    "width": "width",
    "steps": "steps",
}
_SYNTAX = re.compile(
    r"\([^()]*:(?:\d{1,4}(?:\.\d{1,4})?|\.\d{1,4})\)"  # (tent:1.4)
    r"|\(\([^()]+\)\)|\[\[[^\[\]]+\]\]"  # ((tent)), [[tent]]
    r"|\[[^\[\]:|]{0,200}:[^\[\]:|]{0,200}:(?:\d{1,4}|\d?\.\d{1,4})\]"  # [tent:house:10]
    r"|<(?:lora|lyco|hypernet):[^<>]+>"
    r"|\{[^{}|]*\|[^{}]*\}"  # {red|blue}
    r"|__[A-Za-z][A-Za-z0-9/-]{0,100}(?:_[A-Za-z0-9/-]{1,100}){0,8}__"  # __season__
    r"|(?<!\S)BREAK(?!\S)"
    r"|(?<!\S)--(?:ar|aspect|niji|stylize|chaos|no|q|s|v|seed|steps|cfg_scale|negative_prompt) "
)


class Options(dict):
    """The row of an option line, whose columns are certainly settings."""


def is_options(line: str) -> bool:
    """Returns True for a line that the web UI reads as options."""
    return line.lstrip().startswith("--")


def options(line: str) -> Options:
    """Returns the row of a line such as ``--prompt "a cat" --seed 42``; raises ValueError."""
    try:
        words = shlex.split(line)
    except ValueError:
        raise ValueError("its options have an unclosed quote") from None
    row = Options()
    option = ""
    for word in words:
        if word.startswith("--"):
            option = word.removeprefix("--")
            column = _WORDS.get(option) or _NUMBERS.get(option)
            if column is None:
                known = ", ".join(f"--{name}" for name in (*_WORDS, *_NUMBERS))
                raise ValueError(f"{shown(word)} is not an option ({known}). Fix: remove it")
            if column in row:
                raise ValueError(f"{shown(word)} is repeated. Fix: keep one")
            row[column] = ""
        elif option in _WORDS:
            row[column] = f"{row[column]} {word}".lstrip()
        elif row[column]:
            raise ValueError(f"{shown(word)} belongs to no option. Fix: quote the prompt")
        else:
            row[column] = "" if (option, word) == ("seed", "-1") else word  # the run's seed
    return row


def warn_of_syntax(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """Yields the prompts; at the end, logs one warning if any have the web UI's syntax."""
    count, first, example = 0, 0, ""
    for prompt in prompts:
        negative = prompt.overrides.negative_prompt
        match = _SYNTAX.search(prompt.text) or (negative and _SYNTAX.search(negative))
        if match:
            count += 1
            if count == 1:
                first, example = prompt.source_row + 1, shown(match[0])
        yield prompt
    if count:
        have = "1 prompt has" if count == 1 else f"{count:,} prompts have"
        console.warning(
            f"{have} syntax of the Stable Diffusion web UI, which is used as plain text, e.g. "
            f"{example} in row {first} of the set"
        )
