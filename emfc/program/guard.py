"""The watcher that sees a random value leave the tensors, and refuses with the user's own line."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from emfc.program.errors import CompileError
from emfc.program.locations import user_location
from emfc.program.recorder import Recorder

__all__ = ["Guard"]

_BRANCH = "put both values in torch.where(condition, a, b), or torch.maximum / torch.clamp for a bound"
_NUMBER = "keep it a tensor: tensor arithmetic, torch.where and indexing of tensors are followed"
_READERS: dict[Any, tuple[str, str, str]] = {
    Tensor.__bool__: ("E-DATADEP", "branches (if, while, and, or, assert, in, max) on a random value", _BRANCH),
    Tensor.__index__: (
        "E-ESCAPE",
        "uses a random value as a Python index or integer",
        "index a tensor with it: table[k]",
    ),
    Tensor.__int__: ("E-ESCAPE", "converts a random value to a Python number", _NUMBER),
    Tensor.__float__: ("E-ESCAPE", "converts a random value to a Python number", _NUMBER),
    Tensor.item: ("E-ESCAPE", "converts a random value to a Python number", _NUMBER),
    Tensor.tolist: ("E-ESCAPE", "converts a random value to Python numbers", _NUMBER),
    Tensor.numpy: ("E-ESCAPE", "converts a random value to numpy", "use the torch function of the same name"),
    Tensor.__array__: ("E-ESCAPE", "converts a random value to numpy", "use the torch function of the same name"),
    torch.equal: ("E-DATADEP", "compares random values in Python", _BRANCH),
    torch.allclose: ("E-DATADEP", "compares random values in Python", _BRANCH),
}
_COPIES = (torch.tensor, torch.as_tensor, torch.asarray)
_SILENT = frozenset((Tensor.numpy, Tensor.__array__, Tensor.tolist))
_PRINTERS = frozenset((Tensor.__repr__, Tensor.__format__))


class Guard(TorchFunctionMode):
    """Watches calls at the level of Python functions, where the reason of an escape is still visible."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.recorder.paused:
            return func(*args, **kwargs)
        try:
            return self._watch(func, args, kwargs)
        except CompileError as error:
            self.recorder.refused = self.recorder.refused or error
            raise

    def _watch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        recorder = self.recorder
        if func is Tensor.__deepcopy__ and recorder.shadow.is_random(args[0]):
            return args[0].clone()
        if func is torch.nn.functional.one_hot and recorder.shadow.is_random(args[0]):
            count = args[1] if len(args) > 1 else kwargs.get("num_classes", -1)
            if count > 0:
                return (args[0].unsqueeze(-1) == torch.arange(count, device=args[0].device)).long()
        if func in _PRINTERS:
            with recorder.pause():
                return func(*args, **kwargs)
        if func in _COPIES:
            if func is torch.tensor or not (args and isinstance(args[0], Tensor)):
                self._check_copy(args)
        elif func is Tensor.__getitem__:
            return self._getitem(func, args[0], args[1])
        elif func in _READERS and isinstance(args[0], Tensor):
            return self._read(func, args, kwargs)
        return func(*args, **kwargs)

    def _read(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in _SILENT and self.recorder.shadow.is_random(args[0]):
            raise self._refusal(func, args[0])
        self.recorder.reading = lambda: self._refusal(func, args[0])
        try:
            return func(*args, **kwargs)
        finally:
            self.recorder.reading = None

    def _refusal(self, func: Any, value: Tensor) -> CompileError:
        code, reason, advice = _READERS[func]
        names = self.recorder.origins(value)
        depends = f", which depends on {', '.join(names[:4])}," if names else ""
        location = user_location(2)
        return CompileError(
            code,
            reason + depends,
            site=names[0] if names else None,
            location=str(location) if location else None,
            source=location.source if location else None,
            advice=advice,
        )

    def _check_copy(self, args: tuple[Any, ...]) -> None:
        """`torch.tensor([a, b])` copies values out of the trace."""
        pending = [args[0]] if args else []
        inside = False
        while pending:
            value = pending.pop()
            if isinstance(value, Tensor):
                if self.recorder.shadow.is_random(value) and (inside or value is args[0]):
                    names = self.recorder.origins(value)
                    location = user_location(2)
                    raise CompileError(
                        "E-ESCAPE",
                        "torch.tensor(...) copies random values out of the program",
                        site=names[0] if names else None,
                        location=str(location) if location else None,
                        source=location.source if location else None,
                        advice="use torch.stack or torch.cat (or .clone() for one tensor)",
                    )
            elif isinstance(value, (list, tuple)):
                inside = True
                pending.extend(value)

    def _getitem(self, func: Any, value: Any, index: Any) -> Any:
        """Index with a random zero-dimensional integer as a tensor, where Python would read the number."""
        if not isinstance(value, Tensor):
            return func(value, index)
        parts = list(index) if isinstance(index, tuple) else [index]
        named = sum(_consumed(part) for part in parts)
        dim = 0
        for place, part in enumerate(parts):
            if part is Ellipsis:
                dim += value.ndim - named
                continue
            random = isinstance(part, Tensor) and part.ndim == 0 and part.dtype != torch.bool
            if random and self.recorder.shadow.is_random(part):
                value = value.index_select(dim, part.reshape(1))
                parts[place] = 0
            dim += _consumed(part)
        return func(value, tuple(parts) if isinstance(index, tuple) else parts[0])


def _consumed(part: Any) -> int:
    """How many dimensions one part of an index takes up."""
    if part is None or part is Ellipsis or isinstance(part, bool):
        return 0
    return int(part.ndim) if isinstance(part, Tensor) and part.dtype == torch.bool else 1
