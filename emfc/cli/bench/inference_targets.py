"""Targets of inference: programs, their data and reference posteriors, exact evidence, and what has to be reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["TARGETS", "Goals", "InferenceTarget", "NutsGoals"]

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Goals:
    """What a fit has to reach.

    Attributes:
        gap: Exact log evidence less the ELBO, in nats, at most.
        stretch: The same, that is hoped for.
        khat: Below this.
        mean: Worst error of a posterior mean, in reference standard deviations, at most.
        ratios: Range for the standard deviations over those of the reference.
        mean_stretch: Error of a mean that is hoped for.
    """

    gap: float
    stretch: float
    khat: float
    mean: float
    ratios: tuple[float, float]
    mean_stretch: float | None = None


@dataclass(frozen=True)
class NutsGoals:
    """What the no-U-turn sampler has to reach through the guide, 500 + 500 steps of one chain.

    Attributes:
        ess: Effective draws of the worst parameter, at least.
        seconds: All in, at most.
        over_peer: Effective draws per second over those of the sampler through Pyro's `AutoIAFNormal`, at least.
        mean: Worst error of a posterior mean, in reference standard deviations, at most.
    """

    ess: float | None = None
    seconds: float | None = None
    over_peer: float | None = None
    mean: float = 0.12


def _sites(values: Values) -> Values:
    return values


def _series(prefix: str) -> Callable[[Values], Values]:
    """All steps of a series as the one parameter that the reference has, whose name is empty."""

    def read(values: Values) -> Values:
        steps = sorted((name for name in values if name.startswith(prefix)), key=lambda name: int(name[len(prefix) :]))
        return {"": torch.stack([values[name] for name in steps], 1)}

    return read


def _schools(values: Values) -> Values:
    mu, log_tau = values["mu"], values["log_tau"]
    effects = mu[:, None] + torch.exp(log_tau)[:, None] * values["standard"]
    return {"avg_effect": mu, "log_stddev": log_tau, "school_effects": effects}


def _means(values: Values) -> Values:
    """Both means of the hidden Markov chain, from the first and the gap."""
    return {**values, "mu": torch.stack([values["first"], values["first"] + values["gap"]], -1)}


def _weights(values: Values) -> Values:
    return {"": values["weights"]}


@dataclass(frozen=True)
class InferenceTarget:
    """A posterior to infer.

    Attributes:
        key: What it is called on the command line.
        title: What it is called in tables.
        program: File and name in the folder of programs.
        evidence: Minus its log evidence, in nats; None where it isn't known.
        reference: ``posteriordb/NAME`` or ``inference_gym/FILE``: where means and standard deviations come from.
        data: File of the real data; None where the program has them.
        goals: What has to be reached; None where the target is measured only.
        nuts: What the sampler has to reach.
        seconds: Budget of training.
        quantities: Quantities of the reference from the values of the sites.
        settings: The program's keyword arguments.
    """

    key: str
    title: str
    program: str
    evidence: float | None
    reference: str
    data: str | None = None
    goals: Goals | None = None
    nuts: NutsGoals | None = None
    seconds: float = 15.0
    quantities: Callable[[Values], Values] = field(default=_sites, repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)


_GYM = "inference_gym/{}.json"
_BROWNIAN = "brownian_motion_missing_middle_observations"
_LORENZ = "convection_lorenz_bridge"

_ALL = (
    InferenceTarget(
        "eight-schools",
        "eight schools, paper's",
        "eight_schools.py",
        36.1308,
        _GYM.format("ground_truth_eight_schools"),
        goals=Goals(0.03, 0.01, 0.6, 0.06, (0.93, 1.05)),
        quantities=_schools,
    ),
    InferenceTarget(
        "eight-schools-centred",
        "eight schools, posteriordb centred",
        "eight_schools.py:centred",
        31.3113,
        "posteriordb/eight_schools-eight_schools_centered",
        goals=Goals(0.03, 0.015, 0.6, 0.06, (0.93, 1.05)),
        nuts=NutsGoals(over_peer=2.0),
    ),
    InferenceTarget(
        "brownian-bridge",
        "Brownian bridge",
        "brownian_bridge.py",
        -5.6130,
        reference=_GYM.format(f"ground_truth_{_BROWNIAN}"),
        data=_GYM.format(f"data_{_BROWNIAN}"),
        goals=Goals(0.005, 0.001, 0.2, 0.05, (0.96, 1.04)),
        seconds=30.0,
        quantities=_series("x_"),
    ),
    InferenceTarget(
        "lorenz-bridge",
        "Lorenz bridge",
        "lorenz_bridge.py",
        29.207,
        reference=_GYM.format(f"ground_truth_{_LORENZ}"),
        data=_GYM.format(f"data_{_LORENZ}"),
        goals=Goals(0.25, 0.10, 0.6, 0.10, (0.80, 1.12), mean_stretch=0.05),
        nuts=NutsGoals(ess=300.0, seconds=60.0),
        seconds=30.0,
        quantities=_series("s_"),
    ),
    InferenceTarget(
        "radon-minnesota",
        "radon Minnesota",
        "radon_minnesota.py",
        1076.9517,
        reference=_GYM.format("ground_truth_radon_contextual_effects_minnesota_halfnormal"),
        data=_GYM.format("data_radon_minnesota"),
        goals=Goals(0.25, 0.10, 0.6, 0.08, (0.82, 1.05)),
        nuts=NutsGoals(over_peer=2.0),
        seconds=30.0,
    ),
    InferenceTarget(
        "german-credit",
        "German credit",
        "german_credit.py",
        529.177,
        reference=_GYM.format("ground_truth_german_credit_numeric_logistic_regression"),
        data="inference_gym/data_german_credit_numeric.csv",
        goals=Goals(0.035, 0.02, 0.6, 0.05, (0.96, 1.04)),
        quantities=_weights,
    ),
    InferenceTarget(
        "kidscore",
        "kidscore interaction",
        "kidscore.py",
        1872.8159,
        reference="posteriordb/kidiq-kidscore_interaction",
        data="posteriordb/data/kidiq.json",
        goals=Goals(0.01, 0.003, 0.6, 0.05, (0.97, 1.03)),
    ),
    InferenceTarget(
        "nes1980",
        "nes1980",
        "nes1980.py",
        1425.1725,
        reference="posteriordb/nes1980-nes",
        data="posteriordb/data/nes1980.json",
        goals=Goals(0.008, 0.002, 0.5, 0.05, (0.97, 1.03)),
    ),
    InferenceTarget(
        "kilpisjarvi",
        "kilpisjarvi",
        "kilpisjarvi.py",
        103.2262,
        reference="posteriordb/kilpisjarvi_mod-kilpisjarvi",
        data="posteriordb/data/kilpisjarvi_mod.json",
        goals=Goals(0.02, 0.004, 0.6, 0.05, (0.94, 1.04)),
    ),
    InferenceTarget(
        "gaussian-mixture",
        "low-dimensional mixture",
        "gaussian_mixture.py",
        2115.683,
        reference="posteriordb/low_dim_gauss_mix-low_dim_gauss_mix",
        data="posteriordb/data/low_dim_gauss_mix.json",
        goals=Goals(0.005, 0.002, 0.6, 0.05, (0.97, 1.03)),
    ),
    InferenceTarget(
        "gaussian-process",
        "gp_regr",
        "gaussian_process.py",
        27.5555,
        reference="posteriordb/gp_pois_regr-gp_regr",
        data="posteriordb/data/gp_pois_regr.json",
        goals=Goals(0.006, 0.003, 0.6, 0.05, (0.97, 1.04)),
    ),
    InferenceTarget(
        "garch",
        "garch11",
        "garch.py",
        451.0,
        reference="posteriordb/garch-garch11",
        data="posteriordb/data/garch.json",
        goals=Goals(0.015, 0.005, 0.7, 0.06, (0.95, 1.03)),
    ),
    InferenceTarget(
        "autoregression-order-k",
        "arK",
        "autoregression_order_k.py",
        -58.5876,
        reference="posteriordb/arK-arK",
        data="posteriordb/data/arK.json",
    ),
    InferenceTarget(
        "hidden-markov",
        "hmm_example",
        "hidden_markov_posterior.py",
        None,
        reference="posteriordb/hmm_example-hmm_example",
        data="posteriordb/data/hmm_example.json",
        quantities=_means,
    ),
    InferenceTarget(
        "earnings",
        "earn_height",
        "earnings.py",
        13405.7204,
        reference="posteriordb/earnings-earn_height",
        data="posteriordb/data/earnings.json",
    ),
)

TARGETS: Mapping[str, InferenceTarget] = {target.key: target for target in _ALL}
"""Every target, in the order of the table."""
