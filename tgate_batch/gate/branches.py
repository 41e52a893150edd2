"""The guidance branches of any pipeline, read by trying, and guidance that is dropped by them.

``read_branches`` runs one denoising step of two captions that differ in nothing else. The rows
whose inputs changed follow the caption; the others are the negative branch. No class is known by
name: the result has the order of the branches, and whether they share a call.

``dropping_guidance`` then runs, at each step that a plan leaves unguided, the caption's rows alone.
Their prediction stands for every branch, so a guidance formula of the kind ``u + s * (p - u)``
gives ``p``, the caption's own prediction.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tgate_batch.gate.plan import StepActions
from tgate_batch.gate.scheduler_hooks import steps_of_calls, watch_scheduler

CAPTIONS = "a cat", "a dog"  # of one length: some pipelines pad the other branch to it
_NOT_DENOISERS = (  # components of a pipeline that are called outside its loop
    *(
        "text_encoder",
        "image_encoder",
        "prior_text",
        "prior_image",
        "vision_language",
        "bert",
        "pe",
    ),
    *(
        "prompt_enhancer",
        "safety",
        "watermark",
        "vae",
        "movq",
        "vqgan",
        "vqvae",
        "vocoder",
        "audio",
    ),
)
_SAMPLES = ("hidden_states", "sample", "x", "latent_model_input")  # a denoiser's noisy rows


class Schedule(Protocol):
    """As much of a plan as guidance needs."""

    def schedule(self, steps: int) -> Sequence[StepActions]:
        """The actions of steps 0..``steps``-1."""
        ...


@dataclass(frozen=True)
class BranchCall:
    """One call of a denoiser within a step: whether each part of its rows follows the caption."""

    denoiser: str  # the pipeline's component
    follows: tuple[bool, ...]


@dataclass(frozen=True)
class BranchMap:
    """The denoiser calls of one step, in order."""

    calls: tuple[BranchCall, ...]

    @property
    def branches(self) -> int:
        """The number of branches of one step."""
        return sum(len(call.follows) for call in self.calls)

    @property
    def refusal(self) -> str | None:
        """Why guidance cannot be dropped; None if it can."""
        following = sum(sum(call.follows) for call in self.calls)
        if self.branches == 1:
            return "it runs one branch, so there is no guidance to drop"
        if following != 1:
            return (
                f"{following} of its {self.branches} branches follow the caption, so none can "
                "stand for the others"
            )
        if len({call.denoiser for call in self.calls}) > 1:
            return "its branches run in several networks, whose outputs cannot replace each other"
        if not any(self.calls[0].follows):
            return "its negative branch runs before the caption's"
        if len(self.calls) > 1 and len(self.calls[0].follows) > 1:
            return "its branches are spread over several calls of several rows"
        return None

    def __str__(self) -> str:
        """For example ``transformer [c] [n]``: c is the caption's branch, n another."""
        calls = (
            f"{call.denoiser} [{', '.join('c' if own else 'n' for own in call.follows)}]"
            for call in self.calls
        )
        return ", ".join(calls)


class _Seen(Exception):
    """Ends a pipeline call whose first step has been read."""


def denoisers(pipe: Any) -> dict[str, torch.nn.Module]:
    """The networks that ``pipe`` calls in its loop, by their component's name."""
    return {
        name: module
        for name, module in pipe.components.items()
        if isinstance(module, torch.nn.Module) and not name.startswith(_NOT_DENOISERS)
    }


def read_branches(pipe: Any, render: Callable[[list[str]], Any], rows: int = 2) -> BranchMap:
    """Reads the branches of one step of ``pipe``.

    ``render(captions)`` calls the pipeline with these ``rows`` captions, and with everything else
    alike at every call. Raises ValueError if the calls of the two captions do not match.
    """
    first, second = (_calls_of_a_step(pipe, render, [text] * rows) for text in CAPTIONS)
    if [name for name, _ in first] != [name for name, _ in second]:
        raise ValueError(
            f"{type(pipe).__name__} calls other networks for another caption, so its branches "
            "cannot be read. Fix: run it without guidance_from and guidance_until"
        )
    return BranchMap(
        tuple(
            BranchCall(name, _follows(one, two, rows))
            for (name, one), (_, two) in zip(first, second, strict=True)
        )
    )


def _calls_of_a_step(
    pipe: Any, render: Callable[[list[str]], Any], captions: list[str]
) -> list[tuple[str, Any]]:
    """(component, (args, kwargs)) of the denoiser calls before the scheduler's first step."""
    calls: list[tuple[str, Any]] = []

    def stepped(_: int) -> None:
        if calls:
            raise _Seen

    with ExitStack() as stack:
        for name, module in denoisers(pipe).items():

            def before(_: Any, args: tuple, kwargs: dict, name: str = name) -> None:
                calls.append((name, (args, dict(kwargs))))

            hook = module.register_forward_pre_hook(before, with_kwargs=True)
            stack.callback(hook.remove)
        watch_scheduler(pipe, stepped, stack)
        with suppress(_Seen):
            render(captions)
    return calls


def _follows(one: Any, two: Any, rows: int) -> tuple[bool, ...]:
    """Whether each part of ``rows`` rows of a call differs between two captions."""
    count = rows_of(*one)
    parts = max(1, count // rows)
    return tuple(
        _differ(*(_part(call, count, part, rows) for call in (one, two))) for part in range(parts)
    )


@contextmanager
def dropping_guidance(pipe: Any, branches: BranchMap, plan: Schedule) -> Iterator[None]:
    """Every call of ``pipe`` inside the block is guided at the steps that ``plan`` guides alone.

    Raises ValueError for branches of which none can stand for the others.
    """
    if branches.refusal is not None:
        raise ValueError(f"{type(pipe).__name__}: {branches.refusal} ({branches})")
    loop = _Loop(pipe, branches, plan)
    with ExitStack() as stack:
        stack.callback(loop.end_step)
        for module in loop.modules:
            stack.callback(module.register_forward_pre_hook(loop.before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(loop.after).remove)
        watch_scheduler(pipe, loop.stepped, stack)
        yield


class _Loop:
    """The state of the pipeline call that runs now: its step, and the call within the step."""

    def __init__(self, pipe: Any, branches: BranchMap, plan: Schedule) -> None:
        networks = denoisers(pipe)
        self.modules = list(networks.values())
        self._pipe = pipe
        self._plan = plan
        self._calls = len(branches.calls)
        self._parts = len(branches.calls[0].follows)
        self._caption = branches.calls[0].follows.index(True)
        self._timesteps: Any = None
        self._own: list[tuple[Any, Any]] = []  # modules whose call is replaced, with their forward
        self._output: Any = None
        self._call = 0
        self._halved = False

    @torch.compiler.disable
    def before(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> Any:
        """Cuts a doubled batch to the caption's rows at a step without guidance."""
        self._begin_if_new()
        self._halved = self._parts > 1 and not self._is_guided
        if not self._halved:
            return None
        rows = rows_of(args, kwargs)
        return _part((args, kwargs), rows, self._caption, rows // self._parts)

    @torch.compiler.disable
    def after(self, module: torch.nn.Module, args: tuple, output: Any) -> Any:
        """Repeats the caption's output for each branch, or keeps it for the calls that follow."""
        self._call += 1
        if self._halved:
            return _repeated(output, self._parts)
        if self._calls > 1 and not self._is_guided:
            if self._call == 1:
                self._stand_in(output)
            elif self._call == self._calls:
                self._give_back()
        return None

    def stepped(self, rows: int) -> None:
        """Counts a step of the scheduler, if the loop has begun."""
        if self._call > 0:
            self._evaluation += 1
            self.end_step()

    def end_step(self) -> None:
        """Ends a step, whole or interrupted."""
        self._give_back()
        self._call = 0

    @property
    def _is_guided(self) -> bool:
        return self._table[self._steps[min(self._evaluation, len(self._steps) - 1)]].guided

    def _begin_if_new(self) -> None:
        timesteps = self._pipe.scheduler.timesteps  # each pipeline call makes a new tensor
        if timesteps is self._timesteps:
            return
        self._timesteps = timesteps
        self._steps = steps_of_calls(self._pipe.scheduler)
        self._table = self._plan.schedule(self._steps[-1] + 1)
        self._evaluation = 0
        self.end_step()

    def _stand_in(self, output: Any) -> None:
        self._output = output
        for module in self.modules:  # a hook cannot keep a module from running
            self._own.append((module, vars(module).get("forward")))
            vars(module)["forward"] = self._given

    def _given(self, *args: Any, **kwargs: Any) -> Any:
        return self._output

    def _give_back(self) -> None:
        for module, own in self._own:
            vars(module).pop("forward", None)
            if own is not None:
                vars(module)["forward"] = own
        self._own, self._output = [], None


def rows_of(args: tuple, kwargs: dict[str, Any]) -> int:
    """The rows of a denoiser call; raises ValueError if its arguments show none."""
    named = [kwargs[name] for name in _SAMPLES if kwargs.get(name) is not None]
    for value in [*args[:1], *named, *kwargs.values()]:
        if isinstance(value, torch.Tensor) and value.ndim > 0:
            return value.shape[0]
        if isinstance(value, list | tuple) and value:
            return len(value)
    raise ValueError("a denoiser is called without a tensor, so its rows cannot be counted")


def _part(value: Any, rows: int, part: int, count: int) -> Any:
    """``value`` with everything of ``rows`` rows cut to the rows of one part."""
    start = part * count
    if isinstance(value, torch.Tensor):
        is_batch = value.ndim > 0 and value.shape[0] == rows
        return value[start : start + count] if is_batch else value
    if isinstance(value, dict):
        return {key: _part(item, rows, part, count) for key, item in value.items()}
    if isinstance(value, list) and len(value) == rows and rows > count:
        return value[start : start + count]
    if isinstance(value, list | tuple):
        return type(value)(_part(item, rows, part, count) for item in value)
    return value


def _repeated(output: Any, times: int) -> Any:
    """A denoiser's output for ``times`` branches: tensors, lists of rows, and outputs of both."""
    if isinstance(output, torch.Tensor):
        return torch.cat([output] * times) if output.ndim else output
    if isinstance(output, dict):
        return type(output)(**{key: _repeated(item, times) for key, item in output.items()})
    if isinstance(output, list):
        return output * times
    if isinstance(output, tuple):
        return type(output)(_repeated(item, times) for item in output)
    return output


def _differ(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.shape != two.shape or not torch.equal(one, two)
    if isinstance(one, dict) and isinstance(two, dict):
        return any(_differ(value, two.get(key)) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) != len(two) or any(map(_differ, one, two))
    return isinstance(one, int | float | str) and one != two
