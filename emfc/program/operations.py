"""The allow-list of operations, and which elements of its inputs each output element depends on.

Only operations named here enter a program, so a stored program can do nothing but arithmetic. They are ATen operators
in functional form, written ``"name.overload"``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch._ops import OpOverload

from emfc.program.ir import Addresses, Instruction

__all__ = ["ALLOWED", "demands", "is_pointwise", "resolve"]

Mask = npt.NDArray[np.bool_]

_POINTWISE = """
abs acos acosh add addcdiv addcmul asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or bitwise_xor ceil clamp
clamp_max clamp_min copysign cos cosh deg2rad digamma div elu eq erf erfc erfinv exp exp2 expm1 floor floor_divide
fmax fmin fmod frac ge gelu gt hardsigmoid hardswish hardtanh heaviside hypot igamma igammac isfinite isinf isnan le
leaky_relu lerp lgamma log log10 log1p log2 logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logit
lt maximum minimum mish mul nan_to_num ne neg polygamma pow rad2deg reciprocal relu remainder round rsqrt rsub sgn
sigmoid sign silu sin sinc sinh softplus special_entr special_erfcx special_i0e special_i1 special_i1e
special_log_ndtr special_ndtri special_xlog1py special_zeta i0 sqrt square sub tan tanh threshold trunc where xlogy
_to_copy elu_backward gelu_backward hardtanh_backward leaky_relu_backward logit_backward sigmoid_backward
silu_backward softplus_backward tanh_backward threshold_backward masked_fill true_divide
"""
_OTHER = """
_cdist_forward _linalg_det _linalg_eigh _linalg_slogdet _linalg_solve_ex _linalg_svd _log_softmax
_log_softmax_backward_data _prelu_kernel _softmax _softmax_backward_data addbmm addmm addmv addr all amax amin any
argmax argmin avg_pool1d avg_pool2d baddbmm bmm bucketize cat cholesky cholesky_inverse cholesky_solve constant_pad_nd
convolution cummax cummin cumprod cumsum diag_embed dot embedding flip gather glu im2col index index_add index_put
index_select linalg_cholesky_ex linalg_cross linalg_eigh linalg_inv_ex linalg_lu_factor_ex linalg_matrix_exp linalg_qr
linalg_solve_triangular linalg_vector_norm log_sigmoid_backward log_sigmoid_forward logcumsumexp logsumexp max
max_pool2d_with_indices mean median min mm mv native_layer_norm native_group_norm _native_batch_norm_legit_no_training
block_diag kthvalue mse_loss smooth_l1_loss huber_loss std_mean prod repeat roll scatter scatter_add scatter_reduce
searchsorted select_scatter slice_scatter sort stack std sum take topk trace triangular_solve tril triu var var_mean
vdot _unsafe_index
"""

ALLOWED = frozenset(_POINTWISE.split()) | frozenset(_OTHER.split())
_POINTWISE_NAMES = frozenset(_POINTWISE.split())

_MATRIX_PRODUCTS = {"mm": 0, "bmm": 0, "mv": 0, "dot": 0, "addmm": 1, "baddbmm": 1, "addmv": 1}
_REDUCTIONS = frozenset("sum mean amax amin logsumexp prod var std all any linalg_vector_norm argmax argmin".split())
_ALONG = frozenset("_softmax _log_softmax sort".split())
_PREFIX = frozenset("cumsum cumprod logcumsumexp cummax cummin".split())


@lru_cache(maxsize=4096)
def resolve(operation: str) -> Callable[..., Any]:
    """The operator of a name such as ``"mul.Tensor"``.

    Raises:
        KeyError: The name is not on the allow-list, or this version of torch lacks the overload.
    """
    name, _, overload = operation.partition(".")
    if name not in ALLOWED:
        raise KeyError(operation)
    packet = getattr(torch.ops.aten, name, None)
    operator = getattr(packet, overload or "default", None)
    if not isinstance(operator, OpOverload) or operator._schema.is_mutable:
        raise KeyError(operation)
    return operator


def is_pointwise(instruction: Instruction) -> bool:
    """Whether output element ``i`` depends on element ``i`` of the broadcast operands alone."""
    return instruction.operation.partition(".")[0] in _POINTWISE_NAMES and len(instruction.outputs) == 1


def _dimensions(instruction: Instruction, position: int, rank: int) -> tuple[int, ...] | None:
    """The reduced dimensions of a call, or None where it reduces all of them."""
    arguments = instruction.arguments
    value = arguments[position] if len(arguments) > position else dict(instruction.keywords).get("dim")
    if value is None or value == () or value == []:
        return None
    chosen = value if isinstance(value, Sequence) else (value,)
    return tuple(int(dim) % max(rank, 1) for dim in chosen)


def _reduction(instruction: Instruction, needed: Mask) -> Mask:
    shape = instruction.operands[0].shape
    position = 2 if instruction.operation.startswith("linalg_vector_norm") else 1
    overload = instruction.operation.partition(".")[2]
    dims = (
        None
        if overload == "default" and instruction.operation.startswith(("sum", "mean", "prod", "all", "any"))
        else (_dimensions(instruction, position, len(shape)))
    )
    if dims is None:
        return np.full(shape, bool(needed.any()))
    kept = needed if needed.ndim == len(shape) else np.expand_dims(needed, tuple(sorted(dims)))
    return np.broadcast_to(kept, shape)


def _along(instruction: Instruction, needed: Mask, prefix: bool) -> Mask:
    shape = instruction.operands[0].shape
    if not shape:
        return needed
    dims = _dimensions(instruction, 1, len(shape))
    dim = dims[0] if dims else len(shape) - 1
    if prefix:
        return np.flip(np.logical_or.accumulate(np.flip(needed, dim), axis=dim), dim)
    return np.broadcast_to(needed.any(axis=dim, keepdims=True), shape)


def _product(instruction: Instruction, needed: Mask, zero: Callable[[Addresses], Mask]) -> list[Mask]:
    """Matrix products: rows of the left, columns of the right, less what meets a constant zero."""
    name = instruction.operation.partition(".")[0]
    first = _MATRIX_PRODUCTS[name]
    left, right = instruction.operands[first].addresses, instruction.operands[first + 1].addresses
    vector_left, vector_right = name == "dot", name in ("dot", "mv", "addmv")
    a = left[None] if vector_left else left
    b = right[..., None] if vector_right else right
    n = needed
    if vector_right:
        n = n[..., None]
    if vector_left:
        n = n[None]
    live_a, live_b = ~zero(a), ~zero(b)
    need_a = (n.astype(np.int64) @ np.swapaxes(live_b, -1, -2).astype(np.int64) > 0) & live_a
    need_b = (np.swapaxes(live_a, -1, -2).astype(np.int64) @ n.astype(np.int64) > 0) & live_b
    result = [need_a[0] if vector_left else need_a, need_b[..., 0] if vector_right else need_b]
    if first:
        shape = instruction.operands[0].shape
        bias = needed
        while bias.ndim > len(shape):
            bias = np.asarray(bias.any(axis=0))
        for axis, size in enumerate(shape):
            if size == 1 and bias.shape[axis] != 1:
                bias = np.asarray(bias.any(axis=axis, keepdims=True))
        result.insert(0, bias)
    return result


def demands(instruction: Instruction, needed: list[Mask], zero: Callable[[Addresses], Mask]) -> list[Mask]:
    """Which elements of each operand the needed elements of the outputs depend on.

    Args:
        instruction: Any instruction that is not pointwise.
        needed: One mask per output.
        zero: Tells which addresses hold the constant zero.

    Returns:
        One mask per operand; everything, where no finer rule is known.
    """
    name = instruction.operation.partition(".")[0]
    count = len(instruction.operands)
    if name in _MATRIX_PRODUCTS and count == 2 + _MATRIX_PRODUCTS[name]:
        return _product(instruction, needed[0], zero)
    if count == 1 and name in _REDUCTIONS and len(instruction.outputs) == 1:
        return [_reduction(instruction, needed[0])]
    if count == 1 and name in _ALONG:
        return [_along(instruction, np.logical_or.reduce(needed), prefix=False)]
    if count == 1 and name in _PREFIX:
        return [_along(instruction, np.logical_or.reduce(needed), prefix=True)]
    return [np.ones(operand.shape, dtype=np.bool_) for operand in instruction.operands]
