"""Base classes: a transform that returns its value and log-Jacobian in one go, both ways."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Size, Tensor, broadcast_shapes
from torch.distributions import constraints
from torch.distributions.transforms import Transform

__all__ = [
    "BroadcastNormal",
    "IndependentNormal",
    "IndependentTransform",
    "InverseTransform",
    "LadjTransform",
    "NormalTransform",
    "sum_rightmost",
]


def sum_rightmost(value: Tensor, dims: int) -> Tensor:
    """Sum over the last `dims` dimensions; the tensor itself when there are none."""
    return value if dims == 0 else value.flatten(-dims).sum(-1)


class LadjTransform(Transform, ABC):
    """A bijection with `call_and_ladj` in both directions.

    Subclasses set `domain` and `codomain` and give `call_and_ladj` and `inverse_and_ladj`. One whose values have
    another shape than its inputs also gives `forward_shape` and `inverse_shape`, as torch's transforms do.
    """

    bijective = True

    @property
    def sign(self) -> int:
        """+1: these maps increase (elementwise ones)."""
        return 1

    @abstractmethod
    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The value :math:`y = t(x)` and :math:`\log |\det \partial y / \partial x|`."""

    @abstractmethod
    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""The value :math:`x = t^{-1}(y)` and :math:`\log |\det \partial x / \partial y|`."""

    @property
    def inv(self) -> Transform:
        """The inverse, which has `call_and_ladj` as well."""
        return InverseTransform(self)

    def with_cache(self, cache_size: int = 1) -> Transform:
        """The transform itself: nothing is cached."""
        return self

    def forward_shape(self, shape: Sequence[int]) -> Size:
        """Shape of the values of inputs of this shape, batch and event dimensions together."""
        return Size(shape)

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        """Shape of the inputs of values of this shape, batch and event dimensions together."""
        return Size(shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-Jacobian at the pair (x, y = t(x))."""
        return self.call_and_ladj(x)[1]

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]


class InverseTransform(Transform):
    """The inverse of a `LadjTransform`."""

    bijective = True

    def __init__(self, base: LadjTransform) -> None:
        super().__init__()
        self.base = base

    @property
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        """Where the base transform's values lie."""
        return self.base.codomain

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        """Where the base transform's inputs lie."""
        return self.base.domain

    @property
    def sign(self) -> int:
        """The base transform's sign."""
        return self.base.sign

    @property
    def inv(self) -> Transform:
        """The base transform."""
        return self.base

    def call_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The base transform's input and the log-Jacobian of this inverse direction."""
        return self.base.inverse_and_ladj(y)

    def with_cache(self, cache_size: int = 1) -> Transform:
        """The transform itself: nothing is cached."""
        return self

    def forward_shape(self, shape: Sequence[int]) -> Size:
        """Shape of the base's inputs for values of this shape."""
        return Size(self.base.inverse_shape(shape))

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        """Shape of the base's values for inputs of this shape."""
        return Size(self.base.forward_shape(shape))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-Jacobian of the inverse at a value x of the base and its input y."""
        return -self.base.log_abs_det_jacobian(y, x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InverseTransform) and self.base == other.base

    def __hash__(self) -> int:
        return hash((InverseTransform, id(self.base)))

    def __repr__(self) -> str:
        return f"{self.base!r}.inv"

    def _call(self, y: Tensor) -> Tensor:
        return self.base._inverse(y)

    def _inverse(self, x: Tensor) -> Tensor:
        return self.base._call(x)


class NormalTransform(LadjTransform):
    """The bijection that carries standard normal noise to draws of a distribution.

    `call_and_ladj(noise)` gives the draw and the log-Jacobian summed over the event dimensions;
    `inv.call_and_ladj(value)` the noise and the inverse's log-Jacobian, so that the distribution's log density
    is that of the noise plus the latter. Batch shapes of noise and distribution broadcast. Outside the support
    the noise is that of the nearest value inside, and the log-Jacobian of the inverse is -inf.
    Half precision is computed, and returned, in float32.

    A value may have more elements than its noise (a point of a simplex of K numbers takes K - 1 noises): then
    `inverse_shape(value shape)` is the shape of the noise, `forward_shape(noise shape)` that of the values, and
    log-Jacobians are with respect to the free elements of the value (the first K - 1 of a simplex, the strictly lower
    triangle of a Cholesky factor of a correlation matrix), as torch's densities are. What `unconstrained()` gives
    maps noise to real values of the same shape.

    Attributes:
        domain: The real line, or real vectors; its event dimensions are those of the noise.
        codomain: The support of the draws; `[0, levels)` where `discrete`.
        discrete: True where the draws are those of a dequantised discrete distribution.
        unit: Size that values are rounded relative to even when they are smaller: 1 for the coordinate of a
            bounded support, 0 for values themselves.
    """

    discrete: bool = False
    unit: float = 0.0

    def unconstrained(self) -> NormalTransform:
        r"""The same map seen through the support's constraint map: :math:`g = c^{-1} \circ t`, real to real.

        Raises:
            UnsupportedFamilyError: If the support has no constraint map.
        """
        from emfc.transforms.wrappers import ThroughMap

        return ThroughMap(self)

    @property
    def constant_ladj(self) -> Tensor | None:
        """The log-Jacobian where it is the same for all noise, in the shape of the parameters; None otherwise."""
        return None

    def knots(self) -> tuple[Tensor, Tensor] | None:
        """Values and noises, [..., J] in rising order, where the map bends sharply; None if it is smooth."""
        return None


class IndependentTransform(LadjTransform):
    """A transform whose last `dims` batch dimensions are event dimensions: log-Jacobians are summed."""

    def __init__(self, base: LadjTransform, dims: int) -> None:
        super().__init__()
        self.base = base
        self.dims = dims
        self.domain = constraints.independent(base.domain, dims)
        self.codomain = constraints.independent(base.codomain, dims)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Base value, summed log-Jacobian."""
        y, ladj = self.base.call_and_ladj(x)
        return y, sum_rightmost(ladj, self.dims)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Base inverse, summed log-Jacobian."""
        x, ladj = self.base.inverse_and_ladj(y)
        return x, sum_rightmost(ladj, self.dims)

    def forward_shape(self, shape: Sequence[int]) -> Size:
        """Base's shape of values."""
        return Size(self.base.forward_shape(shape))

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        """Base's shape of inputs."""
        return Size(self.base.inverse_shape(shape))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Summed log-Jacobian."""
        return sum_rightmost(self.base.log_abs_det_jacobian(x, y), self.dims)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r}, {self.dims})"


class IndependentNormal(IndependentTransform, NormalTransform):
    """`IndependentTransform` of a `NormalTransform`: the transform of `Independent` distributions."""

    base: NormalTransform

    def __init__(self, base: NormalTransform, dims: int) -> None:
        super().__init__(base, dims)
        self.discrete = base.discrete

    def unconstrained(self) -> NormalTransform:
        """Base's unconstrained map, with the same event dimensions."""
        return IndependentNormal(self.base.unconstrained(), self.dims)


class BroadcastNormal(NormalTransform):
    """A transform whose noise and values are first broadcast to at least a given batch shape."""

    def __init__(self, base: NormalTransform, batch_shape: Size, event_shape: Size) -> None:
        super().__init__()
        self.base = base
        self.batch_shape = batch_shape
        self.event_shape = event_shape
        self.domain, self.codomain, self.discrete = base.domain, base.codomain, base.discrete

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Base transform of the broadcast noise."""
        shape = self.base.inverse_shape(self.batch_shape + self.event_shape)
        return self.base.call_and_ladj(x.expand(broadcast_shapes(x.shape, shape)))

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Base inverse of the broadcast value."""
        return self.base.inverse_and_ladj(y.expand(broadcast_shapes(y.shape, self.batch_shape + self.event_shape)))

    def forward_shape(self, shape: Sequence[int]) -> Size:
        """Base's shape of values, broadcast."""
        inner = self.base.inverse_shape(self.batch_shape + self.event_shape)
        return Size(self.base.forward_shape(broadcast_shapes(shape, inner)))

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        """Base's shape of noise, broadcast."""
        return Size(self.base.inverse_shape(broadcast_shapes(shape, self.batch_shape + self.event_shape)))

    def unconstrained(self) -> NormalTransform:
        """Base's unconstrained map, broadcast likewise."""
        event = self.event_shape
        if self.codomain.event_dim:  # an unconstrained value has the shape of noise
            event = self.base.inverse_shape(self.batch_shape + event)[len(self.batch_shape) :]
        return BroadcastNormal(self.base.unconstrained(), self.batch_shape, Size(event))

    def __repr__(self) -> str:
        return f"BroadcastNormal({self.base!r}, {tuple(self.batch_shape)})"
