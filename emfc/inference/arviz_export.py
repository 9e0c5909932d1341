"""Posteriors as ArviZ reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emfc import __version__
from emfc.errors import UserError

if TYPE_CHECKING:
    from emfc.inference.posterior import Posterior

__all__ = ["to_inference_data"]

CHAINS = 4
"""Independent draws may be cut anywhere; in several chains ArviZ checks them by R-hat as it would a sampler's."""


def to_inference_data(posterior: Posterior, *, predictive: int = 0, seed: int = 0) -> Any:
    """The InferenceData of a posterior; see `Posterior.to_arviz`.

    Raises:
        UserError: ArviZ is not installed.
    """
    try:
        import arviz
    except ImportError as error:
        raise UserError("to_arviz needs ArviZ, which is not installed: pip install 'emfc[arviz]'") from error
    count = len(posterior.draws) // CHAINS * CHAINS
    rows = posterior.chosen(count, seed) if posterior.trusted else torch.arange(count)
    values = posterior.flow.layer.unpack(posterior.draws[rows])
    statistics = {"lp": posterior.log_joint_values[rows], "log_weight": posterior.log_weights[rows]}
    extra: dict[str, Any] = {}
    if predictive:
        extra["posterior_predictive"] = _chains(posterior.predictive(predictive, seed=seed))
    attributes = {
        "inference_library": "emfc",
        "inference_library_version": __version__,
        "khat": posterior.khat,
        "elbo": posterior.elbo,
        "resampled": int(posterior.trusted),
    }
    return arviz.from_dict(
        posterior=_chains(values),
        sample_stats=_chains(statistics),
        observed_data={name: value.cpu().numpy() for name, value in posterior.data.items()},
        posterior_attrs=attributes,
        **extra,
    )


def _chains(values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arrays with the chains in front, ``[chains, draws, *]``."""
    held = {name: value[: len(value) // CHAINS * CHAINS] for name, value in values.items()}
    return {name: value.detach().cpu().reshape(CHAINS, -1, *value.shape[1:]).numpy() for name, value in held.items()}
