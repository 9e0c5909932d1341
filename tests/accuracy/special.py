"""Every special function with the ranges of its arguments and its exact value."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mpmath as mp
import torch
from torch import Generator, Tensor
from torch import distributions as td

from emfc.special import (
    beta,
    beta_density,
    beta_quantile,
    fused,
    gamma,
    gamma_quantile,
    normal,
    ratios,
    soft_laplace,
    stable,
    stirling,
    student,
    student_quantile,
    von_mises,
    von_mises_mass,
)
from emfc.transforms import from_normal
from tests.accuracy import tails
from tests.accuracy.measure import DRAWS, Worst, within
from tests.accuracy.oracle import log_slope, phi
from tests.accuracy.ranges import Linear, Log, Range
from tests.special.stable_oracle import stable_tails


@dataclass(frozen=True)
class Special:
    """A function of `emfc.special`.

    Attributes:
        call: The function.
        ranges: Its arguments.
        truth: The exact values, one per output, of arguments in mpmath.
        source: What it is, in a few words.
        prepare: Makes the function's arguments of what is drawn from the ranges.
        oracle: Draws that mpmath sees, in each precision.
        digits: Of mpmath.
    """

    call: Callable[..., Any]
    ranges: dict[str, Range]
    truth: Callable[..., Sequence[mp.mpf]]
    source: str
    prepare: Callable[..., tuple[Tensor, ...]] = lambda *drawn: drawn
    oracle: int = 2000
    digits: int = 60

    def arguments(self, count: int, dtype: torch.dtype, generator: Generator) -> tuple[Tensor, ...]:
        """Random arguments, rounded to a dtype."""
        return self.prepare(*(part.draw(count, generator).to(dtype) for part in self.ranges.values()))

    def error(self, arguments: Sequence[mp.mpf], outputs: Sequence[mp.mpf], tiny: float) -> mp.mpf:
        """Largest error of the outputs, relative to max(1, |value|); `tiny` is the smallest normal number."""
        exact = self.truth(*arguments)
        return max(abs(found - value) / max(1, abs(value)) for found, value in zip(outputs, exact, strict=True))


@dataclass(frozen=True)
class Quantile(Special):
    """A function whose last two arguments are log tails: of the value, and where it has two, of that one's complement.

    `truth` gives the tails of value and complement with some shapes.
    """

    def error(self, arguments: Sequence[mp.mpf], outputs: Sequence[mp.mpf], tiny: float) -> mp.mpf:
        """Error of the smaller tail in logs, relative to what one rounding of its log and of the value makes.

        A number next to 0 stands for all that round onto it, and has none.
        """
        *shapes, log_p, log_q = arguments
        side = 0 if log_p < log_q else 1
        given = (log_p, log_q)[side]
        second = len(outputs) > 1 and outputs[1] < outputs[0]
        value = outputs[1] if second else outputs[0]
        if 0 < abs(value) < 4 * tiny:
            return mp.mpf(0)

        def tail(x: mp.mpf) -> mp.mpf:
            both = (1 - x, x) if second else (x, 1 - x)
            return mp.log(self.truth(*both[: len(outputs)], *shapes)[side])

        found, step = tail(value), value * mp.mpf(10) ** (-self.digits // 3)
        slope = (tail(value + step) - found) / step if step else mp.mpf(0)
        return abs(found - given) / (max(1, abs(given)) + abs(slope * value))


def measure_special(special: Special, seed: int = 0, seconds: float = 0.0) -> dict[str, Any]:
    """Worst error in units of rounding of max(1, |value|), and of values that are not numbers over all draws.

    Given seconds, as many draws meet mpmath as fit into that time, those of the function at least.
    """
    if seconds:
        run = lambda count: measure_special(replace(special, oracle=count), seed)  # noqa: E731
        special = replace(special, oracle=within(seconds, special.oracle, DRAWS, run))
    begun = time.perf_counter()
    figures: dict[str, Any] = {"draws": DRAWS, "oracle": special.oracle}
    for dtype, name in ((torch.float32, "float32"), (torch.float64, "float64")):
        generator = torch.Generator().manual_seed(seed)
        arguments = special.arguments(DRAWS, dtype, generator)
        outputs = special.call(*arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        worst = Worst()
        place = lambda at, given=arguments: {"arguments": [part[at].item() for part in given]}  # noqa: E731
        for output in outputs:
            worst.see(torch.where(torch.isnan(output), torch.inf, 0.0), place)
        chosen = torch.randperm(DRAWS, generator=generator)[: special.oracle].tolist()
        errors = torch.zeros(DRAWS, dtype=torch.float64)
        with mp.workdps(special.digits):
            for draw in chosen:
                given = [mp.mpf(part[draw].item()) for part in arguments]
                found = [mp.mpf(output[draw].item()) for output in outputs]
                errors[draw] = float(special.error(given, found, torch.finfo(dtype).tiny))
        worst.see(errors / torch.finfo(dtype).eps, place)
        figures[name] = {"error": {"figure": worst.figure, "place": worst.place}}
    figures["seconds"] = time.perf_counter() - begun
    return figures


def _log_phi(z: mp.mpf) -> mp.mpf:
    return mp.log(phi(z)[0])


def _quantile(log_p: mp.mpf) -> mp.mpf:
    lower = log_p < -mp.log(2)
    tail = mp.exp(log_p) if lower else -mp.expm1(log_p)
    near = float(mp.sqrt(-2 * mp.log(2 * tail)))
    z, _ = log_slope(tail, near)
    return z if lower else -z


def _logs(pair: tuple[mp.mpf, mp.mpf]) -> list[mp.mpf]:
    return [mp.log(pair[0]), mp.log(pair[1])]


def _draws(dist: td.Distribution, noise: Tensor) -> Tensor:
    """Values that have these noises, no closer to 0 than normal numbers are."""
    value = from_normal(dist).call_and_ladj(noise)[0]
    return torch.where(value.abs() < torch.finfo(value.dtype).tiny, torch.finfo(value.dtype).tiny, value)


def _gamma_place(a: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    return a, _draws(td.Gamma(a, torch.ones_like(a)), noise)


def _beta_place(a: Tensor, b: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    x = _draws(td.Beta(a, b), noise)
    rest = _draws(td.Beta(b, a), -noise)
    info = torch.finfo(x.dtype)
    grid = 0.5 * info.eps  # of numbers whose complement is one too
    smaller = torch.minimum(x, rest)
    smaller = torch.where(smaller > 1e-3, (smaller / grid).round() * grid, smaller)
    return a, b, torch.where(x < rest, smaller, 1 - smaller), torch.where(x < rest, 1 - smaller, smaller)


def _parts(x: mp.mpf, rest: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
    """A number and its complement, of which the smaller one is exact."""
    return (x, 1 - x) if x < rest else (1 - rest, rest)


def _tails_of(*drawn: Tensor) -> tuple[Tensor, ...]:
    *shapes, noise = drawn
    return (*shapes, *normal.tails_from_noise(noise))


def _student_place(df: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    return df, _draws(td.StudentT(df), noise)


def _beta_density(a: mp.mpf, b: mp.mpf, x: mp.mpf, rest: mp.mpf) -> mp.mpf:
    x, rest = _parts(x, rest)
    return (a - 1) * mp.log(x) + (b - 1) * mp.log(rest) - mp.loggamma(a) - mp.loggamma(b) + mp.loggamma(a + b)


def _log_arc(m: mp.mpf, k: mp.mpf, low: mp.mpf, high: mp.mpf) -> mp.mpf:
    pieces = [low + (high - low) * mp.mpf(part) / 16 for part in range(17)]
    mass = mp.quad(lambda turn: mp.exp(k * mp.cos(turn - m)), pieces)
    return mp.log(mass) - mp.log(2 * mp.pi * mp.besseli(0, k))


def _stirling(a: mp.mpf) -> mp.mpf:
    return mp.loggamma(a) - (a - mp.mpf(1) / 2) * mp.log(a) + a - mp.log(2 * mp.pi) / 2


def _place(noise: float) -> dict[str, Range]:
    return {"noise": Linear(-noise, noise)}


_NOISE = _place(50)
_SMALL = Log(1e-12, 1.2e3)
_FAR = _place(8)  # of values in float32; in float64 farther out the families tell

SPECIAL: dict[str, Special] = {
    "log_ndtr": Special(normal.log_ndtr, _NOISE, lambda z: [_log_phi(z)], "log Φ(e)"),
    "normal_probability": Special(fused.normal_probability, _NOISE, lambda z: [phi(z)[0]], "Φ(e)"),
    "tails_from_noise": Special(
        normal.tails_from_noise, _NOISE, lambda z: [_log_phi(z), _log_phi(-z)], "log Φ(e), log Φ(−e)"
    ),
    "ndtri_exp": Special(
        normal.ndtri_exp,
        {"−log p": _SMALL},
        lambda log_p: [_quantile(log_p)],
        "Φ⁻¹(p) of log p",
        prepare=lambda small: (-small,),
    ),
    "log1mexp": Special(
        normal.log1mexp,
        {"−log p": _SMALL},
        lambda log_p: [mp.log(-mp.expm1(log_p))],
        "log (1 − p) of log p",
        prepare=lambda small: (-small,),
    ),
    "log_gamma_tails": Special(
        gamma.log_gamma_tails,
        {"a": Log(1e-3, 1e6)} | _FAR,
        lambda a, x: _logs(tails.gamma(x, a)),
        "log P(a, x), log Q(a, x)",
        prepare=_gamma_place,
        oracle=400,
    ),
    "log_gamma_density": Special(
        gamma.log_gamma_density,
        {"a": Log(1e-3, 1e6)} | _FAR,
        lambda a, x: [(a - 1) * mp.log(x) - x - mp.loggamma(a)],
        "(a − 1) log x − x − log Γ(a)",
        prepare=_gamma_place,
    ),
    "log_gamma_leading": Special(
        gamma.log_gamma_leading,
        {"a": Log(1e-3, 1e3), "log x": Linear(-1000, -80)},
        lambda a, log_x: [
            a * log_x - mp.loggamma(1 + a),
            (a - 1) * log_x - mp.loggamma(a),
            _quantile(a * log_x - mp.loggamma(1 + a)),
        ],
        "a log x − log Γ(1 + a), log density, and noise",
    ),
    "log_beta_tails": Special(
        beta.log_beta_tails,
        {"a": Log(1e-2, 1e5), "b": Log(1e-2, 1e5)} | _FAR,
        lambda a, b, x, rest: _logs(tails.beta(*_parts(x, rest), a, b)),
        "log I_x(a, b), log I_{1−x}(b, a)",
        prepare=_beta_place,
        oracle=400,
    ),
    "log_beta_density": Special(
        beta_density.log_beta_density,
        {"a": Log(1e-2, 1e5), "b": Log(1e-2, 1e5)} | _FAR,
        lambda *arguments: [_beta_density(*arguments)],
        "log density of Beta(a, b)",
        prepare=_beta_place,
    ),
    "log_student_tails": Special(
        student.log_student_tails,
        {"degrees of freedom": Log(0.5, 1e4)} | _FAR,
        lambda df, t: _logs(tails.student(t, df)),
        "log P(T ≤ t), log P(T > t)",
        prepare=_student_place,
        oracle=400,
    ),
    "soft_laplace_tails": Special(
        soft_laplace.soft_laplace_tails,
        {"asymmetry": Log(0.1, 10), "softness": Log(0.1, 10), "x": Linear(-30, 30)},
        lambda a, s, x: _logs(tails.soft_asymmetric_laplace(x, mp.mpf(0), mp.mpf(1), a, s)),
        "log tails of S N − a E₁ + E₂ / a",
        oracle=200,
        digits=200,
    ),
    "von_mises_tails": Special(
        von_mises.von_mises_tails,
        {"loc": Linear(-3, 3), "concentration": Log(1e-3, 100), "x": Linear(-3.1, 3.1)},
        lambda m, k, x: _logs(tails.von_mises(x, m, k)),
        "log ∫_{−π}^x f, log ∫_x^π f",
        oracle=60,
        digits=250,
    ),
    "log_stable_tails": Special(
        stable.log_stable_tails,
        {"stability": Linear(1.1, 2), "skew": Linear(-0.99, 0.99), "z": Linear(-8, 8)},
        lambda a, b, z: _logs(stable_tails(z, a, b)),
        "log P(Z ≤ z), log P(Z > z)",
        oracle=10,
        digits=30,
    ),
    "gamma_quantile": Quantile(
        gamma_quantile.gamma_quantile,
        {"a": Log(1e-1, 1e6)} | _FAR,
        tails.gamma,
        "x of log P(a, x) and log Q(a, x)",
        prepare=_tails_of,
        oracle=200,
    ),
    "beta_quantile": Quantile(
        beta_quantile.beta_quantile,
        {"a": Log(1e-1, 1e5), "b": Log(1e-1, 1e5)} | _FAR,
        tails.beta,
        "x, 1 − x of log I_x(a, b) and log I_{1−x}(b, a)",
        prepare=_tails_of,
        oracle=200,
    ),
    "student_quantile": Quantile(
        student_quantile.student_quantile,
        {"degrees of freedom": Log(0.5, 1e4)} | _FAR,
        tails.student,
        "t of the log tails",
        prepare=_tails_of,
        oracle=200,
    ),
    "soft_laplace_quantile": Quantile(
        soft_laplace.soft_laplace_quantile,
        {"asymmetry": Log(0.1, 10), "softness": Log(0.1, 10)} | _FAR,
        lambda x, a, s: tails.soft_asymmetric_laplace(x, mp.mpf(0), mp.mpf(1), a, s),
        "x of the log tails",
        prepare=_tails_of,
        oracle=100,
        digits=200,
    ),
    "stable_quantile": Quantile(
        stable.stable_quantile,
        {"stability": Linear(1.1, 2), "skew": Linear(-0.99, 0.99)} | _place(5),
        stable_tails,
        "z of the log tails",
        prepare=_tails_of,
        oracle=10,
        digits=30,
    ),
    "von_mises_log_mass": Special(
        von_mises_mass.von_mises_log_mass,
        {"loc": Linear(-3, 3), "concentration": Log(1e-2, 30), "low": Linear(-3, 0), "width": Log(1e-3, 3)},
        lambda m, k, low, high, width: [_log_arc(m, k, low, high)],
        "log ∫_a^b f",
        prepare=lambda m, k, low, width: (m, k, low, low + width, (low + width) - low),
        oracle=60,
    ),
    "log_bessel_i0e": Special(
        von_mises.log_bessel_i0e,
        {"κ": Log(1e-3, 1e6)},
        lambda k: [mp.log(mp.besseli(0, k)) - k],
        "log (exp(−κ) I₀(κ))",
        oracle=400,
    ),
    "log_gamma_one_plus": Special(
        stirling.log_gamma_one_plus, {"a": Log(1e-6, 1)}, lambda a: [mp.loggamma(1 + a)], "log Γ(1 + a)"
    ),
    "digamma_less_log": Special(
        stirling.digamma_less_log, {"a": Log(1e-1, 1e6)}, lambda a: [mp.digamma(a) - mp.log(a)], "ψ(a) − log a"
    ),
    "log_minus_digamma": Special(
        beta_density.log_minus_digamma, {"a": Log(1e-1, 1e6)}, lambda a: [mp.log(a) - mp.digamma(a)], "log a − ψ(a)"
    ),
    "stirling_error": Special(
        stirling.stirling_error, {"a": Log(12, 1e6)}, lambda a: [_stirling(a)], "Stirling's error of log Γ(a)"
    ),
    "deviance": Special(stirling.deviance, {"x": Linear(-0.4, 0.4)}, lambda x: [x - mp.log1p(x)], "x − log (1 + x)"),
    "log1p_ratio": Special(
        ratios.log1p_ratio, {"w": Linear(-0.9, 10)}, lambda w: [mp.log1p(w) / w if w else mp.mpf(1)], "log (1 + w) / w"
    ),
}

# Functions with a source whose errors are those of the families that they serve, or that are no functions of numbers.
UNMEASURED = {
    "concentration_slopes": "Gamma, gradient by the concentration",
    "poisson_level": "Poisson",
    "poisson_tail_and_mass": "Poisson",
    "negative_binomial_level": "NegativeBinomial",
    "negative_binomial_tail_and_mass": "NegativeBinomial",
    "increasing_inverse": "a solver",
    "along_axis": "Stable",
    "between": "Stable",
}
