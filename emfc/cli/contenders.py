"""The flows that ``emfc train`` compares: built, trained and measured on the same test rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emfc.errors import UserError

if TYPE_CHECKING:
    from emfc.cli.training_folder import TrainingFolder
    from emfc.flows import EmbeddedModelFlow
    from emfc.training import FitResult

__all__ = ["Contender", "Trained", "baseline_flow", "copula_flow", "equal_spline", "measure", "set_start"]


@dataclass(frozen=True)
class Contender:
    """A flow that is yet to be trained.

    Attributes:
        key: Its name in files and JSON.
        title: Its name in tables.
        flow: The flow.
    """

    key: str
    title: str
    flow: EmbeddedModelFlow


@dataclass(frozen=True)
class Trained:
    """A flow that was trained, and the log densities (nats) that it gives the test rows."""

    contender: Contender
    result: FitResult
    log_prob: Tensor

    def metrics(self, *, first: Trained, levels: list[int] | None) -> dict[str, Any]:
        """Give the numbers of a row.

        Args:
            first: The embedded-model flow, to which others are compared.
            levels: Number of levels of each element, where all elements have finitely many.

        Returns:
            Keys as in the JSON output; standard errors are not a number for fewer than two rows.
        """
        nll, error = mean_and_error(-self.log_prob)
        found: dict[str, Any] = {
            "test_nll": nll,
            "test_nll_se": error,
            **unit_metrics(nll, error, levels),
            "parameters": self.contender.flow.parameter_count,
            "epochs": self.result.epochs,
            "best_epoch": self.result.best_epoch,
            "seconds": self.result.seconds,
            "stopped": self.result.stopped,
        }
        if self is not first:
            found["difference"], found["difference_se"] = mean_and_error(first.log_prob - self.log_prob)
        return found


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Give the mean over rows and its standard error."""
    values = values.double()
    rows = len(values)
    return float(values.mean()), float(values.std()) / math.sqrt(rows) if rows > 1 else math.nan


def unit_metrics(nll: float, error: float, levels: list[int] | None) -> dict[str, float]:
    """Give the loss of the dequantised values scaled to [0, 1]^D, and bits per dimension, where levels are finite."""
    if not levels:
        return {}
    return {
        "test_nll_unit": nll - sum(math.log(level) for level in levels),
        "test_nll_unit_se": error,
        "bits_per_dim": nll / (len(levels) * math.log(2)),
    }


def set_start(flow: EmbeddedModelFlow, values: Mapping[str, Any]) -> None:
    """Set starting values of program parameters.

    Raises:
        UserError: A parameter is unknown or a value does not fit it.
    """
    from emfc.cli.options import require_named

    require_named([str(name) for name in values], list(flow.graph.parameters), what="start() gives a value for")
    if not values:
        return
    try:
        flow.layer.set_values({name: torch.as_tensor(value) for name, value in values.items()})
    except (ValueError, RuntimeError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"start() gives a value that does not fit its parameter: {error}") from error


def baseline_flow(flow: EmbeddedModelFlow, *, seed: int) -> EmbeddedModelFlow:
    """Build the same flow without the program, with fresh weights of a seed."""
    torch.manual_seed(seed)
    return flow.baseline()


def copula_flow(graph: Any, flow: EmbeddedModelFlow, *, seed: int) -> EmbeddedModelFlow:
    """Build the full-covariance Gaussian copula under the program."""
    from emfc.compiler import compile as compile_program
    from emfc.flows import EmbeddedModelFlow

    torch.manual_seed(seed)
    return EmbeddedModelFlow.from_layer(
        compile_program(graph, gate=None),
        backbone="mvn",
        placement="top",
        context_features=flow.configuration.context_features,
        preprocess=copy.deepcopy(flow.preprocess),
    )


def equal_spline(flow: EmbeddedModelFlow, *, seed: int) -> EmbeddedModelFlow:
    """Build a spline flow without the program whose number of parameters is the nearest to that of ``flow``.

    The autoregressive spline flow is taken; where even its narrowest is larger, the spline coupling flow.
    """
    from emfc.flows import EmbeddedModelFlow

    target = flow.parameter_count
    configuration = flow.configuration
    depth = len(configuration.hidden_features)
    layer = flow.baseline().layer

    def build(backbone: str, width: int) -> EmbeddedModelFlow:
        torch.manual_seed(seed)
        return EmbeddedModelFlow.from_layer(
            layer,
            backbone=backbone,
            transforms=configuration.transforms,
            hidden_features=(width,) * depth,
            context_features=configuration.context_features,
            activation=configuration.activation,
            program=False,
            preprocess=copy.deepcopy(flow.preprocess),
        )

    for backbone in ("nsf", "coupling"):
        if build(backbone, 1).parameter_count <= target:
            return _nearest(lambda width, kind=backbone: build(kind, width), target)  # type: ignore[misc]
    return build("coupling", 1)


def _nearest(build: Callable[[int], EmbeddedModelFlow], target: int) -> EmbeddedModelFlow:
    """Find the width whose flow is nearest in size to the target; sizes grow with the width."""
    low, high = 1, 2
    while build(high).parameter_count <= target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if build(middle).parameter_count <= target:
            low = middle
        else:
            high = middle
    small, large = build(low), build(high)
    return small if target - small.parameter_count <= large.parameter_count - target else large


def measure(
    contender: Contender,
    parts: Mapping[str, Any],
    contexts: Mapping[str, Tensor | None],
    options: Mapping[str, Any],
    work: TrainingFolder,
) -> Trained:
    """Train a flow and measure it on the test rows.

    Args:
        contender: The flow.
        parts: ``"train"``, ``"validation"`` and ``"test"`` rows.
        contexts: Their contexts.
        options: Keyword arguments of ``fit``.
        work: Where the training is kept as it goes on.

    Returns:
        The trained flow.

    Raises:
        UserError: The data do not fit the flow, training diverges, or it cannot be kept.
    """
    from emfc.cli.console import say
    from emfc.training import fit, log_prob, make_progress

    say(f"training the {contender.title} ({contender.flow.parameter_count:,} parameters)")
    result = fit(
        contender.flow,
        parts["train"],
        context=contexts["train"],
        validation=parts["validation"],
        validation_context=contexts["validation"],
        progress=make_progress(),
        checkpoint=work.part(contender.key),
        resume=work.resumed,
        **options,
    )
    test = log_prob(contender.flow, parts["test"], context=contexts["test"], seed=options["seed"] + 2)
    return Trained(contender, result, test.cpu())
