"""The watcher that turns one run into instructions: a dispatch mode over shadow memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from emfc.program.errors import CompileError
from emfc.program.ir import Addresses, Ref, dtype_kind
from emfc.program.locations import user_location, where
from emfc.program.moves import DROPPED, move, tensors
from emfc.program.operations import ALLOWED
from emfc.program.raw import RawInstruction, template
from emfc.program.refusals import impure, unknown
from emfc.program.shadow import Noise, Shadow

__all__ = ["Recorder"]

_WATCHED = torch._C.DispatchKeySet(torch._C.DispatchKey.Python)
_VALUE_FREE = frozenset(
    "zeros_like ones_like full_like empty_like rand_like randn_like "
    "new_zeros new_ones new_full new_empty new_empty_strided "
    "_linalg_check_errors sym_size sym_numel _assert_async _assert_tensor_metadata is_same_size".split()
)
_RESHAPES = frozenset("unsqueeze_ squeeze_ t_ transpose_ swapaxes_ swapdims_ detach_ requires_grad_".split())
_WIDTH = {"bool": 0, "int": 1, "float": 2, "complex": 3}
_WRITES = frozenset("copy_ fill_ zero_ index_put_ scatter_ masked_fill_ index_copy_ index_fill_".split())


def _inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    return [*tensors(args), *tensors(tuple(kwargs.values()))]


class Recorder(TorchDispatchMode):
    """Records every operation that touches a random value; the rest runs as it is and becomes constants.

    Attributes:
        refused: The first refusal, kept because code between here and the compiler may swallow exceptions.
    """

    supports_higher_order_operators = True

    def __init__(self, shadow: Shadow) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shadow = shadow
        self.instructions: list[RawInstruction] = []
        self.paused = False
        self.reading: Callable[[], CompileError] | None = None
        self.site_names: list[str] = []
        self.refused: CompileError | None = None

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Run code of the compiler's own unseen; operations do not even come to `__torch_dispatch__`."""
        before, self.paused = self.paused, True
        try:
            with torch._C._ExcludeDispatchKeyGuard(_WATCHED):
                yield
        finally:
            self.paused = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        self.paused = True
        try:
            return self._watch(func, args, kwargs)
        except CompileError as error:
            self.refused = self.refused or error
            raise
        finally:
            self.paused = False

    def _watch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = _inputs(args, kwargs)
        if isinstance(func, HigherOrderOperator):
            return self._higher_order(func, inputs, args, kwargs)
        name = func._schema.name.partition("::")[2]
        if torch.Tag.nondeterministic_seeded in func.tags:
            return self._random_operation(func, args, kwargs)
        random = any(self.shadow.is_random(tensor) for tensor in inputs)
        noise = next((mark for tensor in inputs if (mark := self.shadow.noise(tensor))), None)
        if noise is not None and name not in _VALUE_FREE:
            if random or torch.Tag.data_dependent_output in func.tags:
                raise impure(noise)
            out = func(*args, **kwargs)
            for tensor in tensors(out):
                self.shadow.mark_noise(tensor, noise)
            return out
        if not random:
            return self._constant(func, name, args, kwargs)
        if torch.Tag.data_dependent_output in func.tags:
            raise self._escape()
        if any(tensor.layout != torch.strided for tensor in inputs):
            raise unknown(name, "use dense tensors: .to_dense()")
        if name in _VALUE_FREE or name in _RESHAPES or func.is_view:
            return func(*args, **kwargs)
        if torch.Tag.dynamic_output_shape in func.tags and self._dynamic(name, args):
            names = self.origins(next(tensor for tensor in inputs if self.shadow.is_random(tensor)))
            raise CompileError(
                "E-DYNSHAPE",
                "boolean-mask indexing, or another operation whose result's shape depends on a random value",
                site=names[0] if names else None,
                advice="keep the shape and choose values with torch.where",
                **where(),
            )
        return self._record(func, name, args, kwargs)

    def _higher_order(self, func: Any, inputs: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Operators that take functions (`torch.cond`, ...): run as they are, unless a random value is involved."""
        if any(self.shadow.is_random(tensor) for tensor in inputs):
            raise CompileError(
                "E-DATADEP",
                f"torch.{func.name()} on a random value",
                advice="compute both values and choose with torch.where(condition, a, b)",
                **where(),
            )
        return func(*args, **kwargs)

    def _random_operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        mark = Noise(user_location(3))
        if any(self.shadow.is_random(tensor) for tensor in tensors(args)) and "dropout" in func._schema.name:
            raise impure(mark)
        for tensor in tensors(out):
            self.shadow.forget(tensor)
            self.shadow.mark_noise(tensor, mark)
        return out

    def _constant(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name.endswith("_") and not name.startswith("_") and args and isinstance(args[0], Tensor):
            self._overwrite_constant(func, args[0], args, kwargs)
            return args[0]
        targets = list(tensors(kwargs.get("out")))
        if len(targets) == 1:
            self._overwrite_constant(func, targets[0], args, kwargs)
            return targets[0]
        return func(*args, **kwargs)

    def _overwrite_constant(self, func: Any, target: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A constant written over a storage that may hold random values elsewhere."""
        known = self.shadow.known(target)
        func(*args, **kwargs)
        if known:
            fresh = target.detach().clone()
            start = self.shadow.constant(fresh)
            self.shadow.addresses(target).copy_(torch.arange(start, start + fresh.numel()).reshape(fresh.shape))

    def _escape(self) -> CompileError:
        if self.reading is not None:
            return self.reading()
        return CompileError(
            "E-ESCAPE",
            "converts a random value to a Python number",
            advice="stay in tensors: the compiler follows tensor operations only",
            **where(),
        )

    def origins(self, tensor: Tensor) -> list[str]:
        """Names of the sites and parameters that a tensor was computed from, for messages."""
        found: set[str] = set()
        seen: set[int] = set()
        pending = [int(address) for address in self.shadow.addresses(tensor).reshape(-1)[:64]]
        starts = [segment[0] for segment in self.shadow.segments]
        while pending:
            start, _, kind, index = self.shadow.segments[bisect_right(starts, pending.pop()) - 1]
            if start in seen:
                continue
            seen.add(start)
            if kind == "site":
                found.add(self.site_names[index])
            elif kind == "instruction":
                for held, _ in self.instructions[index].operands:
                    pending.extend(int(address) for address in held.reshape(-1)[:64])
        return sorted(found)

    def _dynamic(self, name: str, args: tuple[Any, ...]) -> bool:
        if name not in ("index", "_unsafe_index"):
            return True
        return any(index.dtype == torch.bool and self.shadow.is_random(index) for index in tensors(args[1]))

    def _record(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name == "native_batch_norm":
            if args[5]:
                raise unknown(name, "call .eval() on the module: in training mode it changes its own statistics")
            name, func = (
                "_native_batch_norm_legit_no_training",
                torch.ops.aten._native_batch_norm_legit_no_training.default,
            )
            args = (*args[:5], *args[6:])
        if name == "index_select" and args[2].ndim == 0:
            args = (args[0], args[1], args[2].reshape(1))
        if name == "masked_fill" and func._overloadname == "Tensor" and self.shadow.is_random(args[1]):
            name, func, args = "where", torch.ops.aten.where.self, (args[1], args[2], args[0])
        if any(True for _ in tensors(kwargs.get("out"))) or func._overloadname == "out":
            raise unknown(name, "write without `out=`")
        if name in _WRITES:
            return self._write(func, name, args, kwargs)
        if name.endswith("_") and not name.startswith("_"):
            functional = getattr(getattr(torch.ops.aten, name[:-1]), func._overloadname)
            moved = move(self.shadow, functional, name[:-1], args, kwargs)
            if moved is None:
                before = [self.shadow.addresses(tensor) for tensor in _inputs(args, kwargs)]
                moved = self._instruction(functional, name[:-1], args, kwargs, [args[0]], before)[0]
            result = func(*args, **kwargs)
            self.shadow.write(args[0], moved)
            return result
        if func._schema.is_mutable:
            raise unknown(name, "write it without changing tensors in place")
        moved = move(self.shadow, func, name, args, kwargs)
        out = func(*args, **kwargs)
        if moved is not None:
            self.shadow.register(out, moved, random=True)
            return out
        outputs = list(tensors(out if isinstance(out, (list, tuple)) else (out,)))
        if not outputs or all(self.shadow.known(tensor) for tensor in outputs):
            return out  # a view that does not say so in its schema
        before = [self.shadow.addresses(tensor) for tensor in _inputs(args, kwargs)]
        for tensor, addresses in zip(
            outputs, self._instruction(func, name, args, kwargs, outputs, before), strict=True
        ):
            self.shadow.register(tensor, addresses, random=True)
        return out

    def _write(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target = args[0]
        self.shadow.addresses(target, whole=True)
        if name == "copy_":
            source = self.shadow.addresses(args[1])
            if _WIDTH[dtype_kind(args[1].dtype)] > _WIDTH[dtype_kind(target.dtype)]:
                raise unknown("copy_", "store it in a buffer of its own dtype: torch.zeros(...) holds real numbers")
            source = source.clone()
            func(*args, **kwargs)
            self.shadow.write(target, source.expand(target.shape))
            return target
        if name in ("fill_", "zero_"):
            value = args[1] if name == "fill_" else 0
            if dtype_kind(target.dtype) != "float" and float(value) != int(value):
                raise unknown("fill_", "store whole numbers in an integer buffer")
            addresses = (
                self.shadow.addresses(value) if isinstance(value, Tensor) else torch.tensor(self.shadow.scalar(value))
            )
            func(*args, **kwargs)
            self.shadow.write(target, addresses.expand(target.shape))
            return target
        if name == "index_put_" and any(
            index.dtype == torch.bool and self.shadow.is_random(index) for index in tensors(args[1])
        ):
            return self._masked_store(func, args, kwargs)
        functional = getattr(getattr(torch.ops.aten, name[:-1]), func._overloadname)
        moved = move(self.shadow, functional, name[:-1], args, kwargs)
        if moved is None:
            before = [self.shadow.addresses(tensor) for tensor in _inputs(args, kwargs)]
            moved = self._instruction(functional, name[:-1], args, kwargs, [target], before)[0]
        func(*args, **kwargs)
        self.shadow.write(target, moved)
        return target

    def _masked_store(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`x[mask] = value` for one number: the same as `torch.where(mask, value, x)`."""
        target, masks, value = args[0], list(tensors(args[1])), args[2]
        if len(masks) != 1 or len(args[1]) != 1 or value.numel() != 1 or (len(args) > 3 and args[3]):
            raise CompileError(
                "E-DYNSHAPE",
                "stores into as many elements as a random mask chooses",
                advice="write x = torch.where(mask, value, x)",
                **where(),
            )
        mask = masks[0].reshape(masks[0].shape + (1,) * (target.ndim - masks[0].ndim))
        arguments = (mask, value.reshape(()), target)
        before = [self.shadow.addresses(tensor).clone() for tensor in arguments]
        fresh = self._instruction(torch.ops.aten.where.self, "where", arguments, {}, [target], before)[0]
        func(*args, **kwargs)
        self.shadow.write(target, fresh)
        return target

    def _instruction(
        self,
        func: Any,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: list[Tensor],
        addresses: list[Tensor],
    ) -> list[Tensor]:
        """Append one instruction and return the fresh addresses of its outputs."""
        if name not in ALLOWED:
            raise unknown(name, "write it with ordinary tensor arithmetic")
        inputs = _inputs(args, kwargs)
        operands = [
            (held.numpy().copy(), dtype_kind(tensor.dtype)) for tensor, held in zip(inputs, addresses, strict=True)
        ]
        counter = iter(range(len(inputs)))
        arguments = tuple(template(value, counter) for value in args)
        arguments = self._lift_literals(func, arguments, operands)
        keywords = tuple((key, template(value, counter)) for key, value in kwargs.items() if key not in DROPPED)
        raw, results = [], []
        for tensor in outputs:
            if tensor.is_complex():
                raise unknown(name, "complex values are not supported")
            start = self.shadow.reserve(tensor.numel(), "instruction", len(self.instructions))
            raw.append((start, tuple(tensor.shape), dtype_kind(tensor.dtype)))
            results.append(torch.arange(start, start + tensor.numel()).reshape(tensor.shape))
        self.instructions.append(
            RawInstruction(f"{name}.{func._overloadname}", arguments, keywords, tuple(operands), tuple(raw))
        )
        if name == "mul":
            results[0] = self._without_zeros(results[0], args)
        return results

    def _lift_literals(
        self, func: Any, arguments: tuple[Any, ...], operands: list[tuple[Addresses, str]]
    ) -> tuple[Any, ...]:
        """Turn numbers in the place of tensors into constants, so that steps that differ in them alone stay alike."""
        if torch.Tag.pointwise not in func.tags:
            return arguments
        lifted = list(arguments)
        for place, schema in enumerate(func._schema.arguments[: len(arguments)]):
            value = arguments[place]
            if isinstance(value, (int, float)) and not isinstance(value, bool) and str(schema.type) == "Tensor":
                real = isinstance(value, float) or any(kind == "float" for _, kind in operands)
                lifted[place] = Ref(len(operands))
                operands.append((np.array(self.shadow.scalar(value), dtype=np.int64), "float" if real else "int"))
        return tuple(lifted)

    def _without_zeros(self, result: Tensor, args: tuple[Any, ...]) -> Tensor:
        """A product with a constant zero is zero and depends on nothing."""
        for value in args[:2]:
            zero = value == 0 if not isinstance(value, Tensor) else None
            if isinstance(value, Tensor) and not self.shadow.is_random(value):
                zero = (value == 0).cpu()
            if zero is not None and bool(torch.as_tensor(zero).any()):
                result = torch.where(torch.as_tensor(zero), torch.zeros_like(result), result)
        return result
