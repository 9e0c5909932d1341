"""The variational family: a gated prior program on top of learned layers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Size, Tensor, nn

from emfc.errors import UserError
from emfc.flows.composition import Chain
from emfc.flows.distribution import ExampleSupport, FlowDistribution, standard_normal_log_density
from emfc.inference.backbones import VariationalBackbone, default_hidden_features
from emfc.inference.family_affine import Affine, LowRank, diagonal_of, low_rank_of
from emfc.inference.informed import Informed, InformedTransform
from emfc.inference.masks import closed_mask, posterior_dependencies
from emfc.layers.structured import StructuredLayer, StructuredTransform
from emfc.options import read_flag
from emfc.program.ir import Program
from emfc.program.target import Target

__all__ = ["VariationalFlow"]

_LARGEST_TRIANGLE = 512
"""Above this number of elements a flow's affine layer is diagonal unless a full one is asked for."""


class VariationalFlow(nn.Module):
    r"""A density over a model's latent sites, :math:`x = T_\lambda(A(B(e))), e \sim N(0, 1)`.

    T is the program of the latent sites with its gates, A an affine map and B learned layers, the identity before
    training. With open gates and before training it is the program's own prior.

    Args:
        program: The program of the latent sites alone.
        backbone: ``"meanfield"`` (A diagonal, no B), ``"mvn"`` (A lower-triangular, no B), ``"lowrank"`` (diagonal plus
            low rank), ``"iaf"`` (affine autoregressive, sampling in one pass per layer), ``"maf"`` (its inverse: the
            density in one pass), ``"nsf"`` (spline autoregressive, sampling in one pass) or ``"coupling"``.
        gate: Gates of the program's layer: ``"site"``, ``"element"`` or None.
        gate_form: ``"parameter"`` (a gate acts on location and scale of a site that has these) or ``"value"``.
        informed: Whether sites see location and scale of their own conditionals (`emfc.inference.informed`): T is then
            the informed layer, whose gates are of the form ``"parameter"``.
        transforms: Number of layers of B.
        hidden_features: Widths of the hyper-networks; left out, by the number of elements.
        context_features: Width of the context that conditions A and B; 0 for none.
        activation: Activation of the hyper-networks.
        bins: Number of bins of a spline.
        univariate: What a coupling layer does to an element: ``"spline"`` or ``"affine"``.
        rank: Of ``"lowrank"``; left out, about the square root of the number of elements.
        affine: ``"full"`` or ``"diagonal"``, the form of A under a flow; left out, full up to 512 elements.
        masks: ``"full"``, or ``"graph"`` where an element's layers see only the elements that ``dependencies`` names;
            every other layer turns the order round where nothing sees more by it (`emfc.inference.masks.turned_mask`).
        dependencies: For each noise element the earlier ones that it may depend on, such as `posterior_dependencies`
            finds; made transitive.
        optimize: False evaluates the program site by site (the reference).

    Raises:
        CompileError: The program cannot be compiled, or a site has no gate.
        UserError: An option has no meaning.
    """

    _reference: Tensor

    def __init__(
        self,
        program: Program,
        *,
        backbone: str = "iaf",
        gate: str | None = "site",
        gate_form: str = "parameter",
        informed: bool = False,
        transforms: int = 2,
        hidden_features: Sequence[int] | None = None,
        context_features: int = 0,
        activation: str = "silu",
        bins: int = 8,
        univariate: str = "spline",
        rank: int | None = None,
        affine: str | None = None,
        masks: str = "full",
        dependencies: Sequence[Collection[int]] | None = None,
        optimize: bool = True,
    ) -> None:
        super().__init__()
        read_flag("informed", informed)
        read_flag("optimize", optimize)
        if informed and gate_form != "parameter":
            raise UserError("informed=True has gates on location and scale; leave gate_form out")
        self.backbone_name, self.context_features = backbone, context_features
        self.layer = StructuredLayer(program, gate=gate, gate_form=gate_form, optimize=optimize)
        width = self.layer.noise_dim
        if masks not in ("full", "graph") or (masks == "graph") != (dependencies is not None):
            raise UserError("masks is 'full', or 'graph' together with dependencies (see posterior_dependencies)")
        mask = None if dependencies is None else closed_mask(dependencies, width)
        if hidden_features is None:
            hidden_features = default_hidden_features(width) if mask is None else (16, 16)
        self.backbone = VariationalBackbone(
            width,
            backbone,
            transforms=transforms,
            hidden_features=hidden_features,
            context_features=context_features,
            activation=activation,
            bins=bins,
            univariate=univariate,
            rank=max(1, round(width**0.5)) if rank is None else rank,
            mask=mask,
        )
        if affine not in (None, "full", "diagonal"):
            raise UserError(f"affine must be 'full', 'diagonal' or None, not {affine!r}")
        fixed = {"meanfield": "diagonal", "lowrank": "diagonal", "mvn": "full"}.get(backbone, affine)
        if affine not in (None, fixed):
            raise UserError(f"the affine layer of backbone={backbone!r} is {fixed}; leave affine out")
        diagonal = fixed == "diagonal" if fixed else width > _LARGEST_TRIANGLE
        self.affine = Affine(width, diagonal=diagonal, context_features=context_features, mask=mask)
        self.informed = Informed(self.layer) if informed else None
        dtype = getattr(torch, program.dtype)
        self.register_buffer("_reference", torch.zeros((), dtype=dtype), persistent=False)
        self.to(dtype=dtype)

    @classmethod
    def from_target(cls, target: Target, *, masks: str = "full", **options: Any) -> VariationalFlow:
        """Builds the family of a target's prior.

        Args:
            target: A model and its data.
            masks: ``"full"``, or ``"graph"`` to let the layers follow the posterior's dependencies.
            **options: Of the family.
        """
        dependencies = posterior_dependencies(target) if masks == "graph" else None
        return cls(target.prior(), masks=masks, dependencies=dependencies, **options)

    # ------------------------------------------------------------------ sizes and names

    @property
    def dim(self) -> int:
        """Number of elements D of an example."""
        return self.layer.dim

    @property
    def noise_dim(self) -> int:
        """Number of noise variables N."""
        return self.layer.noise_dim

    @property
    def noise_reference(self) -> Tensor:
        """A tensor ``[N]`` of zeros with the dtype and device of the flow."""
        return self._reference.expand(self.noise_dim)

    @property
    def loc(self) -> Tensor:
        """Location ``[N]`` of the affine layer."""
        return self.affine.loc

    @property
    def scale_tril(self) -> Tensor:
        """Lower-triangular scale ``[N, N]`` of the affine layer."""
        scale = self.affine.scale
        return torch.diag_embed(scale) if scale.ndim == 1 else scale

    @property
    def support(self) -> ExampleSupport:
        """The support of the latent sites, known to ``torch.distributions.biject_to``."""
        return ExampleSupport(self.layer)

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """Examples ``[*, D]`` of site values."""
        return self.layer.pack(values)

    def unpack(self, examples: Tensor) -> dict[str, Tensor]:
        """Site values of examples ``[*, D]``."""
        return self.layer.unpack(examples)

    # ------------------------------------------------------------------ the density

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        """Returns the distribution over examples ``[D]`` given a context ``[*, C]``."""
        return FlowDistribution(
            self.transform(context),
            noise=self.noise_reference,
            dim=self.dim,
            batch_shape=Size() if context is None else context.shape[:-1],
            support=self.support,
        )

    def transform(self, context: Tensor | None = None) -> Chain:
        """Returns the whole map from noise ``[*, N]`` to examples ``[*, D]`` given a context ``[*, C]``."""
        self._check_context(context)
        parts = [*self.backbone(context).parts, self.affine(context), self.program_transform()]
        return Chain(*parts, codomain=self.support)

    def program_transform(self) -> StructuredTransform:
        """Returns T: the gated program, informed or not."""
        return self.layer() if self.informed is None else InformedTransform(self.layer, self.informed)

    def open(self) -> None:
        """Opens the gates fully and silences the messages: T is exactly the program, and neither trains on."""
        if self.layer.gate_logits is not None:
            self.layer.set_gates(1.0)
        if self.informed is not None:
            self.informed.close()

    def rsample_and_log_prob(
        self, shape: Sequence[int] = (), context: Tensor | None = None, *, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws ``[*shape, D]`` and their log densities ``[*shape]``; gradients reach all parameters.

        Args:
            shape: Of the draws, in front of the context's own batch dimensions.
            context: ``[*, C]``.
            noise: Standard normal numbers ``[*shape, *, N]`` to use.
        """
        if noise is None:
            batch = () if context is None else context.shape[:-1]
            like = self._reference
            noise = torch.randn(*shape, *batch, self.noise_dim, dtype=like.dtype, device=like.device)
        value, ladj = self.transform(context).call_and_ladj(noise)
        return value, standard_normal_log_density(noise) - ladj

    def sample(self, shape: Sequence[int] = (), context: Tensor | None = None) -> Tensor:
        """Draws ``[*shape, D]``, without gradients."""
        with torch.no_grad():
            return self.rsample_and_log_prob(shape, context)[0]

    def log_prob(self, value: Tensor, context: Tensor | None = None) -> Tensor:
        """Log density ``[*]`` of examples ``[*, D]``; -inf outside the support."""
        noise, ladj = self.transform(context).inv.call_and_ladj(value)
        return torch.where(ladj == -torch.inf, -torch.inf, ladj + standard_normal_log_density(noise))

    def _check_context(self, context: Tensor | None) -> None:
        width = self.context_features
        if context is None:
            if width:
                raise UserError(f"this flow needs a context of width {width}")
        elif not width:
            raise UserError("this flow has no context; build it with context_features to give it one")
        elif context.ndim == 0 or context.shape[-1] != width:
            raise UserError(
                f"the context must have {width} features in its last dimension, not shape {tuple(context.shape)}"
            )

    # ------------------------------------------------------------------ parameters

    @torch.no_grad()
    def set_affine(self, loc: Tensor, scale_tril: Tensor) -> None:
        """Starts the family at N(loc, scale_tril scale_tril^T) in the noise space of the program with open gates.

        The learned layers go back to the identity. A mean-field family, and a flow whose affine layer is diagonal,
        takes the nearest independent normal by the reverse KL divergence, a low-rank family a factor analysis.

        Args:
            loc: ``[N]``.
            scale_tril: Lower-triangular ``[N, N]`` with a positive diagonal.

        Raises:
            UserError: A tensor has another shape, is not finite or is no Cholesky factor.
        """
        width = self.noise_dim
        loc = torch.as_tensor(loc).to(self._reference)
        scale = torch.as_tensor(scale_tril).to(self._reference)
        if loc.shape != (width,) or scale.shape != (width, width):
            raise UserError(
                f"set_affine takes loc [{width}] and scale_tril [{width}, {width}], not {list(loc.shape)} and "
                f"{list(scale.shape)}"
            )
        finite = bool(loc.isfinite().all() and scale.isfinite().all())
        if not finite or bool((scale.diagonal() <= 0).any()) or bool(scale.triu(1).any()):
            raise UserError("set_affine takes finite numbers, and a lower-triangular scale with a positive diagonal")
        self.reset_backbone()
        first = self.backbone.layers[0] if len(self.backbone.layers) else None
        if isinstance(first, LowRank):
            spread, factor = low_rank_of(scale, first.rank)
            first.set(factor)
            self.affine.set(loc, spread)
        else:
            self.affine.set(loc, diagonal_of(scale) if self.affine.diagonal else scale)

    @torch.no_grad()
    def reset_backbone(self) -> None:
        """Puts the learned layers back to the identity."""
        self.backbone.reset()

    def gate_parameters(self) -> Iterator[nn.Parameter]:
        """Yields the gates' parameters, if there are gates."""
        if self.layer.gate_logits is not None:
            yield self.layer.gate_logits

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Yields the parameters of the learned layers, the affine and the informed one included."""
        yield from self.backbone.parameters()
        yield from self.affine.parameters()
        if self.informed is not None:
            yield from self.informed.parameters()

    def program_parameters(self) -> Iterator[nn.Parameter]:
        """Yields the program's own learnable parameters, which are this flow's and not the model's."""
        yield from self.layer.unconstrained

    def extra_repr(self) -> str:
        return f"backbone={self.backbone_name!r}, dim={self.dim}"
