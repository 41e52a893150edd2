"""Prompts encoded once each, alone, by a pipeline's own ``encode_prompt``."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch

Encodings = dict[Hashable, Any]  # one row's outputs of `encode_prompt`, by its texts and arguments
_KEPT = 64  # encodings that are kept besides those of the batches to come


class PromptMemo:
    """Replaces the ``encode_prompt`` of one pipeline: a text's encoding never depends on others.

    Each row is encoded in a separate call. The rows of a batch are joined along the dimension that
    doubles if a text is given twice, which is tried once. Rows are kept in main memory.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._encode = getattr(type(pipeline), "encode_prompt", None)
        self._signature = None if self._encode is None else signature(self._encode)
        self._recent: OrderedDict[Hashable, Any] = OrderedDict()
        self._known: Mapping[Hashable, Any] = {}
        self._batch_dims: dict[Hashable, Any] = {}
        self._used: Encodings = {}

    @contextmanager
    def recording(self) -> Iterator[Encodings]:
        """Yields a dict that receives the encodings that calls inside the block use."""
        used: Encodings = {}
        self._used = used
        with self._replaced():
            yield used

    @contextmanager
    def reading(self, known: Mapping[Hashable, Any]) -> Iterator[None]:
        """Calls inside the block find their encodings in ``known``, or encode."""
        self._known = known
        try:
            with self._replaced():
                yield
        finally:
            self._known, self._used = {}, {}

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        if self._encode is None:
            yield
            return
        self._pipeline.encode_prompt = self._encoded
        try:
            yield
        finally:
            del self._pipeline.encode_prompt

    def _encoded(self, *args: Any, **kwargs: Any) -> Any:
        assert self._signature is not None
        bound = self._signature.bind(self._pipeline, *args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        given.pop("self")
        given |= given.pop("kwargs", None) or {}
        texts = {name: value for name, value in given.items() if _is_text(name, value)}
        rest = {name: value for name, value in given.items() if name not in texts}
        count = max((len(v) for v in texts.values() if not isinstance(v, str)), default=1)
        rows = [
            {name: v if isinstance(v, str) else v[i % len(v)] for name, v in texts.items()}
            for i in range(count)
        ]
        manner = tuple(texts), _described(rest)
        encoded = [self._row(row, rest, manner) for row in rows]
        if manner not in self._batch_dims:
            one = self._recent_or_known(self._key(rows[0], manner))
            self._batch_dims[manner] = _batch_dim(one, self._run(rows[0], rest, copies=2))
        return _to(_join(self._batch_dims[manner], encoded), self._pipeline._execution_device)

    def _row(self, row: dict[str, str], rest: dict[str, Any], manner: Hashable) -> Any:
        key = self._key(row, manner)
        encoding = self._recent_or_known(key)
        if encoding is None:
            encoding = _to(self._run(row, rest, copies=1), torch.device("cpu"))
            self._recent[key] = encoding
            while len(self._recent) > _KEPT:
                self._recent.popitem(last=False)
        self._used[key] = encoding
        return encoding

    def _recent_or_known(self, key: Hashable) -> Any:
        return self._known.get(key, self._recent.get(key))

    @staticmethod
    def _key(row: Mapping[str, str], manner: Hashable) -> Hashable:
        return tuple(row.items()), manner

    def _run(self, row: dict[str, str], rest: dict[str, Any], copies: int) -> Any:
        """The pipeline's own encoding of ``copies`` equal rows; it gets lists of its own."""
        assert self._encode is not None
        if "batch_size" in rest:
            rest = rest | {"batch_size": copies}
        texts = {name: [text] * copies for name, text in row.items()}
        return self._encode(self._pipeline, **texts, **rest)


def shapes(value: Any) -> Hashable:
    """The shapes of all tensors in an encoding: rows of equal shapes share a batch unpadded."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        return tuple((key, shapes(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(shapes(item) for item in value)
    return None


def _is_text(name: str, value: Any) -> bool:
    if "prompt" not in name or name.endswith("_template"):
        return False
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(text, str) for text in value)
    return isinstance(value, str)


def _described(rest: Mapping[str, Any]) -> Hashable:
    """Further arguments as a key: equal ones give equal encodings of a text."""
    return tuple(sorted((name, str(value)) for name, value in rest.items() if name != "batch_size"))


def _batch_dim(one: Any, two: Any) -> Any:
    """For each output: the dimension of its rows, "rows" for a list of rows, None for neither."""
    if isinstance(one, torch.Tensor):
        doubled = (d for d, length in enumerate(one.shape) if two.shape[d] == 2 * length)
        return next(doubled, None)
    if isinstance(one, list | tuple):
        if len(one) == 1 and len(two) == 2:
            return "rows"
        return [_batch_dim(*each) for each in zip(one, two, strict=True)]
    if isinstance(one, dict):
        return {key: _batch_dim(value, two[key]) for key, value in one.items()}
    return None


def _join(dim: Any, rows: list[Any]) -> Any:
    first = rows[0]
    if dim == "rows":
        return [item for row in rows for item in row]
    if isinstance(dim, list):
        return type(first)(_join(d, [row[i] for row in rows]) for i, d in enumerate(dim))
    if isinstance(dim, dict):
        return {key: _join(d, [row[key] for row in rows]) for key, d in dim.items()}
    return first if dim is None else torch.cat(rows, dim=dim)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to(item, device) for item in value)
    return value
