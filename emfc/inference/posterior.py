"""What inference gives: draws with importance weights, the evidence, and whether to believe them."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emfc.errors import UserError
from emfc.inference.diagnostics import weighted_quantiles
from emfc.inference.fitting import FitRecord
from emfc.inference.summary import PROBABILITIES, Summary, make_summary
from emfc.inference.tails import Wide, wide_draws
from emfc.inference.variational import VariationalFlow
from emfc.inference.verdict import EVEN, khat_threshold, missed_verdict, verdict_on
from emfc.inference.weighted import WeightedDraws, require_count
from emfc.layers.log_joint import LogJoint
from emfc.options import read_probabilities, read_seed

if TYPE_CHECKING:
    from emfc.inference.predictive import JointProgram

__all__ = ["Posterior", "Source"]

_AT_ONCE = 1024


@dataclass(frozen=True)
class Source:
    """The model of a posterior and its arguments, for what needs to run it again.

    Attributes:
        model: The model.
        args: Its arguments.
        kwargs: Its keyword arguments.
    """

    model: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


class Posterior(WeightedDraws):
    r"""An approximate posterior of a model's latent sites, with what corrects it and what says how good it is.

    It holds S draws x of the trained family q with their log weights :math:`\log w = \log p(x, y) - \log q(x)`.

    Attributes:
        flow: The trained family.
        record: How the fit went.
        draws: The draws, flat, ``[S, D]``.
        log_joint_values: Log joint density of each draw ``[S]``.
        log_weights: Log importance weights of the draws ``[S]``, as they are.
        smoothed: Their Pareto-smoothed logarithms, whose weights have the sum 1.
        khat: Pareto k-hat of the weights: below 0.5 good, up to 0.7 usable, above not to be trusted.
        parameters: Point estimates of the model's own parameters (`pyro.param`), by name.
        data: The data that were conditioned on, by site.
        options: Options of the family.
        improper: Names of latent sites without a proper prior.
    """

    def __init__(
        self,
        flow: VariationalFlow,
        record: FitRecord,
        *,
        draws: Tensor,
        log_joint_values: Tensor,
        log_weights: Tensor,
        parameters: Mapping[str, Tensor],
        data: Mapping[str, Tensor],
        options: Mapping[str, Any],
        improper: Sequence[str] = (),
        source: Source | None = None,
        log_joint: LogJoint | None = None,
    ) -> None:
        self.flow = flow
        self.record = record
        super().__init__(draws, log_weights)
        self.log_joint_values = log_joint_values
        self.parameters = dict(parameters)
        self.data = dict(data)
        self.options = dict(options)
        self.improper = tuple(improper)
        self.source = source
        self.log_joint = log_joint

    # ------------------------------------------------------------------ how good it is

    @property
    def verdict(self) -> str:
        """What k-hat, and a search for modes that the fit has missed, say in plain words, and what to do."""
        if self.trusted and self.missed_mode is not None:
            return missed_verdict(self.missed_mode, stopped=self.record.stopped)
        return verdict_on(
            self.khat,
            len(self.draws),
            largest=self.largest,
            variance=self.variance,
            wide=self.wide,
            stopped=self.record.stopped,
        )

    @cached_property
    def wide(self) -> Wide | None:
        """What draws that spread wider than the fit say, where k-hat is high though the weights are nearly equal."""
        doubtful = self.khat >= khat_threshold(len(self.draws)) and self.variance < EVEN
        return wide_draws(self) if doubtful else None

    @cached_property
    def missed_mode(self) -> dict[str, Tensor] | None:
        """A point far from all draws where the posterior is as dense as among them, by site; None if none was found."""
        from emfc.inference.modes import missed_mode

        return missed_mode(self)

    @cached_property
    def conflicts(self) -> dict[str, float]:
        """Sites whose prior contradicts the data, and how many prior standard deviations apart they are (4 or more)."""
        from emfc.inference.conflict import conflicts

        return conflicts(self)

    # ------------------------------------------------------------------ what it says

    @property
    def sites(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the latent sites, in order."""
        return dict(self.flow.layer.example_sites)

    @cached_property
    def mean(self) -> dict[str, Tensor]:
        """Posterior mean of each site, reweighted where the weights can be trusted."""
        return self._unpack(self.average(self.draws))

    @cached_property
    def sd(self) -> dict[str, Tensor]:
        """Posterior standard deviation of each site, reweighted where the weights can be trusted."""
        return self._unpack(self.average((self.draws - self.average(self.draws)).square()).sqrt())

    def quantiles(self, *probabilities: float) -> dict[str, Tensor]:
        """Posterior quantiles of each site ``[q, *site_shape]``, reweighted where the weights can be trusted."""
        held = read_probabilities(probabilities or PROBABILITIES)
        levels = torch.tensor(held, dtype=self.draws.dtype, device=self.draws.device)
        return self._unpack(weighted_quantiles(self.draws, self.weights, levels))

    def _unpack(self, flat: Tensor) -> dict[str, Tensor]:
        """Numbers about elements ``[*, D]`` by site; a discrete site's are not rounded."""
        found, start = {}, 0
        for site, shape in self.sites.items():
            size = math.prod(shape)
            found[site] = flat[..., start : start + size].reshape((*flat.shape[:-1], *shape))
            start += size
        return found

    def summary(self) -> Summary:
        """The table: mean, standard deviation, quantiles, effective draws and k-hat of each element."""
        return self._summary

    @cached_property
    def _summary(self) -> Summary:
        return make_summary(self)

    # ------------------------------------------------------------------ draws

    def sample(self, n: int, *, seed: int | None = None) -> dict[str, Tensor]:
        """Fresh draws of the trained family, by site ``[n, *site_shape]``.

        Args:
            n: How many.
            seed: For draws that repeat; torch's own generator if left out.
        """
        require_count(n)
        like = self.draws
        generator = None if seed is None else torch.Generator(like.device).manual_seed(read_seed(seed))
        noise = torch.randn(n, self.flow.noise_dim, dtype=like.dtype, device=like.device, generator=generator)
        with torch.no_grad():
            parts = [self.flow.rsample_and_log_prob((len(e),), noise=e)[0] for e in noise.split(_AT_ONCE)]
        return self.flow.layer.unpack(torch.cat(parts))

    def resample(self, n: int, *, seed: int = 0) -> dict[str, Tensor]:
        """Draws of equal weight, by site ``[n, *site_shape]``: the held draws, each as often as its weight says.

        Systematic resampling of the Pareto-smoothed weights, in random order; draws of large weight come repeatedly.

        Args:
            n: How many.
            seed: Seed of the choice.
        """
        return self.flow.layer.unpack(self.draws[self.chosen(n, seed)])

    @cached_property
    def joint(self) -> JointProgram | None:
        """The compiled program of latent sites and data together, where there is one."""
        from emfc.inference.predictive import joint_program

        return None if self.log_joint is None else joint_program(self.log_joint)

    def predictive(self, n: int = 1000, *, seed: int = 0) -> dict[str, Tensor]:
        """Draws of new data given draws of the posterior, by data site ``[n, *site_shape]``.

        The compiled program draws them where it can, else Pyro's `Predictive`.

        Args:
            n: How many.
            seed: Seed of both.

        Raises:
            UserError: The posterior was loaded without its model, or the model has no data.
        """
        from emfc.inference.predictive import predictive_draws

        return predictive_draws(self, n, seed=seed)

    # ------------------------------------------------------------------ elsewhere

    @property
    def guide(self) -> Any:
        """The trained family as a Pyro guide: for `Predictive`, `NeuTraReparam` and NUTS.

        Raises:
            UserError: The posterior was loaded without its model.
        """
        from emfc.inference.fixed import with_parameters
        from emfc.inference.guide import EMFGuide

        source = self.require_source("a guide")
        model = with_parameters(source.model, self.parameters)
        return EMFGuide.from_flow(model, self.flow, *source.args, **source.kwargs)

    def require_source(self, what: str) -> Source:
        """The model.

        Raises:
            UserError: The posterior was loaded without it.
        """
        if self.source is None:
            raise UserError(f"{what} needs the model: give it to Posterior.load(path, model, ...)")
        return self.source

    def to_arviz(self, *, predictive: int = 0, seed: int = 0) -> Any:
        """The posterior as ArviZ's InferenceData: draws of equal weight, cut into four chains.

        The draws are resampled by their weights where these can be trusted; else they are the family's own. Groups:
        ``posterior``, ``sample_stats`` (``lp``, ``log_weight``), ``observed_data`` and, if asked for,
        ``posterior_predictive``.

        Args:
            predictive: Number of posterior predictive draws, rounded up to a multiple of four; 0 for none. Those of a
                chain are given the first draws of the same chain of ``posterior``, one each.
            seed: Seed of resampling and of these.

        Raises:
            UserError: ArviZ is not installed, or more predictive draws are asked for than there are draws.
        """
        from emfc.inference.arviz_export import to_inference_data

        return to_inference_data(self, predictive=predictive, seed=seed)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the posterior into a folder: ``posterior.json`` and ``posterior.safetensors``; never a pickle.

        Raises:
            UserError: It cannot be written.
        """
        from emfc.inference.storage import save_posterior

        save_posterior(self, path)

    @staticmethod
    def load(
        path: str | os.PathLike[str], model: Callable[..., Any] | None = None, *args: Any, **kwargs: Any
    ) -> Posterior:
        """Reads a posterior from a folder; runs no code of the folder's.

        Args:
            path: The folder.
            model: The model, where predictive draws or the guide are wanted.
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.

        Raises:
            UserError: The folder is missing, damaged or from a newer version, or the model or its data are others.
        """
        from emfc.inference.storage import load_posterior

        return load_posterior(path, None if model is None else Source(model, args, kwargs))

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise UserError(
            "a posterior is never pickled; write it into a folder with posterior.save(path), and read it again with "
            "emfc.Posterior.load(path, model, ...)"
        )

    def __copy__(self) -> Posterior:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Posterior:
        made = memo[id(self)] = object.__new__(type(self))
        made.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return made

    def __repr__(self) -> str:
        return f"Posterior(sites={list(self.sites)}, elbo={self.elbo:.3f}, khat={self.khat:.2f})"
