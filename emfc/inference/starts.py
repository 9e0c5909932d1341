"""Where a variational fit starts: at the mode with the curvature there, or at the prior."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emfc.inference.family_affine import diagonal_of
from emfc.layers.structured import StructuredLayer, StructuredTransform

__all__ = ["Mode", "NoStart", "find_mode", "hessian", "lbfgs", "mode_start", "value_and_gradient", "whitening"]

LogDensity = Callable[[Tensor], Tensor]

NEWTON_LIMIT = 256
"""Up to this many dimensions Newton steps with the whole Hessian are taken; beyond, L-BFGS steps."""

LARGEST_HESSIAN = 2000
"""Beyond so many dimensions no Hessian is taken."""

AT_ONCE = 512
"""Number of points at which gradients are taken together."""


class NoStart(ArithmeticError):
    """There is no mode to start from, and why."""


@dataclass
class Mode:
    """A point of highest density.

    Attributes:
        loc: The point ``[N]``.
        log_density: Log density there.
        gradient: Largest gradient entry there, in units of the curvature: about 0 at a true mode.
        iterations: Number of iterations taken.
    """

    loc: Tensor
    log_density: float
    gradient: float
    iterations: int


def value_and_gradient(log_density: LogDensity, points: Tensor) -> tuple[Tensor, Tensor]:
    """Log densities ``[S]`` and gradients ``[S, N]`` at points ``[S, N]``; what is not finite is -inf and 0."""
    values, gradients = [], []
    for part in points.detach().split(AT_ONCE):
        with torch.enable_grad():
            held = part.clone().requires_grad_()
            value = log_density(held)
            (gradient,) = torch.autograd.grad(value.sum(), held)
        good = torch.isfinite(value.detach()) & torch.isfinite(gradient).all(-1)
        values.append(torch.where(good, value.detach(), torch.full_like(value.detach(), -torch.inf)))
        gradients.append(torch.where(good[:, None], gradient, torch.zeros_like(gradient)))
    return torch.cat(values), torch.cat(gradients)


def hessian(log_density: LogDensity, point: Tensor, *, scale: Tensor | None = None) -> Tensor:
    """Hessian ``[N, N]`` of a log density by central differences of its gradients, all taken in one batch.

    Args:
        log_density: From points ``[S, N]`` to ``[S]``.
        point: Where, ``[N]``.
        scale: Typical length ``[N]`` of each direction; left out, 1.
    """
    size = point.numel()
    step = torch.finfo(point.dtype).eps ** (1 / 3) * (torch.ones_like(point) if scale is None else scale)
    moves = torch.diag(step)
    _, gradients = value_and_gradient(log_density, torch.cat([point + moves, point - moves]))
    result: Tensor = (gradients[:size] - gradients[size:]) / (2 * step[:, None])
    return 0.5 * (result + result.mT)


def find_mode(
    log_density: LogDensity, start: Tensor, *, iterations: int = 200, deadline: float | None = None
) -> tuple[Mode, Tensor]:
    """Climbs to a mode and returns it with the Hessian ``[N, N]`` there.

    In up to ``NEWTON_LIMIT`` dimensions by Newton steps with the absolute eigenvalues of the Hessian, whose length is
    the best of a batch; in more by L-BFGS.

    Args:
        log_density: From points ``[S, N]`` to ``[S]``.
        start: First point ``[N]``.
        iterations: Most iterations.
        deadline: Value of ``time.perf_counter()`` at which to end.

    Raises:
        NoStart: The density at the start is 0 or not a number.
    """
    newton = start.numel() <= NEWTON_LIMIT
    point, value, used = (_newton if newton else lbfgs)(log_density, start, iterations, deadline)
    curvature = hessian(log_density, point)
    curvature = hessian(log_density, point, scale=_lengths(curvature))
    _, gradient = value_and_gradient(log_density, point[None])
    slope = float((gradient[0] * _lengths(curvature)).abs().max())
    return Mode(point, value, slope, used), curvature


def whitening(curvature: Tensor) -> Tensor:
    """Lower-triangular ``[N, N]`` factor of the inverse of a negative Hessian, made positive definite.

    Eigenvalues are taken by their size, and none below 1e-10 of the largest.

    Raises:
        NoStart: The Hessian is not finite, or zero.
    """
    values, vectors = _eigen(-curvature)
    covariance = (vectors / values) @ vectors.mT
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(0.5 * (covariance + covariance.mT))
    if int(failed):
        raise NoStart("the curvature at the mode has no Cholesky factor")
    return factor


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    if not bool(torch.isfinite(matrix).all()):
        raise NoStart("the curvature at the mode is not finite")
    lengths = matrix.diagonal().abs().clamp(min=torch.finfo(matrix.dtype).tiny).rsqrt()
    lengths = torch.where(matrix.diagonal() == 0, torch.ones_like(lengths), lengths)
    try:
        values, vectors = torch.linalg.eigh(matrix * lengths[:, None] * lengths)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise NoStart("the curvature at the mode has no eigenvalues that can be computed") from error
    size = values.abs()
    if float(size.max()) == 0:
        raise NoStart("the density is flat at the mode")
    # Scaled coordinates: matrix^-1 = lengths (V S^-1 V^T) lengths, kept as (U / values) U^T.
    return size.clamp(min=1e-10 * float(size.max())), vectors * lengths[:, None]


def _lengths(curvature: Tensor) -> Tensor:
    """Lengths over which the density changes, from the diagonal of a Hessian."""
    diagonal = curvature.diagonal().abs()
    found = diagonal.clamp(min=1e-12).rsqrt().clamp(1e-6, 1e3)
    return torch.where(torch.isfinite(found), found, torch.ones_like(found))


def _newton(
    log_density: LogDensity, start: Tensor, iterations: int, deadline: float | None
) -> tuple[Tensor, float, int]:
    value, gradient = _begin(log_density, start)
    point, lengths = start, torch.ones_like(start)
    shares = 2.0 ** -torch.arange(24, dtype=start.dtype, device=start.device)
    for used in range(iterations):  # noqa: B007
        curvature = hessian(log_density, point, scale=lengths)
        lengths = _lengths(curvature)
        try:
            sizes, vectors = _eigen(-curvature)
        except NoStart:
            sizes, vectors = torch.ones_like(point), torch.eye(len(point), dtype=point.dtype, device=point.device)
        step = vectors @ ((vectors.mT @ gradient) / sizes)
        with torch.no_grad():
            tried = torch.nan_to_num(log_density(point + shares[:, None] * step), nan=-torch.inf, posinf=-torch.inf)
        best = int(tried.argmax())
        gain = float(tried[best]) - value
        if not gain > 0:
            break
        point, value = point + shares[best] * step, float(tried[best])
        gradient = value_and_gradient(log_density, point[None])[1][0]
        if gain < 1e-9 * (1 + abs(value)) or (deadline is not None and time.perf_counter() > deadline):
            break
    return point, value, used + 1


def lbfgs(
    log_density: LogDensity, start: Tensor, iterations: int, deadline: float | None, *, memory: int = 20
) -> tuple[Tensor, float, int]:
    """Climbs by L-BFGS steps, each of the best length of a batch: point ``[N]``, log density and iterations.

    Source: Nocedal and Wright (2006), "Numerical optimization", algorithm 7.4.

    Raises:
        NoStart: The density at the start is 0 or not a number.
    """
    value, gradient = _begin(log_density, start)
    point, moves, changes = start, list[Tensor](), list[Tensor]()
    shares = 2.0 ** torch.arange(2, -22, -1, dtype=start.dtype, device=start.device)
    for used in range(iterations):  # noqa: B007
        step = _two_loops(gradient, moves, changes)
        if not moves:
            step = step / step.norm().clamp(min=1)
        with torch.no_grad():
            tried = torch.nan_to_num(log_density(point + shares[:, None] * step), nan=-torch.inf, posinf=-torch.inf)
        best = int(tried.argmax())
        gain = float(tried[best]) - value
        if not gain > 0:
            if not moves:
                break
            moves, changes = [], []
            continue
        new = point + shares[best] * step
        new_gradient = value_and_gradient(log_density, new[None])[1][0]
        move, change = new - point, gradient - new_gradient
        if float(move @ change) > 1e-10 * float(move.norm() * change.norm()):
            moves, changes = [*moves, move][-memory:], [*changes, change][-memory:]
        point, value, gradient = new, float(tried[best]), new_gradient
        if gain < 1e-9 * (1 + abs(value)) or (deadline is not None and time.perf_counter() > deadline):
            break
    return point, value, used + 1


def _two_loops(gradient: Tensor, moves: list[Tensor], changes: list[Tensor]) -> Tensor:
    """The direction of L-BFGS: an estimate of the inverse negative Hessian times the gradient."""
    direction: Tensor = gradient
    shares: list[Tensor] = []
    for move, change in zip(reversed(moves), reversed(changes), strict=True):
        share = (move @ direction) / (move @ change)
        direction = direction - share * change
        shares.append(share)
    if moves:
        direction = direction * (moves[-1] @ changes[-1]) / (changes[-1] @ changes[-1])
    for move, change, share in zip(moves, changes, reversed(shares), strict=True):
        direction = direction + move * (share - (change @ direction) / (move @ change))
    return direction


def _begin(log_density: LogDensity, start: Tensor) -> tuple[float, Tensor]:
    value, gradient = value_and_gradient(log_density, start[None])
    if not bool(torch.isfinite(value[0])):
        raise NoStart("the density where the search for a mode begins is 0 or not a number")
    return float(value[0]), gradient[0]


def mode_start(
    flow: Any, log_density: LogDensity, *, like: Tensor, deadline: float | None, closed: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Location ``[N]`` and Cholesky factor ``[N, N]`` of the normal at the mode in the program's noise space.

    The density there is that of the target times the Jacobian of the program with open gates, which is
    :math:`p(y \mid T(z)) \, N(z; 0, 1)` for a proper prior.

    Args:
        flow: A ``VariationalFlow``.
        log_density: Of examples.
        like: A tensor with the dtype and device of the flow.
        deadline: Value of ``time.perf_counter()`` at which the search ends.
        closed: Whether the gates are closed instead: then the space is that of the constraint maps.

    Raises:
        NoStart: There is no mode to start from, and why.
    """
    if flow.noise_dim == 0:
        raise NoStart("there is nothing to learn")
    if flow.noise_dim > LARGEST_HESSIAN:
        raise NoStart(f"{flow.noise_dim} numbers are too many for a Hessian")
    if closed and flow.layer.gate is None:
        raise NoStart("a family without gates has none to close")
    density, _ = in_noise_space(flow, log_density, like=like, closed=closed)
    mode, curvature = find_mode(density, like.new_zeros(flow.noise_dim), deadline=deadline)
    scale = whitening(curvature)
    spread = diagonal_of(scale)
    if not bool(mode.loc.isfinite().all() & scale.isfinite().all() & spread.isfinite().all() & (spread > 0).all()):
        raise NoStart("the mode or its curvature is too large or too small for the precision")
    return mode.loc, scale


def in_noise_space(
    flow: Any, log_density: LogDensity, *, like: Tensor, closed: bool = False
) -> tuple[LogDensity, StructuredTransform]:
    """A density of examples in the noise space of the program, and the program's transform from that space.

    Args:
        flow: A ``VariationalFlow``.
        log_density: Of examples.
        like: A tensor with the dtype and device of the flow.
        closed: Whether the program's gates are closed instead of open: then the space is that of the constraint maps.
    """
    held = flow.layer
    layer = StructuredLayer(held.program, gate=held.gate if closed else None, gate_form=held.gate_form)
    layer.load_state_dict(
        {name: value for name, value in held.state_dict().items() if "gate" not in name}, strict=False
    )
    if closed:
        layer.set_gates(0.0)
    layer.to(like).requires_grad_(False)
    transform = layer()

    def in_noise(points: Tensor) -> Tensor:
        value, ladj = transform.call_and_ladj(points)
        total: Tensor = log_density(value) + ladj
        return total

    return in_noise, transform
