"""What a flow is built of, as data that is validated and stored with it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from emfc.flows.networks import ACTIVATIONS

__all__ = ["BackboneName", "FlowConfiguration", "Placement"]

BackboneName = Literal["maf", "nsf", "coupling", "mvn"]
Placement = Literal["top", "middle", "bottom"]


class FlowConfiguration(BaseModel):
    """The learned layers of a flow and the place of its program.

    Attributes:
        backbone: Kind of the learned layers; None for the bare program.
        placement: Where the program stands: next to the data, in the middle, or as the base.
        transforms: Number of learned layers.
        hidden_features: Widths of the hidden layers of each hyper-network.
        context_features: Width of the context; 0 for none.
        activation: Activation of the hyper-networks.
        log_scale_bound: How far others and the context may take the log-scale of an element of an affine layer down
            from a number of its own, so that an example unlike those of the training is not thrown far away. None:
            the whole log-scale is an output of the network.
        bins: Number of bins of a spline.
        bound: Half-width of the domain of a spline; the identity outside.
        core: Half-width of the part of that domain in which the knots start equally spaced.
        program: False for a baseline, in which only the program's constraint map is left.
        normalise: Whether the learned layers see standardised values: fixed affine maps, the identity until they are
            set from data (``EmbeddedModelFlow.start_from_data``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    backbone: BackboneName | None = "maf"
    placement: Placement = "top"
    transforms: int = Field(default=2, ge=1, le=1000)
    hidden_features: tuple[int, ...] = Field(default=(128, 128), min_length=1, strict=False)
    context_features: int = Field(default=0, ge=0)
    activation: str = "tanh"
    log_scale_bound: float | None = Field(default=3.0, gt=0.0)
    bins: int = Field(default=8, ge=2, le=1024)
    bound: float = Field(default=10.0, gt=0.0)
    core: float = Field(default=4.0, gt=0.0)
    program: bool = True
    normalise: bool = True

    @model_validator(mode="after")
    def _check(self) -> FlowConfiguration:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}; it must be one of {', '.join(ACTIVATIONS)}")
        if any(width < 1 for width in self.hidden_features):
            raise ValueError(f"hidden_features is {self.hidden_features}; every width must be at least 1")
        if self.placement == "middle" and self.transforms < 2 and self.backbone not in ("mvn", None):
            raise ValueError('placement="middle" needs transforms >= 2, since the learned layers are split around it')
        if self.backbone is None and self.context_features:
            raise ValueError("context_features needs a backbone, since only learned layers see the context")
        return self
