"""The same programs as a good engineer writes each of them in PyTorch, for that program alone.

A density takes examples ``[B, D]`` in the order of the program's sites and the unconstrained parameters in the order
of their first use, and returns ``[B]``. A draw takes noise ``[B, D]`` and returns examples ``[B, D]``.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from emfc.cli.bench.programs import BETA, COUNTIES, HIDDEN, RHO, SIGMA, START, TIME_STEP, county_of, floor_of

__all__ = [
    "autoregression",
    "brownian",
    "draw_autoregression",
    "draw_brownian",
    "draw_gated_recurrent",
    "draw_local_trend",
    "draw_lorenz",
    "draw_ornstein_uhlenbeck",
    "draw_stochastic_volatility",
    "gated_recurrent",
    "hidden_markov",
    "local_trend",
    "lorenz",
    "ornstein_uhlenbeck",
    "radon",
    "stochastic_volatility",
]

LOG_TWO_PI = math.log(2 * math.pi)
BLOCK = 64


def _squares(residual: Tensor) -> Tensor:
    """Sum of squares over all but the first dimension."""
    return residual.square().flatten(1).sum(1)


def _normal(squares: Tensor, log_scale: Tensor, count: int) -> Tensor:
    """Log density of `count` Normal residuals with one scale, of which the sum of squares is given."""
    return -0.5 * torch.exp(-2 * log_scale) * squares - count * (log_scale + 0.5 * LOG_TWO_PI)


def _standard(squares: Tensor, scale: float, count: int) -> Tensor:
    """The same for a known scale."""
    return squares * (-0.5 / scale**2) - count * (math.log(scale) + 0.5 * LOG_TWO_PI)


# ---------------------------------------------------------------------- densities


def brownian(x: Tensor, log_scale: Tensor) -> Tensor:
    """Density of a random walk."""
    steps = x[:, 1:] - x[:, :-1]
    return _standard(x[:, 0].square(), START, 1) + _normal(_squares(steps), log_scale, steps.shape[1])


def ornstein_uhlenbeck(x: Tensor, decay: Tensor, log_scale: Tensor) -> Tensor:
    """Density of a series that falls back to zero."""
    steps = torch.addcmul(x[:, 1:], decay, x[:, :-1], value=-1)
    return _standard(x[:, 0].square(), 1.0, 1) + _normal(_squares(steps), log_scale, steps.shape[1])


def autoregression(x: Tensor, first: Tensor, second: Tensor, log_scale: Tensor) -> Tensor:
    """Density of an autoregressive series of order two."""
    steps = x[:, 2:] - first * x[:, 1:-1] - second * x[:, :-2]
    return _standard(_squares(x[:, :2]), 1.0, 2) + _normal(_squares(steps), log_scale, steps.shape[1])


def local_trend(x: Tensor, slope_scale: Tensor, level_scale: Tensor, noise_scale: Tensor) -> Tensor:
    """Density of slopes, levels and measurements."""
    slope, level, y = x.reshape(len(x), -1, 3).movedim(-1, 0).contiguous()
    count = slope.shape[1] - 1
    return (
        _standard(slope[:, 0].square(), START, 1)
        + _standard(level[:, 0].square(), 1.0, 1)
        + _normal(_squares(slope[:, 1:] - slope[:, :-1]), slope_scale, count)
        + _normal(_squares(level[:, 1:] - level[:, :-1] - slope[:, :-1]), level_scale, count)
        + _normal(_squares(y - level), noise_scale, count + 1)
    )


def lorenz(x: Tensor, log_scale: Tensor) -> Tensor:
    """Density of paths through the Lorenz equations."""
    states = x.reshape(len(x), -1, 3).movedim(-1, 0).contiguous()
    x0, y0, z0 = states[:, :, :-1]
    x1, y1, z1 = states[:, :, 1:]
    dx = x1 - x0 - (TIME_STEP * SIGMA) * (y0 - x0)
    dy = y1 - y0 - TIME_STEP * (x0 * (RHO - z0) - y0)
    dz = z1 - z0 - TIME_STEP * (x0 * y0 - BETA * z0)
    squares = _squares(dx) + _squares(dy) + _squares(dz)
    first = _standard(_squares(states[:, :, 0].T), 1.0, 3)
    return first + _normal(squares, log_scale, 3 * dx.shape[1])


def stochastic_volatility(x: Tensor, mean: Tensor, persistence: Tensor, log_scale: Tensor) -> Tensor:
    """Density of log variances and returns."""
    h, r = x.reshape(len(x), -1, 2).movedim(-1, 0).contiguous()
    steps: Tensor = h[:, 1:] - persistence * h[:, :-1] - (1 - persistence) * mean
    returns: Tensor = -0.5 * (r.square() * torch.exp(-h) + h).sum(1) - 0.5 * LOG_TWO_PI * h.shape[1]
    return _standard((h[:, 0] - mean).square(), 0.5, 1) + _normal(_squares(steps), log_scale, steps.shape[1]) + returns


@cache
def _houses(steps: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Constants of the program, made once."""
    counties = torch.tensor(county_of(steps), device=device)
    return counties, torch.tensor(floor_of(steps), dtype=dtype, device=device)


def radon(x: Tensor) -> Tensor:
    """Density of partly pooled counties and their houses."""
    level, slope, spread, noise = x[:, :4].unbind(1)
    county, y = x[:, 4 : 4 + COUNTIES], x[:, 4 + COUNTIES :]
    index, floor = _houses(y.shape[1], x.dtype, x.device)
    residual = torch.addcmul(y - county.index_select(1, index), slope[:, None], floor, value=-1)
    half = _standard(spread.square() + noise.square(), 1.0, 2) + 2 * math.log(2)
    return (
        _standard(level.square() + slope.square(), 10.0, 2)
        + half
        + _normal(_squares(county - level[:, None]), spread.log(), COUNTIES)
        + _normal(_squares(residual), noise.log(), y.shape[1])
    )


def gated_recurrent(x: Tensor, *raw: Tensor) -> Tensor:
    """Density of a series driven by a gated recurrent unit, by PyTorch's own sequence kernel."""
    *cell, weight, bias = raw
    hidden = torch.zeros(1, len(x), HIDDEN, dtype=x.dtype, device=x.device)
    states, _ = torch.gru(x[:, :-1, None], hidden, cell, True, 1, 0.0, False, False, True)
    loc, log_scale = torch.nn.functional.linear(states, weight, bias).unbind(-1)
    z = (x[:, 1:] - loc) * torch.exp(-log_scale)
    rest = -(0.5 * z.square() + log_scale).sum(1) - 0.5 * LOG_TWO_PI * z.shape[1]
    return _standard(x[:, 0].square(), 1.0, 1) + rest


def hidden_markov(x: Tensor, logits: Tensor, locs: Tensor, log_scales: Tensor) -> Tensor:
    """Density of a hidden Markov chain, by the forward recursion on probabilities that are scaled at each step."""
    z = (x.T.unsqueeze(-1) - locs) * torch.exp(-log_scales)
    emission = -0.5 * z.square() - log_scales - 0.5 * LOG_TWO_PI
    highest = emission.amax(-1, keepdim=True).detach()
    likelihoods = torch.exp(emission - highest).unbind(0)
    transition = logits.softmax(-1)
    joint = likelihoods[0] / len(locs)
    totals = []
    for likelihood in likelihoods[1:]:
        total = joint.sum(-1, keepdim=True)
        totals.append(total)
        joint = (joint / total) @ transition * likelihood
    totals.append(joint.sum(-1, keepdim=True))
    return torch.cat(totals, -1).log().sum(-1) + highest.sum((0, 2))


# ---------------------------------------------------------------------- draws


def _scaled(noise: Tensor, starts: tuple[float, ...], log_scale: Tensor) -> Tensor:
    """Noise ``[B, T]`` times known scales at its start and one learned scale after it."""
    scale = log_scale.exp().to(noise.dtype)
    scales = torch.cat([noise.new_tensor(starts), scale.expand(noise.shape[1] - len(starts))])
    return noise * scales


def draw_brownian(noise: Tensor, log_scale: Tensor) -> Tensor:
    """Random walks of noise."""
    return _scaled(noise, (START,), log_scale).cumsum(1)


def draw_local_trend(noise: Tensor, slope_scale: Tensor, level_scale: Tensor, noise_scale: Tensor) -> Tensor:
    """Slopes, levels and measurements of noise."""
    of_slope, of_level, of_y = noise.reshape(len(noise), -1, 3).movedim(-1, 0).contiguous()
    slope = _scaled(of_slope, (START,), slope_scale).cumsum(1)
    moved = torch.nn.functional.pad(slope[:, :-1], (1, 0))
    level = (_scaled(of_level, (1.0,), level_scale) + moved).cumsum(1)
    return torch.stack([slope, level, torch.addcmul(level, noise_scale.exp(), of_y)], -1).flatten(1)


def _filtered(steps: Tensor, first: Tensor, second: Tensor) -> Tensor:
    r"""Linear recurrence :math:`x_t = u_t + a x_{t-1} + b x_{t-2}` over ``[B, T]``, in blocks.

    Within a block the recurrence is a triangular matrix; two numbers carry it from block to block. Nothing is divided
    by a power of a coefficient, so that long series are as exact as short ones.
    """
    length = steps.shape[1]
    blocks: Tensor = torch.nn.functional.pad(steps, (0, -length % BLOCK)).unflatten(1, (-1, BLOCK))
    unit = torch.eye(BLOCK + 2, dtype=steps.dtype, device=steps.device)
    one_before = torch.nn.functional.pad(first.expand(BLOCK), (1, 0)).diag_embed(-1)
    system = unit - one_before - second.expand(BLOCK).diag_embed(-2)
    response: Tensor = torch.linalg.solve_triangular(system, unit, upper=False)[2:]
    inside = blocks @ response[:, 2:].T
    of_state, of_last = response[:, :2].T, response[-2:, :2].T
    state = torch.zeros_like(inside[:, 0, -2:])
    states = [state]
    for last in inside[:, :-1, -2:].unbind(1):
        state = torch.addmm(last, state, of_last)
        states.append(state)
    return (inside + torch.stack(states, 1) @ of_state).flatten(1)[:, :length]


def draw_ornstein_uhlenbeck(noise: Tensor, decay: Tensor, log_scale: Tensor) -> Tensor:
    """Series of noise that fall back to zero."""
    return _filtered(_scaled(noise, (1.0,), log_scale), decay, torch.zeros_like(decay))


def draw_autoregression(noise: Tensor, first: Tensor, second: Tensor, log_scale: Tensor) -> Tensor:
    """Autoregressive series of order two of noise; the two first values stand alone."""
    scaled = _scaled(noise, (1.0, 1.0), log_scale)
    alone = torch.cat([scaled[:, :1], scaled[:, 1:2] - first * scaled[:, :1], scaled[:, 2:]], 1)
    return _filtered(alone, first, second)


def draw_lorenz(noise: Tensor, log_scale: Tensor) -> Tensor:
    """Paths through the Lorenz equations, step by step on contiguous columns, seven operations for each step."""
    columns = noise.T.reshape(-1, 3, len(noise))
    x, y, z = columns[0]
    path = [x, y, z]
    for of_x, of_y, of_z in (columns[1:] * log_scale.exp()).unbind(0):
        x, y, z = (
            torch.lerp(x, y, TIME_STEP * SIGMA) + of_x,
            torch.addcmul(torch.add(of_y, y, alpha=1 - TIME_STEP), x, RHO - z, value=TIME_STEP),
            torch.addcmul(torch.add(of_z, z, alpha=1 - TIME_STEP * BETA), x, y, value=TIME_STEP),
        )
        path += [x, y, z]
    return torch.stack(path, 1)


def draw_stochastic_volatility(noise: Tensor, mean: Tensor, persistence: Tensor, log_scale: Tensor) -> Tensor:
    """Log variances step by step, and all returns at once."""
    of_h, of_r = noise.T.reshape(-1, 2, len(noise)).movedim(1, 0)
    h = mean + 0.5 * of_h[0]
    path = [h]
    for step in (of_h[1:] * log_scale.exp() + (1 - persistence) * mean).unbind(0):
        h = torch.addcmul(step, persistence, h)
        path.append(h)
    volatility = torch.stack(path)
    return torch.stack([volatility, of_r * torch.exp(volatility / 2)], 1).flatten(0, 1).T


def draw_gated_recurrent(noise: Tensor, *raw: Tensor) -> Tensor:
    """Series driven by a gated recurrent unit, step by step."""
    *cell, weight, bias = raw
    columns = noise.unsqueeze(-1).unbind(1)
    x = columns[0]
    path = [x]
    hidden = torch.zeros(len(noise), HIDDEN, dtype=noise.dtype, device=noise.device)
    for column in columns[1:]:
        hidden = torch.gru_cell(x, hidden, *cell)
        loc, log_scale = torch.nn.functional.linear(hidden, weight, bias).split(1, -1)
        x = torch.addcmul(loc, torch.exp(log_scale), column)
        path.append(x)
    return torch.cat(path, 1)
