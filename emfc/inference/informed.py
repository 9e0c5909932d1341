r"""The model-informed layer: sites that see their own conditional's location and scale.

With the location :math:`\mu_i` and the scale :math:`\sigma_i` of a site given the sites before it, in unconstrained
coordinates, the program maps its noise :math:`g_i` to :math:`u_i = \mu_i + \sigma_i g_i`. The informed layer maps it to

.. math::
    u_i &= \mu_i + \sigma_i^{\beta_i} \Big( w_i \frac{m_i - \mu_i}{\sigma_i} + \sqrt{1 - w_i}\, (g_i - \gamma_i \mu_i)
    \Big), \qquad w_i = \frac{p_i \sigma_i^2}{1 + p_i \sigma_i^2}

with learned numbers for each element: w is Bayes' rule for a normal message of precision :math:`p_i` at :math:`m_i`,
:math:`\beta` and :math:`\gamma` change the parametrisation. Where the conditional is narrow the value is its location,
where it is wide a message keeps the value near :math:`m_i`: both tails of a scale are those of a posterior. Special
cases, each with a normal g of full covariance below:

- :math:`p = \gamma = 0, \beta = 1`: the program (non-centred);
- :math:`p = \beta = 0, \gamma = 1`: :math:`u = g` (centred);
- :math:`p = 0, \beta = 1 - \lambda, \gamma = \lambda`: VIP, :math:`u = \mu + \sigma^{1 - \lambda} (g - \lambda \mu)`,
  the gate on parameters;
- any p with :math:`\beta = 1, \gamma = 0`: the exact conditional of a normal site with a normal message.

The map is triangular in program order, since :math:`\mu_i` and :math:`\sigma_i` read earlier sites only, and its
log-Jacobian is that of a normal site of scale :math:`\sigma_i^{\beta_i} / \sqrt{1 + p_i \sigma_i^2}`. It costs one pass
of the compiled program in either direction: by levels, scans and loops as the program itself.

A family that is neither normal nor the exponential of one has location and scale of its unconstrained map linearised at
noise zero; its noise is moved to :math:`w_i (m_i - \mu_i) / \sigma_i + \sqrt{1 - w_i}\, g_i` and its gate acts. Vectors
whose elements depend on one another take their gate alone.

Source: Ko and Domke (2025), "Model-informed flows for Bayesian inference of probabilistic programs", arXiv 2505.24243;
Gorinova, Moore and Hoffman (2020), "Automatic reparameterisation of probabilistic programs", ICML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Size, Tensor, nn

from emfc.layers.latents import Gates
from emfc.layers.readers import Picker
from emfc.layers.structured import StructuredLayer, StructuredTransform
from emfc.special.precision import wide
from emfc.transforms import CDFTransform, LocationScale, NormalAffine, NormalTransform, gated
from emfc.transforms.affine import SupportedNormal
from emfc.transforms.base import BroadcastNormal, IndependentNormal

__all__ = ["Informed", "InformedTransform", "conditional_parameters"]

_START = -2.5
"""Log of the root of a message's precision before training, in units of the conditional's own scale."""


@dataclass(frozen=True, eq=False)
class InformedGates(Gates):
    """Gates whose values are ``[5, N]``: gate, beta, gamma, root of the precision and message."""

    form: str = "informed"

    def pick(self, columns: Picker) -> Tensor:
        """The five numbers of some elements, ``[5, *columns.positions.shape]``."""
        if self.values is None:
            raise RuntimeError("informed gates have values")
        return columns(self.values)

    def opened(self, transform: NormalTransform, picked: Tensor) -> NormalTransform:
        """The informed transform of some elements."""
        if isinstance(transform, IndependentNormal):
            return IndependentNormal(self.opened(transform.base, picked), transform.dims)
        if isinstance(transform, BroadcastNormal):
            return BroadcastNormal(self.opened(transform.base, picked), transform.batch_shape, transform.event_shape)
        if isinstance(transform, NormalAffine):
            slope, added, scale = self.normal(transform.scale, picked)
            return NormalAffine(torch.addcmul(added, slope, transform.loc), scale)
        if isinstance(transform, SupportedNormal) and isinstance(transform.core, NormalAffine):
            core = self.opened(transform.core, picked)
            return SupportedNormal(core, transform.codomain, discrete=transform.discrete)
        opened = gated(transform, picked[:1], form="parameter")
        found = _linearised(transform)
        if found is None:
            return opened
        loc, scale = found
        root, message = picked[3:4], picked[4:5]
        factor = torch.rsqrt(1 + (root * scale).square())
        return _Preceded(NormalAffine(root * (root * scale) * factor.square() * (message - loc), factor), opened)

    def normal(self, scale: Tensor, picked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the location is multiplied by, what is added, and the scale."""
        beta, gamma, root, message = picked[1:].split(1)
        power, ratio = scale**beta, root * scale
        factor = torch.rsqrt(1 + ratio.square())
        spread = power * factor
        pull = spread * factor * ratio * root
        return 1 - gamma * spread - pull, pull * message, spread


def _linearised(transform: NormalTransform) -> tuple[Tensor, Tensor] | None:
    """Location and scale of a transform in unconstrained coordinates; None for vectors whose elements hang together."""
    if isinstance(transform, IndependentNormal | BroadcastNormal):
        return _linearised(transform.base)
    if isinstance(transform, NormalAffine):
        return transform.loc, transform.scale
    if isinstance(transform, CDFTransform) and isinstance(transform.family, LocationScale):
        return transform.family.loc, transform.family.scale
    inner = transform.unconstrained()
    if inner.domain.event_dim:
        return None
    if isinstance(inner, NormalAffine):
        return inner.loc, inner.scale
    like = next((held for held in _tensors(transform)), None)
    if like is None:
        return None
    value, ladj = inner.call_and_ladj(like.new_zeros(_batch_shape(transform)))
    return value, ladj.exp()


def _batch_shape(transform: NormalTransform) -> Size:
    family = getattr(transform, "family", None)
    return Size() if family is None else family.batch_shape


def _tensors(transform: NormalTransform) -> list[Tensor]:
    held = [*vars(transform).values(), *vars(getattr(transform, "family", transform)).values()]
    return [value for value in held if isinstance(value, Tensor)]


class _Preceded(NormalTransform):
    """A transform of noise that was moved and scaled before."""

    def __init__(self, first: NormalAffine, base: NormalTransform) -> None:
        super().__init__()
        self.first, self.base = first, base
        self.domain, self.codomain, self.discrete = base.domain, base.codomain, base.discrete

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-Jacobian."""
        noise, ladj = self.first.call_and_ladj(wide(x))
        value, stretch = self.base.call_and_ladj(noise)
        return value, ladj + stretch

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and log-Jacobian of a value."""
        noise, stretch = self.base.inverse_and_ladj(y)
        value, ladj = self.first.inverse_and_ladj(noise)
        return value, ladj + stretch

    def forward_shape(self, shape: Sequence[int]) -> Size:
        """The base's."""
        return Size(self.base.forward_shape(shape))

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        """The base's."""
        return Size(self.base.inverse_shape(shape))


class InformedTransform(StructuredTransform):
    """The program's transform with informed gates."""

    def __init__(self, layer: StructuredLayer, informed: Informed) -> None:
        super().__init__(layer)
        self.informed = informed

    def gates(self) -> Gates:
        """Of a call."""
        return self.informed.gates(self.layer)


class Informed(nn.Module):
    r"""The learned numbers of the informed layer, one of each kind for every noise element.

    The layer's gates :math:`\lambda` go on acting: :math:`\beta = \lambda + b` and :math:`\gamma = 1 - \lambda + c`
    with b and c zero before training. Messages start with almost no precision, at the prior median of the location.

    Args:
        layer: The program's layer.
        draws: How many prior draws the start of the messages is found from.
    """

    def __init__(self, layer: StructuredLayer, *, draws: int = 64) -> None:
        super().__init__()
        width = layer.noise_dim
        loc, log_scale = _start(layer, draws)
        self.power = nn.Parameter(torch.zeros(width))
        self.centre = nn.Parameter(torch.zeros(width))
        self.log_root = nn.Parameter(_START - log_scale.float())
        self.message = nn.Parameter(loc.float())

    def gates(self, layer: StructuredLayer) -> InformedGates:
        """The gates of a call."""
        held = layer.element_gates()
        gate = torch.ones_like(self.centre) if held is None else held
        centre = self.centre if held is None else 1 - gate + self.centre
        return InformedGates(torch.stack((gate, gate + self.power, centre, self.log_root.exp(), self.message)))

    @torch.no_grad()
    def close(self) -> None:
        """Puts everything to where the layer is exactly the program with its gates; messages no longer train."""
        for parameter in (self.power, self.centre):
            parameter.zero_()
        self.log_root.fill_(-torch.inf)


def conditional_parameters(layer: StructuredLayer, examples: Tensor) -> tuple[Tensor, Tensor]:
    """Location and log scale ``[*, N]`` of every noise element's site given the sites before it, at some examples.

    In unconstrained coordinates; of families without a location and a scale those of the map linearised at noise zero.
    Elements of vectors that hang together have the location 0 and the log scale 0.

    Args:
        layer: The program's layer.
        examples: ``[*, D]``.
    """
    flat = layer.flattened(examples)
    zeros = flat.new_zeros(len(flat), layer.noise_dim)
    recorder = _Recorder(zeros, locs=zeros.clone(), log_scales=zeros.clone())
    with torch.no_grad():
        layer.density(flat, layer.flat_parameters(flat), recorder)
    shape = (*examples.shape[:-1], layer.noise_dim)
    return recorder.locs.reshape(shape), recorder.log_scales.reshape(shape)


@dataclass(frozen=True, eq=False)
class _Recorder(Gates):
    """Gates that leave transforms as they are and note their locations and scales."""

    locs: Tensor = field(default_factory=lambda: torch.zeros(0))
    log_scales: Tensor = field(default_factory=lambda: torch.zeros(0))

    def apply(self, transform: NormalTransform, columns: Picker) -> NormalTransform:
        """The transform itself."""
        found = _linearised(transform)
        if found is not None:
            places = torch.as_tensor(columns.positions.reshape(-1), device=self.locs.device)
            for held, value in ((self.locs, found[0]), (self.log_scales, found[1].log())):
                full = value.to(held.dtype).expand(len(held), *columns.positions.shape)
                held[:, places] = full.reshape(len(held), -1)
        return transform


def _start(layer: StructuredLayer, draws: int) -> tuple[Tensor, Tensor]:
    """Typical locations and log scales ``[N]`` of the prior: medians over draws, finite ones."""
    like = next(layer.parameters(), torch.zeros(0, dtype=getattr(torch, layer.program.dtype)))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(draws, layer.noise_dim, generator=generator, dtype=torch.float64).to(like)
    with torch.no_grad():
        flat = layer.flat_parameters(noise)
        examples, _ = layer.sampling(noise, flat, Gates(None))
        loc, log_scale = conditional_parameters(layer, examples)
    return tuple(held.nan_to_num(0.0, 0.0, 0.0).median(0).values for held in (loc, log_scale))  # type: ignore[return-value]
