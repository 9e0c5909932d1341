"""Operations that only move values: on shadow memory they run on addresses instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from emfc.program.ir import dtype_kind
from emfc.program.refusals import unknown
from emfc.program.shadow import Shadow

__all__ = ["DROPPED", "move", "tensors"]

_MOVES: dict[str, tuple[int, ...]] = {  # positions of the arguments whose values move
    "clone": (0,), "cat": (0,), "stack": (0,), "repeat": (0,), "flip": (0,), "roll": (0,), "tril": (0,), "triu": (0,),
    "diag_embed": (0,), "index": (0,), "index_select": (0,), "gather": (0,), "take": (0,), "embedding": (0,),
    "_unsafe_index": (0,), "where": (1, 2), "index_put": (0, 2), "scatter": (0, 3), "select_scatter": (0, 1),
    "slice_scatter": (0, 1), "diagonal_scatter": (0, 1), "as_strided_scatter": (0, 1), "constant_pad_nd": (0,),
    "select_backward": (0,), "slice_backward": (0,), "diagonal_backward": (0,), "expand_copy": (0,), "view_copy": (0,),
    "permute_copy": (0,), "lift_fresh_copy": (0,), "contiguous": (0,), "channel_shuffle": (0,), "pixel_shuffle": (0,),
}  # fmt: skip
_NARROW = (torch.uint8, torch.int8, torch.int16, torch.float16, torch.bfloat16)
DROPPED = frozenset("device layout memory_format pin_memory non_blocking".split())


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists and tuples, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


def move(shadow: Shadow, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The addresses of the result of an operation that only moves values, or None where it computes."""
    if name == "_to_copy":
        source, target = dtype_kind(args[0].dtype), dtype_kind(kwargs.get("dtype") or args[0].dtype)
        wanted = kwargs.get("dtype") or args[0].dtype
        if wanted in _NARROW and wanted != args[0].dtype:
            raise unknown("_to_copy", f"keep random values in a wide dtype; {wanted} rounds or wraps them")
        widening = source == target or target == "float" or source == "bool"
        return shadow.addresses(args[0]).clone() if widening else None
    if name == "masked_fill" and not shadow.is_random(args[1]):
        value = shadow.addresses(args[2]) if isinstance(args[2], Tensor) else torch.tensor(shadow.scalar(args[2]))
        return torch.where(args[1].cpu(), value, shadow.addresses(args[0]))
    if name not in _MOVES:
        return None
    places = _MOVES[name]
    if name == "constant_pad_nd" and len(args) > 2 and args[2] != 0:
        return None
    if name == "scatter" and (func._overloadname != "src" or kwargs.get("reduce")):
        return None
    if name == "index_put" and len(args) > 3 and args[3]:
        return None
    rest = [value for place, value in enumerate(args) if place not in places]
    if any(shadow.is_random(tensor) for tensor in tensors(tuple(rest))):
        return None
    shadows = tuple(
        _to_shadow(shadow, value) if place in places else _to_cpu(value) for place, value in enumerate(args)
    )
    if name == "embedding":
        return shadows[0][shadows[1]]  # type: ignore[no-any-return]
    return func(*shadows, **{key: value for key, value in kwargs.items() if key not in DROPPED})  # type: ignore[no-any-return]


def _to_shadow(shadow: Shadow, value: Any) -> Any:
    if isinstance(value, Tensor):
        return shadow.addresses(value)
    if isinstance(value, (list, tuple)):
        return [_to_shadow(shadow, item) for item in value]
    return value


def _to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    return [_to_cpu(item) for item in value] if isinstance(value, (list, tuple)) else value
