"""MACs of a pipeline of any class, counted from its configurations: no weights, no family code.

The pipeline is real: its loop, tokenizers and scheduler run. Its networks are hollow: they are
built on the meta device, and each outermost call of one is counted there and returns numbers of the
right shape. They depend on the call's inputs, so another caption gives other numbers. What the
pipeline calls is what is counted: branches, doubled batches, several networks.

Both conventions are those of ``call.py``. A network whose work depends on the values of its inputs
cannot run so; ``count_loaded`` then counts an image of the loaded pipeline.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache, partial, wraps
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tgate_batch.config import Arm, ResolvedSampling
from tgate_batch.errors import UserError, one_line
from tgate_batch.gate.branches import denoisers
from tgate_batch.models.architecture import build, read_json
from tgate_batch.models.family import Entry, Family
from tgate_batch.models.generic.runner import GenericRunner
from tgate_batch.models.macs.call import Count, count_call
from tgate_batch.models.resolve import INDEX
from tgate_batch.records import Prompt

_CAPTION = "a photograph of a lighthouse on a rock in the evening"
_MAKERS = {
    getattr(torch, name)
    for name in ("zeros", "ones", "empty", "full", "arange", "tensor", "linspace", "randn", "rand")
}


class MacsUnknown(UserError):
    """MACs that only the loaded pipeline shows."""


def count_arm(
    row: Entry, family: Family, folder: Path | None, arm: Arm, sampling: ResolvedSampling
) -> tuple[Count, int]:
    """(MACs of one image, parameters) of an arm's denoisers.

    ``folder`` has the checkpoint's configurations; None: the row's architecture is counted. Raises
    MacsUnknown if a network depends on more than shapes, UserError if guidance cannot be dropped.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            pipeline, calls = _of_row(row.name) if folder is None else _of_folder(str(folder))
            runner = GenericRunner(pipeline, family, sampling)
            calls.clear()
            _render_one(runner, arm, sampling, calls)
    except UserError:
        raise
    except Exception as error:  # what a network asks of values, each has its own way
        reason = one_line(f"{type(error).__name__}: {error}", 120)
        raise MacsUnknown(
            f"models: {row.name}: the MACs of a {row.pipeline} are known only after the first "
            f"batch: a network of it looks at data ({reason})"
        ) from None
    return calls.total(denoisers(pipeline)), _params(pipeline)


def count_loaded(runner: GenericRunner, arm: Arm, sampling: ResolvedSampling) -> tuple[Count, int]:
    """(MACs of one image, parameters) of an arm, from a further image of the loaded pipeline."""
    calls = Calls()
    networks = denoisers(runner.pipeline)
    with ExitStack() as stack:
        for name, module in networks.items():
            before = vars(module).get("forward")
            module.forward = partial(calls.counted, name, module, module.forward)
            stack.callback(_give_back, module, before)
        _render_one(runner, arm, sampling, calls)
    return calls.total(networks), _params(runner.pipeline)


class Calls:
    """The counted calls of networks, by the pipeline's component."""

    def __init__(self) -> None:
        self._counts: list[tuple[str, Count]] = []
        self._known: dict[tuple, tuple[Count, Any]] = {}
        self.is_inside = False  # a network's own code runs

    def clear(self) -> None:
        """Forgets the calls, and keeps what equal ones count."""
        self._counts.clear()

    def total(self, components: Mapping[str, Any]) -> Count:
        """The sum over these components."""
        total = Count()
        for name, count in self._counts:
            if name in components:
                total = total.plus(count)
        return total

    def counted(
        self, name: str, module: Any, own: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Runs and counts a call of a real network."""
        count, output = count_call(module, own, args, kwargs)
        self._counts.append((name, count))
        return output

    def hollow(
        self, name: str, module: Any, own: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Counts a call on the meta device, once for equal shapes; returns made-up numbers."""
        if self.is_inside:
            return own(*args, **kwargs)
        key = name, id(module), own.__name__, _shape_key(args), _shape_key(kwargs)
        self.is_inside = True
        try:
            if key not in self._known:
                with torch.no_grad(), _OnMeta():
                    inputs = _on_meta(args), _on_meta(kwargs)
                    self._known[key] = count_call(module, own, *inputs)
        finally:
            self.is_inside = False
        count, output = self._known[key]
        self._counts.append((name, count))
        return _filled(output, _digest((args, kwargs)))


class _OnMeta(torch.overrides.TorchFunctionMode):
    """Puts tensors that a network makes on the meta device, whatever device it names.

    A mask that is asked whether it is full is full: hidden positions are computed all the same.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if "device" in kwargs and function in _MAKERS:
            kwargs["device"] = "meta"
        asked = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if asked is not None and asked.is_meta:
            if function in (torch.Tensor.all, torch.all) and len(args) == 1:
                return torch.ones((), dtype=torch.bool)
            if function in (torch.Tensor.any, torch.any) and len(args) == 1:
                return torch.zeros((), dtype=torch.bool)
            if function in (torch.Tensor.item, torch.Tensor.__bool__) and asked.dtype == torch.bool:
                return True
        return function(*args, **kwargs)


@cache
def _of_folder(folder: str) -> tuple[Any, Calls]:
    """The pipeline of a folder with hollow networks; tokenizers and configurations are read."""
    root = Path(folder)
    index = read_json(root / INDEX)
    calls = Calls()
    parts: dict[str, Any] = {}
    for name, spec in index.items():
        if not isinstance(spec, list) or len(spec) != 2 or name.startswith("_"):
            continue
        if not all(isinstance(each, str) for each in spec):
            parts[name] = None
            continue
        kind = _class(*spec)
        if issubclass(kind, torch.nn.Module):
            parts[name] = calls_on(calls, name, _network(kind, root / name))
        else:
            parts[name] = kind.from_pretrained(root / name)
    options = {name: value for name, value in index.items() if name not in parts}
    return _pipeline(index["_class_name"], parts, options), calls


@cache
def _of_row(name: str) -> tuple[Any, Calls]:
    """The catalogue's row with hollow networks of its architecture.

    Tokenizers and what the architecture does not name are the tiny model's.
    """
    from tgate_batch.models import catalogue

    row = catalogue.entry(name)
    if row.architecture is None or row.tiny is None:
        raise UserError(
            f"models: {name}: its MACs are unknown without its files. Fix: give a local checkpoint "
            "folder (models: {name, path})"
        )
    like = catalogue.tiny(name)
    specs = {"vae": row.architecture.vae, **row.architecture.encoders}
    specs[next(iter(denoisers(like)))] = row.architecture.denoiser
    calls = Calls()
    parts: dict[str, Any] = {}
    for part, value in like.components.items():
        if isinstance(value, torch.nn.Module):
            if part in specs:
                with torch.device("meta"):
                    value = build(specs[part])
            parts[part] = calls_on(calls, part, value)
        else:
            parts[part] = value
    if row.architecture.scheduler.config:
        parts["scheduler"] = build(row.architecture.scheduler)
    options = {key: value for key, value in like.config.items() if key not in parts}
    return _pipeline(type(like).__name__, parts, options), calls


def _class(library: str, name: str) -> Any:
    modules = {"diffusers": diffusers, "transformers": transformers}
    module = modules.get(library) or import_module(f"diffusers.pipelines.{library}")
    return getattr(module, name)


def _network(kind: Any, folder: Path) -> torch.nn.Module:
    with torch.device("meta"):
        if issubclass(kind, diffusers.ConfigMixin):
            return kind.from_config(json.loads((folder / "config.json").read_text("utf-8")))
        return kind(kind.config_class.from_pretrained(folder))


def _pipeline(class_name: str, parts: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    kind = getattr(diffusers, class_name)
    takes = signature(kind.__init__).parameters
    given = {name: value for name, value in {**options, **parts}.items() if name in takes}
    return kind(**given)


def calls_on(calls: Calls, name: str, network: torch.nn.Module) -> torch.nn.Module:
    """Empties a network: its outermost calls are counted by ``calls``."""
    network = network.to("meta").eval()
    kind = type(network)
    here = {
        "device": property(lambda self: torch.device("meta" if calls.is_inside else "cpu")),
        "dtype": property(lambda self: torch.float32),
        "__module__": kind.__module__,
    }
    network.__class__ = type(kind.__name__, (kind,), here)
    for module in network.modules():
        for method in ("forward", "decode"):
            if method == "decode" and module is not network:
                continue
            if hasattr(type(module), method):
                own = getattr(module, method)
                setattr(module, method, wraps(own)(partial(calls.hollow, name, module, own)))
    return network


def _render_one(runner: GenericRunner, arm: Arm, sampling: ResolvedSampling, calls: Calls) -> None:
    with runner.applying(arm, sampling):
        conditions = runner.encode([Prompt("counted", _CAPTION)], arm)
        calls.clear()
        runner.render_latents(conditions, [0])


def _params(pipeline: Any) -> int:
    networks = denoisers(pipeline).values()
    return sum(parameter.numel() for each in networks for parameter in each.parameters())


def _give_back(module: Any, before: Any) -> None:
    vars(module).pop("forward", None)
    if before is not None:
        module.forward = before


def _shape_key(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), str(value.dtype)
    if isinstance(value, dict):
        return tuple((key, _shape_key(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_shape_key, value))
    return value if isinstance(value, int | float | str | None) else type(value).__name__


def _on_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if type(value) is dict:
        return {key: _on_meta(item) for key, item in value.items()}
    return type(value)(map(_on_meta, value)) if type(value) in (list, tuple) else value


def _digest(value: Any) -> float:
    """A number in 0..1 that follows the values of all tensors."""
    return zlib.crc32(b"".join(_bytes(value))) / 2**32


def _bytes(value: Any) -> Iterator[bytes]:
    if isinstance(value, torch.Tensor):
        if not value.is_meta:
            yield value.double().numpy(force=True).tobytes()
    elif isinstance(value, dict):
        for item in value.values():
            yield from _bytes(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _bytes(item)


def _filled(value: Any, number: float) -> Any:
    """An output of the meta device with ``number`` everywhere."""
    if isinstance(value, torch.Tensor):
        if not value.is_meta:
            return value
        fill = number if value.is_floating_point() else 0
        return torch.full(value.shape, fill, dtype=value.dtype)
    if isinstance(value, dict):
        return type(value)(**{key: _filled(item, number) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(_filled(item, number) for item in value)
    return value
