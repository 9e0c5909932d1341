"""The embedded-model flow: a compiled program between learned layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pydantic
import torch
from torch import Size, Tensor, nn

from emfc.compiler import compile as compile_program
from emfc.flows.backbones import Backbone
from emfc.flows.baseline import SupportLayer
from emfc.flows.composition import Chain
from emfc.flows.configuration import BackboneName, FlowConfiguration, Placement
from emfc.flows.distribution import ExampleSupport, FlowDistribution
from emfc.flows.normalisation import GatedNormalisation, Normalisation
from emfc.flows.starting import standardise
from emfc.layers import StructuredLayer
from emfc.options import keywords_of, read_keywords

__all__ = ["EmbeddedModelFlow"]


class EmbeddedModelFlow(nn.Module):
    r"""A normalizing flow with a probabilistic program as one of its layers.

    With the program's layer T, the learned layers B (identity before training) and the constraint map c of the
    program's supports, noise :math:`e \sim N(0, 1)` becomes

    - ``placement="top"``: :math:`x = T(B(e))`, the program next to the data;
    - ``placement="middle"``: :math:`x = c(B_2(c^{-1}(T(B_1(e)))))`, half of the learned layers on either side;
    - ``placement="bottom"``: :math:`x = c(B(c^{-1}(T(e))))`, the program as base;
    - ``backbone=None``: :math:`x = T(e)`, the bare program, whose density is the program's own.

    With ``normalise``, fixed affine maps let the learned layers see standardised values: N between the program and the
    layers before it, and A around the layers behind it, so that the program keeps the scale of the data:
    :math:`x = c(A(B_2(A^{-1}(c^{-1}(T(N(B_1(e))))))))`. ``fit`` sets them from the training data; until then they are
    the identity. Where the program has gates, N goes over into the standardisation of the data as they close, so
    that closed gates leave the flow without the program.

    Args:
        model: A Pyro model or a parsed graph.
        *args: The model's own arguments.
        backbone: ``"maf"`` (affine autoregressive; Papamakarios et al. 2017), ``"nsf"`` (rational-quadratic spline
            autoregressive; Durkan et al. 2019), ``"coupling"`` (spline coupling), ``"mvn"`` (a full-covariance
            Gaussian: the Gaussian copula under the program), or None.
        placement: ``"top"``, ``"middle"`` or ``"bottom"``.
        gate: ``"site"``, ``"element"`` or None; left out, ``"site"`` with a backbone and None without.
        transforms: Number of learned layers (for ``"mvn"`` one on each side of the program is used).
        hidden_features: Widths of the hidden layers of each hyper-network.
        context_features: Width of the context that ``flow(context)`` takes; 0 for none.
        preprocess: A bijection from raw data to examples, whose log-Jacobian enters the density.
        activation: Activation of the hyper-networks: ``"tanh"``, ``"elu"``, ``"relu"``, ``"silu"``, ...
        bins: Number of bins of a spline.
        normalise: Whether the learned layers see standardised values.
        gate_form: What a gate acts on: ``"value"``, or ``"parameter"`` for location and scale.
        optimize: False evaluates the program site by site (the reference).
        **kwargs: The model's own keyword arguments.

    Raises:
        CompileError: If the program is refused.
        ValueError: If an option has no meaning.

    Source: Silvestri et al. (2022), "Embedded-model flows", ICLR.

    Example:
        >>> import pyro, pyro.distributions as dist, emfc
        >>> def model():
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(0.0, scale))
        >>> flow = emfc.EmbeddedModelFlow(model, backbone="mvn")
        >>> examples = flow().sample((5,))
        >>> flow().log_prob(examples).shape
        torch.Size([5])
    """

    layer: Any
    preprocess: Any
    _reference: Tensor

    def __init__(
        self,
        model: Any,
        *args: Any,
        backbone: BackboneName | None = "maf",
        placement: Placement = "top",
        gate: str | None = "default",
        transforms: int = 2,
        hidden_features: Sequence[int] = (128, 128),
        context_features: int = 0,
        preprocess: Any | None = None,
        activation: str = "tanh",
        bins: int = 8,
        normalise: bool = True,
        gate_form: str = "value",
        optimize: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        read_keywords("EmbeddedModelFlow", keywords_of(type(self).__init__), model, kwargs)
        configuration = _configuration(
            backbone=backbone,
            placement=placement,
            transforms=transforms,
            hidden_features=hidden_features,
            context_features=context_features,
            activation=activation,
            bins=bins,
            normalise=normalise,
        )
        if gate == "default":
            gate = None if backbone is None else "site"
        layer = compile_program(model, *args, gate=gate, optimize=optimize, **kwargs)
        if gate_form != "value":
            layer = StructuredLayer(layer.program, gate=gate, gate_form=gate_form, optimize=optimize)
        self._assemble(layer, configuration, preprocess)

    @classmethod
    def from_layer(
        cls,
        layer: nn.Module,
        configuration: FlowConfiguration | None = None,
        *,
        preprocess: Any | None = None,
        **options: Any,
    ) -> EmbeddedModelFlow:
        """Builds a flow around a layer that exists already.

        Args:
            layer: A structured layer, which the flow takes over (it is not copied).
            configuration: The learned layers; left out, it is made of ``options``.
            preprocess: A bijection from raw data to examples.
            **options: Fields of ``FlowConfiguration``, such as ``backbone`` and ``transforms``.

        Raises:
            ValueError: If an option has no meaning.
        """
        if configuration is not None and options:
            raise ValueError(f"give a configuration or {', '.join(options)}, not both")
        flow = cls.__new__(cls)
        nn.Module.__init__(flow)
        flow._assemble(layer, configuration or _configuration(**options), preprocess)
        return flow

    def _assemble(self, layer: nn.Module, configuration: FlowConfiguration, preprocess: Any | None) -> None:
        self.configuration = configuration
        self.layer = layer
        self.preprocess = preprocess
        reference = next(layer.parameters(), torch.zeros(()))
        self.register_buffer("_reference", torch.zeros((), dtype=reference.dtype), persistent=False)
        before, after = self._split()
        width = int(self.layer.noise_dim)
        if width == 0 and before + after:
            raise ValueError("every site of this program is fixed by others, so no layer can be learned: backbone=None")
        self.before = Backbone(width, configuration, transforms=before) if before else None
        self.after = Backbone(width, configuration, transforms=after, offset=before) if after else None
        self._constraint_map = None if self.after is None else self.layer.constraint_map()
        self._gated = isinstance(layer, StructuredLayer) and layer.gate is not None
        self.noise_normalisation: GatedNormalisation | Normalisation | None = None
        if before and configuration.program and configuration.normalise:
            self.noise_normalisation = GatedNormalisation(width) if self._gated else Normalisation(width)
        self.data_normalisation = Normalisation(width) if configuration.normalise and after else None
        self.to(dtype=reference.dtype, device=reference.device)

    def _split(self) -> tuple[int, int]:
        """Numbers of learned layers on the noise side and on the data side of the program."""
        configuration = self.configuration
        if configuration.backbone is None:
            return 0, 0
        transforms = configuration.transforms
        if configuration.backbone == "mvn":
            transforms = 2 if configuration.placement == "middle" else 1
        if configuration.placement == "top":
            return transforms, 0
        if configuration.placement == "bottom":
            return 0, transforms
        return (transforms + 1) // 2, transforms // 2

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        """Returns the distribution over examples ``[D]`` given a context ``[*, C]``.

        Raises:
            ValueError: If a context is missing, not wanted, or of the wrong width.
        """
        self._check_context(context)
        batch_shape = Size() if context is None else context.shape[:-1]
        return FlowDistribution(
            self.transform(context),
            noise=self.noise_reference,
            dim=self.layer.dim,
            batch_shape=batch_shape,
            support=self.support,
        )

    def transform(self, context: Tensor | None = None) -> Chain:
        """Returns the whole map from noise ``[*, N]`` to data ``[*, D]`` given a context ``[*, C]``."""
        parts: list[Any] = [] if self.before is None else [self.before(context)]
        if self.noise_normalisation is not None:
            parts.append(self.noise_normalisation(*((self.layer,) if self._gated else ())))
        parts.append(self.layer())
        if self.after is not None and self._constraint_map is not None:
            learned = [self.after(context)]
            if self.data_normalisation is not None:
                scaled = self.data_normalisation()
                learned = [scaled.inv, *learned, scaled]
            parts += [self._constraint_map.inv, *learned, self._constraint_map]
        if self.preprocess is not None:
            parts.append(self.preprocess.inv)
        return Chain(*parts, codomain=self.support)

    def _check_context(self, context: Tensor | None) -> None:
        width = self.configuration.context_features
        if context is None:
            if width:
                raise ValueError(f"this flow needs a context of width {width}: call flow(context)")
        elif not width:
            raise ValueError("this flow has no context; build it with context_features to give it one")
        elif context.ndim == 0 or context.shape[-1] != width:
            raise ValueError(
                f"the context must have {width} features in its last dimension, not shape {tuple(context.shape)}"
            )

    @property
    def noise_reference(self) -> Tensor:
        """A tensor ``[N]`` of zeros with the dtype and device of the flow."""
        return self._reference.expand(int(self.layer.noise_dim))

    @property
    def support(self) -> ExampleSupport:
        """The support of the data, known to ``torch.distributions.biject_to``."""
        return ExampleSupport(self.layer, self.preprocess)

    @property
    def graph(self) -> Any:
        """The program's graph of sites."""
        return self.layer.graph

    @property
    def dim(self) -> int:
        """The number of elements of one example."""
        return int(self.layer.dim)

    @property
    def parameter_count(self) -> int:
        """The number of learned numbers, masked weights included."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def pack(self, mapping: Mapping[str, Tensor], *, generator: torch.Generator | None = None) -> Tensor:
        """Returns examples ``[*, D]`` of a mapping from site name to values ``[*, *site_shape]``.

        Discrete sites get fresh uniform noise (dequantisation).
        """
        packed: Tensor = self.layer.pack(mapping, generator=generator)
        if self.preprocess is not None:
            packed = self.preprocess.pack(packed, generator=generator)
        return packed

    def unpack(self, value: Tensor) -> dict[str, Tensor]:
        """Returns the mapping from site name to values of examples ``[*, D]``."""
        if self.preprocess is not None:
            value = self.preprocess.unpack(value)
        unpacked: dict[str, Tensor] = self.layer.unpack(value)
        return unpacked

    def baseline(self) -> EmbeddedModelFlow:
        """Returns the same flow without the program: fresh learned layers under the constraint map of the supports.

        Its data-driven standardisation (``start_from_data``) is done by ``fit``.

        Raises:
            CompileError: If the support of a site depends on other sites' values.
        """
        layer = self.layer.program_layer if isinstance(self.layer, SupportLayer) else self.layer
        configuration = self.configuration.model_copy(update={"program": False})
        support = SupportLayer(_without_gates(layer))
        return EmbeddedModelFlow.from_layer(support, configuration, preprocess=copy.deepcopy(self.preprocess))

    def start_from_data(self, data: Tensor) -> None:
        """Standardises what the learned layers see, by data ``[rows, D]`` and the program as it is now.

        A flow without a program is standardised as a whole.
        """
        standardise(self, data)

    def set_dropout(self, probability: float) -> None:
        """Sets the probability with which a hidden unit of the learned layers is dropped in training mode."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability

    def gate_parameters(self) -> Iterator[nn.Parameter]:
        """Yields the gates' parameters, if the layer has gates."""
        gates = getattr(self.layer, "gate_logits", None)
        if isinstance(gates, nn.Parameter):
            yield gates
        elif isinstance(gates, nn.Module):
            yield from gates.parameters()

    def program_parameters(self) -> Iterator[nn.Parameter]:
        """Yields the program's own learnable parameters."""
        gates = {id(parameter) for parameter in self.gate_parameters()}
        yield from (p for p in self.layer.parameters() if p.requires_grad and id(p) not in gates)

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Yields the parameters of the learned layers."""
        for backbone in (self.before, self.after):
            if backbone is not None:
                yield from backbone.parameters()

    def scale_parameters(self) -> Iterator[nn.Parameter]:
        """Yields those of them that are the log-scales of elements in affine layers, which have to go furthest."""
        for backbone in (self.before, self.after):
            yield from () if backbone is None else backbone.scale_parameters()

    def extra_repr(self) -> str:
        configuration = self.configuration
        return f"backbone={configuration.backbone!r}, placement={configuration.placement!r}, dim={self.layer.dim}"


def _without_gates(layer: Any) -> Any:
    """Returns a new layer of the same program with the same parameter values and no gates."""
    fresh = type(layer)(layer.program, gate=None, optimize=layer.optimize)
    own = layer.state_dict()
    fresh.to(next(layer.parameters(), torch.zeros(())))
    fresh.load_state_dict({name: own[name] for name in fresh.state_dict()})
    return fresh


def _configuration(**options: Any) -> FlowConfiguration:
    try:
        return FlowConfiguration(**options)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {message}" if where else message) from error
