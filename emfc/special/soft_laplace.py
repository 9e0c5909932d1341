r"""Tails of the sum of an asymmetric Laplace and a normal variable, in logs.

The variable is :math:`X = S N - a E_1 + E_2 / a` with N standard normal and E exponential. Its distribution function
is a sum of positive terms, each a ratio of normal tails; none is found by subtracting larger ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from emfc.special.elementwise import elementwise
from emfc.special.legendre import legendre_rule
from emfc.special.normal import exact_tails, log1mexp, log_ndtr, log_normal_density, ndtri_exp
from emfc.special.roots import increasing_root

__all__ = ["soft_laplace_log_density", "soft_laplace_quantile", "soft_laplace_tails"]

_LOG_TWO = math.log(2)
_SHORT = 0.1

_RULE = legendre_rule(4)


def _log_mills(t: Tensor) -> Tensor:
    r""":math:`\log(\Phi(-t) / \phi(t))`, for t no less than -10."""
    result: Tensor = torch.log(math.sqrt(0.5 * math.pi) * torch.special.erfcx(math.sqrt(0.5) * t.clamp(min=-10)))
    return result


def _log_side(u: Tensor, d: Tensor) -> Tensor:
    r""":math:`\log(e^{d^2 / 2 + u d} \Phi(-u - d))`."""
    w = u + d
    outer = log_normal_density(torch.where(w > 0, u, 0)) + _log_mills(w.clamp(min=0))
    inner = d * (u + 0.5 * d) + log_ndtr(-w.clamp(max=0))
    return torch.where(w > 0, outer, inner)


def _log_decrease(u: Tensor, d: Tensor) -> Tensor:
    r"""Minus the log of :math:`e^{d^2 / 2 - u d} \Phi(u - d) / \Phi(u)`, relatively exact for small d too."""
    t = -u
    short = d < _SHORT
    step = torch.where(short, d, 0)
    total = torch.zeros_like(t)
    for node, weight in _RULE:
        s = t + node * step
        total = total + weight * (torch.exp(-_log_mills(s)) - s)
    outside = t > 0
    far = torch.where(outside, t, 0)
    outer = _log_mills(far) - _log_mills(far + d)
    inner = log_ndtr(u.clamp(min=0)) - _log_side(t.clamp(max=0), d)
    return torch.where(short, step * total, torch.where(outside, outer, inner))


def _lower(u: Tensor, down: Tensor, up: Tensor, log_down: Tensor, log_up: Tensor) -> Tensor:
    """Log of the lower tail: the steps down by probability `log_down`, up by `log_up`."""
    log_p = log_ndtr(u)
    below = torch.logaddexp(log_p, _log_side(u, down))
    tiny = torch.finfo(u.dtype).tiny
    decrease = _log_decrease(u, up).clamp(min=tiny)
    above = log_p + log1mexp(-decrease)
    return torch.logaddexp(log_down + below, log_up + above)


def _limited(x: Tensor, softness: Tensor) -> Tensor:
    limit = torch.finfo(x.dtype).max ** 0.5 / 16
    return (x / softness).clamp(-limit, limit)


def soft_laplace_tails(asymmetry: Tensor, softness: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Log of both tails of :math:`S N - a E_1 + E_2 / a`.

    With :math:`u = x / S`, :math:`d = S / a` and :math:`g = S a` the lower tail is

    .. math::
        \frac{a^2}{1 + a^2} \left(\Phi(u) + e^{d^2 / 2 + u d} \Phi(-u - d)\right)
        + \frac{1}{1 + a^2} \left(\Phi(u) - e^{g^2 / 2 - u g} \Phi(u - g)\right),

    where the last bracket is :math:`\Phi(u)` times one minus a ratio of Mills ratios, whose log is integrated where g
    is small. The upper tail is the lower one of -x with 1 / a.

    Args:
        asymmetry: a, positive.
        softness: S, positive.
        x: Any real numbers; shapes broadcast.

    Returns:
        Finite tensors; differentiable with respect to all three.

    Source: integration by parts; DLMF 7.8 for the derivative of the Mills ratio.
    """
    u = _limited(x, softness)
    down, up = softness / asymmetry, softness * asymmetry
    odds = 2 * asymmetry.log()
    log_down, log_up = logsigmoid(odds), logsigmoid(-odds)
    log_p = _lower(u, down, up, log_down, log_up)
    log_q = _lower(-u, up, down, log_up, log_down)
    return exact_tails(log_p, log_q)


def soft_laplace_log_density(asymmetry: Tensor, softness: Tensor, x: Tensor) -> Tensor:
    """Log density of the same; arguments as of `soft_laplace_tails`."""
    u = _limited(x, softness)
    both = torch.logaddexp(_log_side(u, softness / asymmetry), _log_side(-u, softness * asymmetry))
    return both - (asymmetry + 1 / asymmetry).log()


@elementwise("soft_laplace_quantile", inputs=4)
def _quantile(asymmetry: Tensor, softness: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, ...]:
    """Newton's iteration on the log of the smaller tail, from the end of a bracket.

    Source: Bagnoli and Bergstrom, Log-concave Probability and its Applications, 2005, for the concavity of the log of
    the tail, as of every variable with a log-concave density.
    """
    lower = log_p < log_q
    log_p, log_q = exact_tails(log_p, log_q)
    target = torch.where(lower, log_p, log_q)

    def tail(x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = soft_laplace_tails(asymmetry, softness, x)
        log_tail = torch.where(lower, low, high)
        slope = torch.exp(soft_laplace_log_density(asymmetry, softness, x) - log_tail)
        return torch.where(lower, log_tail - target, target - log_tail), slope

    def hard(first: Tensor, second: Tensor) -> Tensor:
        """The sum of both variables' quantiles at half a tail, which bounds the quantile of the sum."""
        odds = 2 * asymmetry.log()
        below, above = first - logsigmoid(odds), second - logsigmoid(-odds)
        return torch.where(below < 0, below * asymmetry, -above / asymmetry)

    # A sum at most x + y needs one part at most x, or the other at most y: two tails of half the size.
    half_p, half_q = log_p - _LOG_TWO, log_q - _LOG_TWO
    low = hard(half_p, log1mexp(half_p)) + softness * ndtri_exp(half_p)
    high = hard(log1mexp(half_q), half_q) - softness * ndtri_exp(half_q)
    eps = torch.finfo(target.dtype).eps
    margin = 8 * eps * (low.abs() + high.abs() + asymmetry + 1 / asymmetry + softness)
    low, high = low - margin, high + margin
    start = torch.where(lower, low, high)
    return (increasing_root(tail, low, high, start, tolerance=4 * eps * target.abs().clamp(min=1)),)


def soft_laplace_quantile(asymmetry: Tensor, softness: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Quantile of the same from both log tails, of which the smaller counts; without gradients.

    Bracketed between sums of the two variables' own quantiles and found by Newton steps, which do not overshoot,
    for the logarithm of the tail is concave.
    """
    return _quantile(asymmetry.detach(), softness.detach(), log_p.detach(), log_q.detach())[0]
