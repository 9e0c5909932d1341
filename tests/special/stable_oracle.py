"""Tails of stable laws in mpmath: by series, by the saddle's vertical line, and by Zolotarev's integral."""

from __future__ import annotations

import itertools

import mpmath as mp

DIGITS = 20


def _polar(alpha: mp.mpf, beta: mp.mpf, x: mp.mpf) -> tuple[mp.mpf, mp.mpf, mp.mpf]:
    """Distance above the point zeta, and the polar form of what multiplies v^alpha."""
    tangent = mp.tan(mp.pi * alpha / 2)
    cosine, sine = mp.cos(mp.pi * alpha / 2), mp.sin(mp.pi * alpha / 2)
    a, b = cosine - beta * tangent * sine, (1 + beta) * sine
    return x + beta * tangent, mp.hypot(a, b), mp.atan2(b, a)


def _far_series(alpha: mp.mpf, end: mp.mpf, size: mp.mpf, angle: mp.mpf) -> mp.mpf | None:
    """Bergstrom's series in inverse powers; convergent for stability below 1, else asymptotic."""
    ratio = size / end**alpha
    total, before = mp.mpf(0), mp.inf
    for k in range(1, 5000):
        term = -((-ratio) ** k) * mp.gamma(alpha * k) / mp.factorial(k)
        if alpha > 1 and abs(term) > before:
            return None
        before = abs(term)
        total += term * mp.sin(k * angle)
        if before < abs(total) * mp.mpf(10) ** -DIGITS:
            return total / mp.pi
    return None


def _near_series(alpha: mp.mpf, end: mp.mpf, size: mp.mpf, angle: mp.mpf) -> mp.mpf | None:
    """The power series, for stability above 1; None where it cancels too much."""
    y = -end / size ** (1 / alpha)
    total = angle / alpha
    top = abs(total)
    for n in range(1, 20000):
        term = y**n / mp.factorial(n) * mp.gamma(n / alpha) / alpha
        top = max(top, abs(term))
        total += term * mp.sin(n * angle / alpha)
        if n > 20 and abs(term) < top * mp.mpf(10) ** (5 - mp.mp.dps):
            break
    return total / mp.pi if abs(total) > top * mp.mpf(10) ** (DIGITS - mp.mp.dps) else None


def _light(alpha: mp.mpf, x: mp.mpf) -> mp.mpf:
    """The upper tail for skew -1, by the vertical line through the saddle."""
    scale = -1 / mp.cos(mp.pi * alpha / 2)
    end = x - mp.tan(mp.pi * alpha / 2)
    saddle = (end / (alpha * scale)) ** (1 / (alpha - 1))

    def exponent(v: mp.mpf) -> mp.mpf:
        return -end * v + scale * v**alpha

    bottom = exponent(saddle)
    width = 1 / mp.sqrt(abs(alpha * (alpha - 1) * scale) * saddle ** (alpha - 2))

    def line(y: mp.mpf) -> mp.mpf:
        return (mp.exp(exponent(mp.mpc(saddle, y)) - bottom) / mp.mpc(saddle, y)).real

    places = [0, width, 3 * width, 6 * width, 12 * width]
    while abs(mp.exp(exponent(mp.mpc(saddle, places[-1])) - bottom)) > mp.mpf(10) ** -DIGITS:
        places.append(2 * places[-1])
    return mp.exp(bottom) * mp.quad(line, places) / mp.pi


def _upper(alpha: mp.mpf, beta: mp.mpf, x: mp.mpf) -> mp.mpf:
    """The upper tail at x, which is at least 0."""
    if beta == -1 and x > 0.5 and (alpha > 1 or x < mp.tan(mp.pi * alpha / 2)):
        return _light(alpha, x)
    for digits in (2 * DIGITS, 4 * DIGITS, 16 * DIGITS):
        with mp.workdps(digits):
            end, size, angle = _polar(alpha, beta, x)
            if alpha < 1 and end < 0:  # the other tail's series converges
                mirrored = _polar(alpha, -beta, -x)
                tail = _far_series(alpha, *mirrored)
                result = None if tail is None or mp.mpf(10) ** (DIGITS - digits) > 1 - tail else 1 - tail
            else:
                far = _far_series(alpha, end, size, angle) if end > 0 and (alpha < 1 or size < end**alpha / 4) else None
                result = far if far is not None or alpha < 1 else _near_series(alpha, end, size, angle)
        if result is not None:
            return result
    raise ArithmeticError(f"no series for stability {alpha}, skew {beta} at {x}")


def stable_tails(z: mp.mpf, stability: float, skew: float) -> tuple[mp.mpf, mp.mpf]:
    """Both tails in the continuous coordinate, for stabilities well away from 1."""
    alpha, beta, z = mp.mpf(stability), mp.mpf(skew), mp.mpf(z)
    with mp.workdps(DIGITS + 10):
        if z >= 0:
            upper = _upper(alpha, beta, z)
            return 1 - upper, upper
        lower = _upper(alpha, -beta, -z)
        return lower, 1 - lower


def zolotarev_tail(x: float, stability: float, skew: float) -> mp.mpf:
    """The upper tail by the integral along the path of constant phase, near stability 1 as well; x at least 0."""
    with mp.workdps(32):
        alpha = mp.mpf(stability)
        if alpha == 1:
            alpha = 1 + mp.mpf(10) ** -14
        end, size, angle = _polar(alpha, mp.mpf(skew), mp.mpf(x))
        low, high = (mp.mpf(0), angle / alpha) if end > 0 else (angle / alpha, mp.pi)
        width = high - low

        def depth(y: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
            """Exponent, which rises or falls monotonically, and the angle's derivative at a logit of the angle."""
            part = mp.exp(-abs(y))
            first, second = width * part / (1 + part), width / (1 + part)
            first, second = (first, second) if y < 0 else (second, first)
            inner = mp.sin(alpha * second) if end > 0 else mp.sin(alpha * first)
            outer = mp.sin(first) if end > 0 else mp.sin(second)
            radius = (abs(end) * outer / (size * inner)) ** (1 / (alpha - 1))
            turn = low + first
            value = end * radius * mp.cos(turn) + size * radius**alpha * mp.cos(angle - alpha * turn)
            return min(value, mp.mpf(1e5)), width * part / (1 + part) ** 2

        rising = depth(mp.mpf(3))[0] > depth(mp.mpf(-3))[0]

        def place(level: float) -> mp.mpf:
            left, right = mp.mpf(-500), mp.mpf(500)
            for _ in range(60):
                middle = (left + right) / 2
                left, right = (middle, right) if (depth(middle)[0] < level) == rising else (left, middle)
            return left

        marks = sorted([place(1e-6), place(0.05), place(5), place(50), mp.mpf(0)])
        points = [marks[0] - 40, *marks, marks[-1] + 40]
        points = [a + (b - a) * i / 3 for a, b in itertools.pairwise(points) for i in range(3)] + points[-1:]
        if (alpha > 1) == (end > 0):
            lost = mp.quad(lambda y: mp.exp(-depth(y)[0]) * depth(y)[1], points)
            return (lost if end > 0 else angle / alpha + lost) / mp.pi
        gained = mp.quad(lambda y: -mp.expm1(-depth(y)[0]) * depth(y)[1], points)
        return (gained if end > 0 else high - width + gained) / mp.pi
