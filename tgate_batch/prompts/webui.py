"""Prompt files of the Stable Diffusion web UI: its lines of settings, and its prompt syntax."""

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
    """A row of a line of options: each of its settings is meant as one."""


def is_options(line: str) -> bool:
    """Returns True for a line that the web UI reads as options."""
    return line.lstrip().startswith("--")


def options(line: str) -> Options:
    """The row of a line such as ``--prompt "a cat" --seed 42``; raises ValueError."""
    try:
        words = shlex.split(line)
    except ValueError:
        raise ValueError("a quote is not closed in its options") from None
    row = Options()
    option = ""
    for word in words:
        if word.startswith("--"):
            option = word.removeprefix("--")
            column = _WORDS.get(option) or _NUMBERS.get(option)
            if column is None:
                known = ", ".join(f"--{name}" for name in (*_WORDS, *_NUMBERS))
                raise ValueError(f"{shown(word)} is no option of a row ({known}); remove it")
            if column in row:
                raise ValueError(f"{shown(word)} stands twice; keep one")
            row[column] = ""
        elif option in _WORDS:
            row[column] = f"{row[column]} {word}".lstrip()
        elif row[column]:
            raise ValueError(f"{shown(word)} belongs to no option; quote the prompt")
        else:
            row[column] = "" if (option, word) == ("seed", "-1") else word  # as the run says
    return row


def warn_of_syntax(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """Passes prompts on; at the end, warns once of those with the web UI's syntax."""
    count, first, example = 0, 0, ""
    for prompt in prompts:
        found = _SYNTAX.search(prompt.text) or (
            prompt.overrides.negative_prompt and _SYNTAX.search(prompt.overrides.negative_prompt)
        )
        if found:
            count += 1
            if count == 1:
                first, example = prompt.source_row + 1, shown(found[0])
        yield prompt
    if count:
        have = "1 prompt has" if count == 1 else f"{count:,} prompts have"
        console.warning(
            f"{have} syntax of the Stable Diffusion web UI, which is read as words, e.g. {example} "
            f"in row {first} of the set"
        )
