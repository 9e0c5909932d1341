"""The start of a training from data: the program by itself, then the standardisation of what is learned around it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from emfc.flows.baseline import SupportLayer
from emfc.flows.normalisation import LEAST_DEVIATION, GatedNormalisation
from emfc.layers import StructuredLayer
from emfc.layers.structured import OPEN_GATE
from emfc.layers.supports import UNCOMPUTABLE

__all__ = ["fit_program", "standardise", "start_from_data", "start_gates"]

ROWS = 4000
WORK = 300_000_000
EVALUATIONS = 300
ITERATIONS = 10
HELD_OUT = 0.25
TOLERANCE = 1e-7
WORST = 1e30
AT_ONCE = 1024
NEARLY_CLOSED = -4.0
"""Logit of gates that begin nearly closed, from where they still find their way back."""


def start_from_data(flow: Any, examples: Tensor) -> None:
    """Starts a flow from training examples ``[rows, D]``: `fit_program`, `start_gates`, then ``flow.start_from_data``.

    All see the first 4000 rows at most, so give them in random order.
    """
    fit_program(flow, examples[:ROWS])
    start_gates(flow, examples[:ROWS])
    flow.start_from_data(examples[:ROWS])


@torch.no_grad()
def start_gates(flow: Any, data: Tensor) -> bool:
    r"""Lets gates begin nearly closed where the program is worse than none.

    A flow whose learned layers are the identity around standardised noise e has the loss, but for a constant,

    .. math:: \sum_j \log \operatorname{sd}(e_j) - \operatorname{mean} \log |\det \partial e / \partial x|

    which is compared with gates as they are and with gates at 0.

    Args:
        flow: The flow; its gates are left alone unless they train and all are as they were made.
        data: Training examples ``[rows, D]``, as ``fit`` takes them.

    Returns:
        Whether gates were changed.
    """
    layer = flow.layer
    logits = getattr(layer, "gate_logits", None)
    if logits is None or not logits.requires_grad or not logits.numel() or not bool((logits == OPEN_GATE).all()):
        return False
    examples = data if flow.preprocess is None else flow.preprocess(data)
    opened = _loss_at_start(layer(), examples)
    try:
        logits.fill_(-math.inf)
        worse = _loss_at_start(layer(), examples) < opened
    finally:
        logits.fill_(OPEN_GATE)
    if worse:
        logits.fill_(NEARLY_CLOSED)
    return worse


def _loss_at_start(transform: Any, examples: Tensor) -> float:
    """Loss of standardised noise under identity layers, but for a constant; infinite where it is not finite."""
    parts = [transform.inverse_and_ladj(part) for part in examples.split(AT_ONCE)]
    noise, ladj = (torch.cat(held).double() for held in zip(*parts, strict=True))
    loss = float(noise.std(0).clamp(min=LEAST_DEVIATION).log().sum() - ladj.mean())
    return loss if math.isfinite(loss) else math.inf


@torch.no_grad()
def standardise(flow: Any, data: Tensor) -> None:
    """Sets a flow's fixed affine maps by data ``[rows, D]`` and the program as it is now.

    Args:
        flow: The flow; without a program it is standardised as a whole.
        data: Training examples, as ``fit`` takes them.
    """
    examples = data if flow.preprocess is None else flow.preprocess(data)
    layer, ahead, behind = flow.layer, flow.noise_normalisation, flow.data_normalisation
    if isinstance(layer, SupportLayer):
        layer.start_from_data(examples)
    if isinstance(ahead, GatedNormalisation):
        opened, gates, logits = _inverted(layer(), examples), layer.element_gates(), layer.gate_logits.clone()
        try:
            layer.set_gates(0.0)
            closed = _inverted(layer(), examples)
        finally:
            layer.gate_logits.copy_(logits)
        ahead.set_from(opened, closed, gates)
    elif ahead is not None:
        ahead.set_from(_inverted(layer(), examples))
    if behind is not None:
        behind.set_from(_inverted(layer.constraint_map(), examples))


def _inverted(transform: Transform, examples: Tensor) -> Tensor:
    """What a transform makes examples of, in batches."""
    return torch.cat([transform.inv(part) for part in examples.split(AT_ONCE)])


def fit_program(flow: Any, data: Tensor) -> bool:
    r"""Fits the program's parameters by maximum likelihood of the bare program, as if gates were open.

    L-BFGS with a line search, in double precision where the device has it, on three quarters of at most 4000 rows; the
    other quarter chooses among the iterates. Its work is bounded: evaluations times rows times elements or parameters,
    whichever are more.

    Args:
        flow: The flow, whose learned layers are left alone.
        data: Training examples ``[rows, D]``, as ``fit`` takes them.

    Returns:
        Whether parameters were found that are better than those before, which otherwise stay.

    Source: Nocedal and Wright (2006), "Numerical Optimization", chapters 3 and 7.
    """
    layer = flow.layer
    if not isinstance(layer, StructuredLayer):
        return False
    parameters = list(layer.unconstrained)
    size = max(sum(parameter.numel() for parameter in parameters), layer.dim)
    rows = min(len(data), ROWS, max(WORK // (40 * size), 50))
    if not parameters or rows < 8:
        return False
    examples = data[:rows] if flow.preprocess is None else flow.preprocess(data[:rows])
    kept = int(rows * HELD_OUT)
    examples = examples.to(torch.float32 if examples.device.type == "mps" else torch.float64)
    search = _Search(layer, parameters, examples[kept:], examples[:kept])
    return search.run(min(EVALUATIONS, WORK // (size * rows)))


class _Search:
    """L-BFGS on the program's own parameters, which end as the best that the held-out rows have seen."""

    def __init__(self, layer: StructuredLayer, parameters: list[nn.Parameter], train: Tensor, held_out: Tensor) -> None:
        self.layer = layer
        self.own = parameters
        self.parameters = [parameter.detach().to(train.dtype, copy=True).requires_grad_() for parameter in parameters]
        self.train = train
        self.held_out = held_out
        self.evaluations = 0
        self.best = self._values()
        self.lowest = self.first = self._loss_of(held_out)

    def run(self, evaluations: int) -> bool:
        """Searches until nothing is gained any more; returns whether it found anything better."""
        optimiser, before, stalls, misses = self._optimiser(), math.inf, 0, 0
        try:
            while self.evaluations < evaluations:
                optimiser.step(self._closure)
                loss, reached = self._loss_of(self.train), self._loss_of(self.held_out)
                if reached < self.lowest:
                    self.best, self.lowest, misses = self._values(), reached, 0
                else:
                    misses += 1
                gained = before - loss > TOLERANCE * (1 + abs(loss))
                stalls = 0 if gained else stalls + 1
                if misses > 2 or stalls > 1:
                    break
                if not gained:  # a line search that got stuck; steepest descent gets it on
                    optimiser = self._optimiser()
                before = loss
        finally:
            if self.lowest < self.first:
                with torch.no_grad():
                    for parameter, value in zip(self.own, self.best, strict=True):
                        parameter.copy_(value)
        return self.lowest < self.first

    def _optimiser(self) -> torch.optim.LBFGS:
        return torch.optim.LBFGS(
            self.parameters,
            max_iter=ITERATIONS,
            max_eval=5 * ITERATIONS,
            history_size=20,
            line_search_fn="strong_wolfe",
            tolerance_grad=1e-9,
        )

    def _log_prob(self, rows: Tensor) -> Tensor:
        """Log density of the bare program at the parameters of the search."""
        return self.layer.program_log_prob(rows, self.parameters)

    def _closure(self) -> Tensor:
        self.evaluations += 1
        for parameter in self.parameters:
            parameter.grad = None
        try:
            loss = -self._log_prob(self.train).mean()
            finite = bool(torch.isfinite(loss))
            if finite and loss.requires_grad:
                loss.backward()
        except UNCOMPUTABLE:
            finite = False
        grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if not finite or not all(bool(torch.isfinite(grad).all()) for grad in grads):
            for grad in grads:
                grad.zero_()
            return self.train.new_full((), WORST)
        return loss.detach()

    @torch.no_grad()
    def _loss_of(self, rows: Tensor) -> float:
        try:
            loss = float(-self._log_prob(rows).mean())
        except UNCOMPUTABLE:
            return math.inf
        return loss if math.isfinite(loss) else math.inf

    def _values(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]
