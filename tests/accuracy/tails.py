"""Exact tails in mpmath that stay quick for extreme parameters: each smaller tail by a series of its own."""

from __future__ import annotations

from typing import Any

import mpmath as mp

from tests.accuracy.oracle import Pair, phi


def location_scale(standard: Any) -> Any:
    """Tails of loc + scale z, with the tails of z given further parameters."""
    return lambda x, loc, scale, *rest: standard((x - loc) / scale, *rest)


def mirrored(pair: Pair) -> Pair:
    """Lower and upper tail exchanged."""
    return pair[1], pair[0]


def gamma(x: mp.mpf, a: mp.mpf) -> Pair:
    """Regularised incomplete gamma functions: Kummer's series below a + 1 (DLMF 8.11.4), Legendre's fraction above."""
    if x <= 0:
        return mp.mpf(0), mp.mpf(1)
    front = a * mp.log(x) - x - mp.loggamma(a)
    small = mp.mpf(10) ** (-mp.mp.dps - 2)
    if x < a + 1:
        total = term = 1 / a
        n = a
        while term > small * total:
            n += 1
            term *= x / n
            total += term
        lower = mp.exp(front) * total
        return lower, 1 - lower
    tiny = mp.mpf(10) ** (-10 * mp.mp.dps)
    b = x + 1 - a
    c, d = 1 / tiny, 1 / b
    h, i = d, 0
    while True:
        i += 1
        an = -i * (i - a)
        b += 2
        d = 1 / (an * d + b)
        c = b + an / c
        step = c * d
        h *= step
        if abs(step - 1) < small:
            break
    upper = mp.exp(front) * h
    return 1 - upper, upper


def beta(x: mp.mpf, y: mp.mpf, a: mp.mpf, b: mp.mpf) -> Pair:
    """Regularised incomplete beta functions of x and y = 1 - x, by the fraction of DLMF 8.17.22."""
    if x <= 0 or y <= 0:
        return (mp.mpf(0), mp.mpf(1)) if x <= 0 else (mp.mpf(1), mp.mpf(0))
    if x * (a + b + 2) > a + 1:
        return mirrored(beta(y, x, b, a)) if y * (a + b + 2) <= b + 1 else mirrored(_beta(y, x, b, a))
    return _beta(x, y, a, b)


def _beta(x: mp.mpf, y: mp.mpf, a: mp.mpf, b: mp.mpf) -> Pair:
    small = mp.mpf(10) ** (-mp.mp.dps - 2)
    front = a * mp.log(x) + b * mp.log(y) + mp.loggamma(a + b) - mp.loggamma(a) - mp.loggamma(b)
    c = mp.mpf(1)
    d = 1 / (1 - (a + b) * x / (a + 1))
    h, m = d, 0
    while True:
        m += 1
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (1 + even * d)
        c = 1 + even / c
        h *= d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / (1 + odd * d)
        c = 1 + odd / c
        step = d * c
        h *= step
        if abs(step - 1) < small:
            break
    lower = mp.exp(front) * h / a
    return lower, 1 - lower


def student(t: mp.mpf, df: mp.mpf) -> Pair:
    """Student's t by the incomplete beta function (DLMF 8.17)."""
    square = t * t
    tail = beta(df / (df + square), square / (df + square), df / 2, mp.mpf(1) / 2)[0] / 2
    return (tail, 1 - tail) if t < 0 else (1 - tail, tail)


def fisher(x: mp.mpf, first: mp.mpf, second: mp.mpf) -> Pair:
    """Fisher-Snedecor by the incomplete beta function."""
    total = first * x + second
    return beta(first * x / total, second / total, first / 2, second / 2)


def inverse_gamma(x: mp.mpf, concentration: mp.mpf, rate: mp.mpf) -> Pair:
    """The reciprocal of a gamma variable."""
    return mirrored(gamma(rate / x, concentration))


def von_mises(x: mp.mpf, loc: mp.mpf, concentration: mp.mpf) -> Pair:
    """Between cuts at -pi and pi: Fourier series whose ratios of Bessel functions come by recurrence (DLMF 10.29.1)."""
    count = int(2 * mp.sqrt(concentration) * mp.sqrt(mp.mp.dps * 4) + mp.mp.dps * 2 + 20)
    ratio, ratios = mp.mpf(0), []
    for j in range(count, 0, -1):
        ratio = 1 / (2 * j / concentration + ratio)  # I_j / I_{j - 1}
        ratios.append(ratio)

    def integral(z: mp.mpf) -> mp.mpf:
        turn = mp.expj(z)
        total, product, power = mp.mpf(0), mp.mpf(1), mp.mpc(1)
        for j, ratio in enumerate(reversed(ratios), 1):
            product *= ratio
            power *= turn
            total += product * power.imag / j
            if product < mp.mpf(10) ** (-mp.mp.dps):
                break
        return z / (2 * mp.pi) + total / mp.pi

    middle, start = integral(x - loc), integral(-mp.pi - loc)
    return middle - start, 1 + start - middle


def poisson(x: mp.mpf, rate: mp.mpf) -> Pair:
    """Dequantised: x = k + u."""
    k = mp.floor(x)
    mass = mp.exp(k * mp.log(rate) - rate - mp.loggamma(k + 1))
    below = gamma(rate, k)[1] if k > 0 else mp.mpf(0)
    return below + (x - k) * mass, gamma(rate, k + 1)[0] + (k + 1 - x) * mass


def negative_binomial(x: mp.mpf, failures: mp.mpf, log_odds: mp.mpf) -> Pair:
    """Dequantised number of successes before so many failures."""
    k = mp.floor(x)
    p, q = 1 / (1 + mp.exp(-log_odds)), 1 / (1 + mp.exp(log_odds))
    mass = mp.exp(
        mp.loggamma(k + failures) - mp.loggamma(failures) - mp.loggamma(k + 1) + failures * mp.log(q) + k * mp.log(p)
    )
    below = beta(q, p, failures, k)[0] if k > 0 else mp.mpf(0)
    return below + (x - k) * mass, beta(p, q, k + 1, failures)[0] + (k + 1 - x) * mass


def geometric(x: mp.mpf, log_odds: mp.mpf) -> Pair:
    """Dequantised number of failures before a success."""
    k = mp.floor(x)
    p, log_q = 1 / (1 + mp.exp(-log_odds)), -mp.log1p(mp.exp(log_odds))
    mass = p * mp.exp(k * log_q)
    return -mp.expm1(k * log_q) + (x - k) * mass, mp.exp((k + 1) * log_q) + (k + 1 - x) * mass


def table(masses: list[mp.mpf], x: mp.mpf) -> Pair:
    """Dequantised levels 0, 1, ... with these masses, normalised here."""
    k = min(int(mp.floor(x)), len(masses) - 1)
    total, part = mp.fsum(masses), x - k
    lower, upper = mp.fsum(masses[:k]) + part * masses[k], mp.fsum(masses[k + 1 :]) + (1 - part) * masses[k]
    return lower / total, upper / total


def gumbel(z: mp.mpf) -> Pair:
    """exp(-exp(-z))."""
    small = mp.exp(-z)
    return mp.exp(-small), -mp.expm1(-small)


def weibull(x: mp.mpf, scale: mp.mpf, concentration: mp.mpf) -> Pair:
    """Survival exp(-(x / scale)^concentration)."""
    hazard = (x / scale) ** concentration
    return -mp.expm1(-hazard), mp.exp(-hazard)


def pareto(x: mp.mpf, scale: mp.mpf, alpha: mp.mpf) -> Pair:
    """Survival (scale / x)^alpha."""
    log_sf = -alpha * mp.log(x / scale)
    return -mp.expm1(log_sf), mp.exp(log_sf)


def kumaraswamy(x: mp.mpf, a: mp.mpf, b: mp.mpf) -> Pair:
    """Survival (1 - x^a)^b."""
    log_sf = b * mp.log1p(-(x**a))
    return -mp.expm1(log_sf), mp.exp(log_sf)


def soft_laplace(z: mp.mpf) -> Pair:
    """(2 / pi) arctan(exp z)."""
    return 2 / mp.pi * mp.atan(mp.exp(z)), 2 / mp.pi * mp.atan(mp.exp(-z))


def asymmetric_laplace(x: mp.mpf, loc: mp.mpf, scale: mp.mpf, asymmetry: mp.mpf) -> Pair:
    """An exponential to each side."""
    left, right = scale * asymmetry, scale / asymmetry
    z, total = x - loc, left + right
    if z < 0:
        lower = left / total * mp.exp(z / left)
        return lower, 1 - lower
    upper = right / total * mp.exp(-z / right)
    return 1 - upper, upper


def soft_asymmetric_laplace(x: mp.mpf, loc: mp.mpf, scale: mp.mpf, asymmetry: mp.mpf, softness: mp.mpf) -> Pair:
    """An asymmetric Laplace variable plus a normal one: by parts."""
    z = (x - loc) / scale
    left, right, u = asymmetry, 1 / asymmetry, z / softness
    below = left * mp.exp(softness**2 / (2 * left**2) + z / left) * phi(-u - softness / left)[0]
    above = right * mp.exp(softness**2 / (2 * right**2) - z / right) * phi(u - softness / right)[0]
    lower, upper = phi(u)
    share = (below - above) / (left + right)
    return lower + share, upper - share


def normal(x: mp.mpf, loc: mp.mpf, scale: mp.mpf) -> Pair:
    """Normal with location and scale."""
    return phi((x - loc) / scale)


def mixture(tails: Any) -> Any:
    """Tails of a mixture of components with these."""

    def mixed(x: mp.mpf, logits: list[mp.mpf], *parameters: list[mp.mpf]) -> Pair:
        weights = [mp.exp(v) for v in logits]
        parts = [tails(x, *values) for values in zip(*parameters, strict=True)]
        lower, upper = (mp.fsum(w * p[side] for w, p in zip(weights, parts, strict=True)) for side in (0, 1))
        return lower / mp.fsum(weights), upper / mp.fsum(weights)

    return mixed
