"""Preprocessing that is itself a bijection, and so enters the density.

Each step is a small module that carries data to the space of the flow: ``call_and_ladj(x)`` gives the value and the
log absolute Jacobian determinant of each example, ``inv`` the way back. Examples are flat, shape ``[*, D]``.
Rounding is no bijection: `Step.pack` adds noise to integers where data come in, and `Step.unpack` takes it off where
samples go out; in between, `Dequantise` is the identity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from emfc.errors import UserError

__all__ = ["Chain", "Dequantise", "Inverse", "Logit", "Scale", "Standardise", "Step", "preprocess_from_config"]


class Inverse:
    """The way back of a step: from the space of the flow to data."""

    def __init__(self, step: Step) -> None:
        self.inv = step

    def __call__(self, y: Tensor) -> Tensor:
        return self.call_and_ladj(y)[0]

    def call_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Give the data of ``y`` and log |dx/dy|, shapes ``[*, D]`` and ``[*]``."""
        return self.inv.inverse_and_ladj(y)


class Step(nn.Module):
    """A bijection from data to the space of a flow, shape ``[*, D]`` to ``[*, D]``."""

    kind: ClassVar[str]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give the value y of ``x`` and log |dy/dx|.

        Args:
            x: Data, shape ``[*, D]``.

        Returns:
            y, shape ``[*, D]``, and the log absolute Jacobian determinant, shape ``[*]``. Outside the domain y is
            finite and the log determinant is -inf, so that the density is zero.
        """
        raise NotImplementedError

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Give the data x of ``y`` and log |dx/dy|; see `call_and_ladj`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    @property
    def inv(self) -> Inverse:
        return Inverse(self)

    def pack(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Carry raw data to what `call_and_ladj` takes; only `Dequantise` changes anything."""
        return x

    def unpack(self, x: Tensor) -> Tensor:
        """Undo `pack`."""
        return x

    def config(self) -> dict[str, Any]:
        """Give what `preprocess_from_config` needs, ready for JSON; tensors are in ``state_dict()``."""
        return {"kind": self.kind}


class Dequantise(Step):
    """Adds uniform noise to integers: x + u with u uniform on [0, 1).

    The mean log density of the noisy value bounds the log mass of the integer from below, and equals it where the
    density is constant over each unit interval.
    """

    kind = "dequantise"

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.new_zeros(x.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y, y.new_zeros(y.shape[:-1])

    def pack(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Add the noise.

        Args:
            x: Integers, shape ``[*, D]``.
            generator: Source of the noise, on the CPU or the device of ``x``.

        Returns:
            The noisy values, strictly below the next integer.

        Raises:
            UserError: A value is no integer.
        """
        if bool((x != x.round()).any()):
            raise UserError("dequantise needs whole numbers; the data hold others")
        device = x.device if generator is None else generator.device
        noise = torch.rand(x.shape, dtype=x.dtype, device=device, generator=generator).to(x.device)
        return torch.minimum(x + noise, torch.nextafter(x + 1, x))

    def unpack(self, x: Tensor) -> Tensor:
        return x.floor()


class Scale(Step):
    """Carries [low, high] to [0, 1]: y = (x - low) / (high - low).

    Args:
        low: What becomes 0.
        high: What becomes 1; more than ``low``.

    Raises:
        UserError: ``low < high`` does not hold.
    """

    kind = "scale"

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(f"scale needs two numbers, the lower first; it was given {low} and {high}")
        self.low = float(low)
        self.high = float(high)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        width = self.high - self.low
        return (x - self.low) / width, x.new_full(x.shape[:-1], -x.shape[-1] * math.log(width))

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        width = self.high - self.low
        return y * width + self.low, y.new_full(y.shape[:-1], y.shape[-1] * math.log(width))

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "low": self.low, "high": self.high}


class Logit(Step):
    """Carries [0, 1] to the real line: y = logit(alpha + (1 - 2 alpha) x).

    Args:
        alpha: How far to stay from 0 and 1, in [0, 0.5). With 0, data at 0 or 1 have no value.

    Raises:
        UserError: ``alpha`` lies elsewhere.

    References:
        Density estimation using Real NVP (Dinh et al., 2017), section 4.1
    """

    kind = "logit"

    def __init__(self, alpha: float = 1e-6) -> None:
        super().__init__()
        if not 0.0 <= alpha < 0.5:
            raise UserError(f"logit needs a number in [0, 0.5); it was given {alpha}")
        self.alpha = float(alpha)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        squeezed = self.alpha + (1.0 - 2.0 * self.alpha) * x
        inside = (squeezed > 0) & (squeezed < 1) & (x >= 0) & (x <= 1)
        safe = torch.where(inside, squeezed, 0.5)
        y = safe.log() - torch.log1p(-safe)
        edge = math.log(torch.finfo(x.dtype).max) / 2
        y = torch.where(inside, y, (squeezed - 0.5).sign() * edge)
        per_element = math.log1p(-2.0 * self.alpha) - safe.log() - torch.log1p(-safe)
        return y, torch.where(inside, per_element, -torch.inf).sum(-1)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x = (torch.sigmoid(y) - self.alpha) / (1.0 - 2.0 * self.alpha)
        log_slope = -nn.functional.softplus(-y) - nn.functional.softplus(y) - math.log1p(-2.0 * self.alpha)
        return x, log_slope.sum(-1)

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "alpha": self.alpha}


class Standardise(Step):
    """Carries data to mean 0 and standard deviation 1: y = (x - mean) / sd, element by element.

    Args:
        mean: Shape ``[D]``.
        sd: Shape ``[D]``, positive.

    Raises:
        UserError: A standard deviation is not positive.
    """

    kind = "standardise"
    mean: Tensor
    sd: Tensor

    def __init__(self, mean: Tensor, sd: Tensor) -> None:
        super().__init__()
        if not bool((sd > 0).all()):
            where = (~(sd > 0)).nonzero().flatten().tolist()
            raise UserError(f"standardise needs data that vary; element {where[0]} (counted from 0) is constant")
        self.register_buffer("mean", mean)
        self.register_buffer("sd", sd)

    @classmethod
    def from_data(cls, data: Tensor) -> Standardise:
        """Take mean and standard deviation from data, shape ``[rows, D]``.

        Raises:
            UserError: An element is constant.
        """
        return cls(data.mean(0), data.std(0, unbiased=False))

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x - self.mean) / self.sd, (-self.sd.log().sum()).expand(x.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y * self.sd + self.mean, self.sd.log().sum().expand(y.shape[:-1])

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "features": self.mean.shape[0]}


class Chain(Step):
    """Steps one after the other.

    Args:
        steps: From the data towards the flow.
    """

    kind = "chain"

    def __init__(self, steps: Iterable[Step]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def __iter__(self) -> Iterator[Step]:
        for step in self.steps:
            if isinstance(step, Step):
                yield step

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[:-1])
        for step in self:
            x, ladj = step.call_and_ladj(x)
            total = total + ladj
        return x, total

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        total = y.new_zeros(y.shape[:-1])
        for step in reversed(tuple(self)):
            y, ladj = step.inverse_and_ladj(y)
            total = total + ladj
        return y, total

    def pack(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        for step in self:
            x = step.pack(x, generator=generator)
        return x

    def unpack(self, x: Tensor) -> Tensor:
        for step in reversed(tuple(self)):
            x = step.unpack(x)
        return x

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "steps": [step.config() for step in self]}


def preprocess_from_config(config: Mapping[str, Any]) -> Step:
    """Build the step that `Step.config` described; its tensors are then filled by ``load_state_dict``.

    Args:
        config: What ``config()`` gave.

    Returns:
        A new step.

    Raises:
        UserError: The description is not one of ours.
    """
    try:
        kind = config["kind"]
        if kind == Chain.kind:
            return Chain([preprocess_from_config(part) for part in config["steps"]])
        if kind == Standardise.kind:
            features = int(config["features"])
            return Standardise(torch.zeros(features), torch.ones(features))
        if kind == Dequantise.kind:
            return Dequantise()
        if kind == Scale.kind:
            return Scale(float(config["low"]), float(config["high"]))
        if kind == Logit.kind:
            return Logit(float(config["alpha"]))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the description of the preprocessing is damaged: {config!r}") from error
    raise UserError(f"unknown preprocessing step {kind!r}")
