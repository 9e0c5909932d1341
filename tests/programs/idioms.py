"""Idioms of tensor code: name -> what a program computes from a vector of four normal values.

Every idiom either compiles to the same numbers or is refused; those of ``COMPILED`` must compile.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["COMPILED", "IDIOMS", "program"]


def program(idiom: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    """The program of an idiom: ``a`` of four elements, and ``b`` around what the idiom makes of it."""

    def model() -> Tensor:
        a = pyro.sample("a", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        loc = idiom(a)
        return pyro.sample("b", dist.Normal(loc, 0.5).to_event(loc.dim()))

    return model


def _filled(a: Tensor) -> Tensor:
    z = torch.empty(3)
    z.fill_(1.0)
    z[0] = a[0]
    return z


def _copied(a: Tensor) -> Tensor:
    z = torch.zeros(4)
    z.copy_(a)
    return z


def _out(a: Tensor) -> Tensor:
    z = torch.zeros(4)
    torch.add(a, 1, out=z)
    return z


def _in_place(a: Tensor) -> Tensor:
    z = torch.ones(4)
    z += a
    z.mul_(a)
    z[1:] -= a[:3]
    return z


def _swapped(a: Tensor) -> Tensor:
    z = torch.stack([a[0], a[1]])
    first = z[0].clone()
    z[0] = z[1]
    z[1] = first
    return z


def _shifted(a: Tensor) -> Tensor:
    z = a.clone()
    z[1:] = z[:-1].clone()
    return z


def _masked_assignment(a: Tensor) -> Tensor:
    z = a.clone()
    z[a > 0] = 0.0
    return z


def _constant_mask_assignment(a: Tensor) -> Tensor:
    z = a.clone()
    z[torch.tensor([True, False, True, False])] = 0.0
    return z


def _random_store(a: Tensor) -> Tensor:
    z = torch.zeros(4)
    z[a.argmax()] = 5.0
    return z


def _sliced_store(a: Tensor) -> Tensor:
    z = torch.zeros(3, 4)
    z[:, 1::2] = a[:2]
    z[torch.tensor([2, 0])] += a
    return z


def _dictionary(a: Tensor) -> Tensor:
    state = {"x": a[0], "y": [a[1], a[2]]}
    moved = copy.copy(state)
    moved["x"] = moved["x"] + moved["y"][1]
    return moved["x"].reshape(1)


class _Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sin()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def _checkpointed(a: Tensor) -> Tensor:
    return torch.utils.checkpoint.checkpoint(torch.sin, a, use_reentrant=False)


COMPILED: dict[str, Callable[[Tensor], Tensor]] = {
    "detach": lambda a: a.detach() + a.data,
    "copy_": _copied,
    "in place": _in_place,
    "swap in place": _swapped,
    "overlapping store": _shifted,
    "store by slices": _sliced_store,
    "constant mask store": _constant_mask_assignment,
    "empty and fill_": _filled,
    "dictionary": _dictionary,
    "table by argmax": lambda a: torch.arange(4.0)[a.argmax()].reshape(1),
    "table by argsort": lambda a: torch.arange(4.0)[a.argsort()],
    "table by long": lambda a: torch.arange(10.0)[(2 * a.abs()).long().clamp(0, 9)],
    "topk": lambda a: sum(a.topk(2)),
    "scatter by argsort": lambda a: torch.zeros(4).scatter(0, a.argsort(), a),
    "take_along_dim": lambda a: torch.take_along_dim(a, a.argsort(), 0),
    "masked_fill": lambda a: a.masked_fill(a > 0, 0.0),
    "constant mask": lambda a: a[torch.tensor([True, False, True, True])],
    "nan_to_num": lambda a: torch.nan_to_num(a),
    "iteration": lambda a: sum(value * i for i, value in enumerate(a)).reshape(1),
    "choice by constants": lambda a: torch.stack([v for v, keep in zip(a, torch.arange(4) > 1, strict=True) if keep]),
    "rounding": lambda a: a.round() + a.floor() + a.frac() + a.trunc() + a.sign(),
    "print": lambda a: (print(a), a)[1],
    "numpy constants": lambda a: np.float64(2.0) * a * torch.from_numpy(np.arange(4.0)).to(a.dtype),
    "constants to Python": lambda a: a * float(torch.tensor(2.0)) * int(torch.tensor(3)) * math.pi,
    "integers": lambda a: ((10 * a).long() // 3 + (10 * a).long() % 4).to(a.dtype),
    "Booleans": lambda a: ((a > 0) & (a < 1) | ~(a > -1)).to(a.dtype) * a,
    "shape arithmetic": lambda a: a.reshape(a.shape[0] // 2, -1).sum(0) / a.numel(),
    "einsum": lambda a: torch.einsum("ij,kj->ik", a.view(2, 2), a.view(2, 2)).diagonal(),
    "chunk": lambda a: torch.mul(*a.chunk(2)),
    "split": lambda a: torch.cat(a.split([1, 3])[::-1]),
    "meshgrid": lambda a: torch.sub(*torch.meshgrid(a, a, indexing="ij")),
    "as_strided": lambda a: a.as_strided((2, 3), (1, 1)),
    "searchsorted": lambda a: torch.searchsorted(torch.tensor([-1.0, 0.0, 1.0]), a).to(a.dtype),
    "cdist": lambda a: torch.cdist(a.view(2, 2), a.view(2, 2) + 1),
    "pooling": lambda a: functional.max_pool1d(a[None], 2)[0] + functional.avg_pool1d(a[None], 2)[0],
    "scans": lambda a: a.cumprod(0) + a.cummax(0).values + a.logcumsumexp(0) + torch.diff(a, prepend=a[:1]),
    "fused": lambda a: torch.lerp(a, a.flip(0), 0.3) + torch.addcmul(a, a, a, value=0.5),
    "normalise": lambda a: functional.normalize(a, dim=0) + functional.layer_norm(a, (4,)),
    "eigenvalues": lambda a: torch.linalg.eigvalsh(torch.outer(a, a) + torch.diag(torch.arange(4.0))),
    "solve": lambda a: torch.linalg.solve(torch.outer(a, a) + torch.eye(4), a),
    "inverse": lambda a: torch.inverse(torch.outer(a, a) + torch.eye(4)),
    "slogdet": lambda a: torch.linalg.slogdet(torch.outer(a, a) + torch.eye(4)).logabsdet.reshape(1),
    "matrix_exp": lambda a: torch.matrix_exp(0.1 * torch.outer(a, a)),
    "kron": lambda a: torch.kron(a[:2], a[2:]),
    "jacrev": lambda a: torch.func.jacrev(lambda x: x**3)(a).diagonal(),
    "nested vmap": lambda a: torch.vmap(lambda x: torch.vmap(lambda y: x * y)(a))(a),
    "autograd function": lambda a: _Sine.apply(a),
    "unregistered constant that wants gradients": lambda a: a * torch.ones(4, requires_grad=True),
}
IDIOMS: dict[str, Callable[[Tensor], Tensor]] = {
    **COMPILED,
    "as_tensor": lambda a: 2 * torch.as_tensor(a),
    "deepcopy": lambda a: 2 * copy.deepcopy(a),
    "out=": _out,
    "masked store": _masked_assignment,
    "store by argmax": _random_store,
    "checkpoint": _checkpointed,
    "nonzero": lambda a: torch.where(a > 0)[0].sum().to(a.dtype).reshape(1),
    "masked_select": lambda a: a.masked_select(a > 0).sum().reshape(1),
    "unique": lambda a: torch.unique(a).sum().reshape(1),
    "bincount": lambda a: torch.bincount((a > 0).long(), minlength=2).to(a.dtype),
    "histc": lambda a: torch.histc(a, bins=3, min=-1.0, max=1.0),
    "equal": lambda a: a if torch.equal(a, a) else -a,
    "allclose": lambda a: a if torch.allclose(a, a) else -a,
    "format": lambda a: torch.tensor([float(f"{a[0]:.3f}")]),
    "max": lambda a: max(a).reshape(1),
    "sorted": lambda a: torch.stack(sorted(a)),
    "membership": lambda a: torch.ones(1) if 0.25 in a else torch.zeros(1),
    "math": lambda a: torch.tensor([math.sin(a[0])]),
    "asarray": lambda a: torch.from_numpy(np.asarray(a.detach())),
    "array of numbers": lambda a: torch.from_numpy(np.array([value.detach() for value in a])),
    "numpy times tensor": lambda a: torch.as_tensor(np.multiply(np.arange(4.0), a.detach())),
    "buffer protocol": lambda a: torch.frombuffer(bytearray(a.detach().numpy()), dtype=a.dtype),
    "dlpack": lambda a: torch.from_dlpack(a.detach()) * 2,
    "untyped storage": lambda a: torch.tensor(a.detach().untyped_storage().tolist()[:4], dtype=a.dtype),
    "storage shared": lambda a: torch.empty(0).set_(a.detach().untyped_storage(), 0, (4,)),
    "set data": lambda a: torch.zeros(4).set_(a.detach()) + 1,
    "half": lambda a: a.float().to(a.dtype) + a.half().to(a.dtype),
    "fft": lambda a: torch.fft.rfft(a).abs(),
    "complex": lambda a: (torch.complex(a, a.flip(0)) * torch.complex(a, a)).real,
    "quantile": lambda a: torch.quantile(a, torch.tensor([0.25, 0.5])),
    "kthvalue": lambda a: a.kthvalue(2).values.reshape(1) + a.median(),
    "std_mean": lambda a: torch.stack(torch.std_mean(a)),
    "mse_loss": lambda a: functional.mse_loss(a, 2 * a).reshape(1),
    "cross_entropy": lambda a: functional.cross_entropy(a[None], torch.tensor([1])).reshape(1),
    "block_diag": lambda a: torch.block_diag(a[:2, None], a[2:, None]),
    "interpolate": lambda a: functional.interpolate(a[None, None], size=8, mode="linear")[0, 0],
    "svd": lambda a: torch.linalg.svdvals(torch.outer(a, a) + torch.eye(4)),
    "batch_norm": lambda a: functional.batch_norm(a.view(2, 2), torch.zeros(2), torch.ones(2)),
    "conv1d": lambda a: functional.conv1d(a[None, None], torch.ones(1, 1, 3), padding=1)[0, 0],
    "attention": lambda a: functional.scaled_dot_product_attention(*[a.reshape(1, 2, 2)] * 3)[0],
    "embedding": lambda a: functional.embedding((a > 0).long(), torch.arange(6.0).reshape(2, 3)),
    "sparse": lambda a: torch.sparse.mm(torch.eye(4).to_sparse(), a[:, None])[:, 0],
    "cond": lambda a: torch.cond(a.sum() > 0, lambda x: x + 1, lambda x: x - 1, (a,)),
    "bernoulli": lambda a: a * torch.bernoulli(torch.full((4,), 0.5)),
    "bernoulli of a": lambda a: torch.bernoulli(torch.sigmoid(a)),
    "multinomial": lambda a: a[torch.multinomial(torch.ones(4), 2)],
    "uniform_": lambda a: a + torch.empty(4).uniform_(),
    "normal_": lambda a: a + torch.zeros(4).normal_(),
    "randperm": lambda a: a[torch.randperm(4)],
    "dropout": lambda a: functional.dropout(a, 0.5, training=True),
    "rrelu": lambda a: functional.rrelu(a, training=True),
    "gumbel_softmax": lambda a: functional.gumbel_softmax(a),
    "numpy.random": lambda a: a + float(np.random.default_rng().normal()),
    "inner sample": lambda a: dist.Normal(a, 1.0).sample(),
    "generator": lambda a: a + torch.rand(4, generator=torch.Generator().manual_seed(0)),
    "site changed in place": lambda a: a.mul_(2.0),
}
