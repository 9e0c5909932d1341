"""A guide for Pyro: the model's own prior, gated, on top of learned layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from emfc.errors import UserError
from emfc.inference._pyro_guide import FlowGuide
from emfc.inference.amortised_fit import fit_amortised
from emfc.inference.fitting import FitRecord, fit_variational
from emfc.inference.hmc import Chains, run_nuts
from emfc.inference.infer import compile_posterior
from emfc.inference.variational import VariationalFlow
from emfc.inference.weighted import require_count
from emfc.layers.log_joint import LogJoint
from emfc.options import keywords_of, read_keywords, read_number, read_seed, read_whole

__all__ = ["EMFGuide"]


class EMFGuide(FlowGuide):
    r"""A guide made of the model's own prior.

    .. math:: x = T_\lambda(B(e)), \qquad e \sim N(0, 1)

    with T the compiled prior, its gates \(\lambda\), and B the learned layers. It is a Pyro guide as any other
    `AutoContinuous`: `SVI`, `Predictive` and `NeuTraReparam` take it. `fit` trains it faster than `SVI` does, through
    the compiled log joint density.

    It is built at its first call or by `setup`. A model whose data the compiler cannot evaluate trains by `SVI`.

    Args:
        model: Any callable that calls Pyro's primitives.
        backbone: Kind of the learned layers.
        gate: Gates of the prior: ``"site"``, ``"element"`` or None.
        informed: Whether the learned layers see the prior's own conditional parameters.
        amortize: Conditions the flow on the data, so that new data cost one pass: True, the width of its network,
            ``"set"`` for one that does not depend on the order of rows, or an `nn.Module` from flat data ``[*, O]`` to
            a context ``[*, C]``.
        create_plates: As for Pyro's other guides.
        name: What its parameters are called in Pyro's parameter store; ``EMFGuide_`` and the model's name if it is
            not given. Guides of one model that `SVI` trains in one process need different names.
        **options: Further options of `VariationalFlow`, such as ``transforms`` and ``hidden_features``.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, emfc
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> guide = emfc.EMFGuide(model, backbone="meanfield")
        >>> sorted(guide(torch.tensor(2.0)))
        ['mean']
    """

    @classmethod
    def from_flow(cls, model: Callable[..., Any], flow: VariationalFlow, *args: Any, **kwargs: Any) -> EMFGuide:
        """The guide of a flow that is trained already.

        Args:
            model: The model.
            flow: The flow over its latent sites.
            *args: The model's own arguments.
            **kwargs: The model's own keyword arguments.

        Raises:
            UserError: The flow is of other sites than the model's.
        """
        guide = cls(model)
        guide._build(args, kwargs, flow)
        return guide

    # ------------------------------------------------------------------ training and sampling without handlers

    def log_joint(self, *args: Any, **kwargs: Any) -> LogJoint:
        """The compiled log joint density of the model, on the guide's device; its parameters are fixed.

        Raises:
            CompileError: The model cannot be compiled with its data.
            UserError: A mask takes the prior of a latent site away.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        given = (args, kwargs) if args or kwargs else self._arguments
        with poutine.block(), torch.enable_grad():
            held = compile_posterior(self._original[0], *given[0], **given[1])
        return held.to(next(self.flow.parameters()).device).requires_grad_(False)

    def fit(
        self,
        *args: Any,
        seconds: float | None = None,
        steps: int | None = None,
        particles: int | None = None,
        objective: str = "auto",
        seed: int = 0,
        datasets: Tensor | None = None,
        progress: Callable[[int, float], None] | None = None,
        **kwargs: Any,
    ) -> FitRecord:
        """Train the guide on the compiled log joint density; the model's own parameters keep their values.

        An amortised guide is trained for all data that the model can draw (`emfc.inference.amortised`).

        Args:
            *args: The model's own arguments.
            seconds: Wall time at most.
            steps: Number of optimiser steps at most.
            particles: Draws per step.
            objective: As for `fit_variational`; for an amortised guide ``"auto"``, ``"forward"`` or ``"elbo"``.
            seed: Of its random numbers.
            datasets: For an amortised guide, flat data sets ``[S, O]`` to train on by the ELBO.
            progress: Called with the step and the ELBO there.
            **kwargs: The model's own keyword arguments.

        Raises:
            CompileError: The model cannot be compiled with its data; Pyro's `SVI` may still train the guide.
        """
        seed = read_seed(seed)
        read_keywords("EMFGuide.fit", keywords_of(EMFGuide.fit), self._original[0], kwargs)
        held = self.log_joint(*args, **kwargs)
        more: dict[str, Any] = {} if particles is None else {"particles": particles}
        if self.amortiser is not None:
            return fit_amortised(
                self.flow, self.amortiser, held, seconds=seconds, steps=steps, objective=objective, seed=seed,
                datasets=datasets, progress=progress, **more,
            )  # fmt: skip
        if datasets is not None:
            raise UserError("datasets are for amortised guides; make the guide with amortize=True")
        return fit_variational(
            self.flow, held, seconds=seconds, steps=steps, objective=objective, seed=seed, progress=progress, **more
        )

    def posterior_for(self, data: Tensor | Mapping[str, Any], draws: int = 1000) -> dict[str, Tensor]:
        """Draws by site for new data: one pass of an amortised guide.

        Args:
            data: Flat data ``[O]`` or ``[*, O]``, or values by data site ``[*, *shape]``.
            draws: Number of draws.

        Returns:
            Values by site, ``[draws, *, *shape]``.

        Raises:
            UserError: The guide is not amortised, or data are missing or of another shape.
        """
        self._check_built()
        require_count(draws)
        if self.amortiser is None:
            raise UserError("the guide is not amortised; make it with amortize=True")
        with torch.no_grad():
            context = self.amortiser(self.amortiser.flat(data))
            values, _ = self.flow.rsample_and_log_prob((draws,), context)
            return self.flow.layer.unpack(values)

    def nuts(
        self,
        *args: Any,
        warmup: int = 500,
        samples: int = 500,
        chains: int = 1,
        seed: int = 0,
        max_tree_depth: int = 8,
        target_accept: float = 0.85,
        **kwargs: Any,
    ) -> Chains:
        """Run the no-U-turn sampler on the compiled log joint density, in the guide's noise space.

        Args:
            *args: The model's own arguments.
            warmup: Steps of adaptation.
            samples: Draws kept per chain.
            chains: Number of chains, advanced together.
            seed: Of its random numbers.
            max_tree_depth: Doublings of a trajectory at most.
            target_accept: Acceptance that the step size is adapted to.
            **kwargs: The model's own keyword arguments.

        Returns:
            Draws by site with R-hat, effective sample sizes, divergences and seconds.
        """
        counts = {"warmup": warmup, "samples": samples, "chains": chains, "max_tree_depth": max_tree_depth}
        counts = {option: read_whole(option, value, 1) for option, value in counts.items()}
        target_accept = read_number("target_accept", target_accept, above=0.0, below=1.0)
        seed = read_seed(seed)
        read_keywords("EMFGuide.nuts", keywords_of(EMFGuide.nuts), self._original[0], kwargs)
        held = self.log_joint(*args, **kwargs)
        return run_nuts(self.flow, held, self._context(args, kwargs), seed=seed, target_accept=target_accept, **counts)
