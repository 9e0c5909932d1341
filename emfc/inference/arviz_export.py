"""Posteriors as ArviZ reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emfc import __version__
from emfc.errors import UserError
from emfc.inference.predictive import predictive_at
from emfc.options import read_seed

if TYPE_CHECKING:
    from emfc.inference.posterior import Posterior

__all__ = ["to_inference_data"]

CHAINS = 4
"""Independent draws may be cut anywhere; in several chains ArviZ checks them by R-hat as it would a sampler's."""


def to_inference_data(posterior: Posterior, *, predictive: int = 0, seed: int = 0) -> Any:
    """The InferenceData of a posterior; see `Posterior.to_arviz`.

    Raises:
        UserError: ArviZ is not installed, or more predictive draws are asked for than there are draws.
    """
    try:
        import arviz
    except ImportError as error:
        raise UserError("to_arviz needs ArviZ, which is not installed: pip install 'emfc[arviz]'") from error
    count, seed = len(posterior.draws) // CHAINS * CHAINS, read_seed(seed)
    asked = _rounded(predictive, count)
    rows = posterior.chosen(count, seed) if posterior.trusted else torch.arange(count)
    values = posterior.flow.layer.unpack(posterior.draws[rows])
    statistics = {"lp": posterior.log_joint_values[rows], "log_weight": posterior.log_weights[rows]}
    extra: dict[str, Any] = {}
    if asked:
        first = rows.reshape(CHAINS, -1)[:, : asked // CHAINS].reshape(-1)
        extra["posterior_predictive"] = _chains(predictive_at(posterior, first, seed=seed))
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
    return {name: value.detach().cpu().reshape(CHAINS, -1, *value.shape[1:]).numpy() for name, value in values.items()}


def _rounded(predictive: int, most: int) -> int:
    """The number of predictive draws, the same for all chains.

    Raises:
        UserError: It is no number, or larger than that of the draws.
    """
    if isinstance(predictive, bool) or not isinstance(predictive, int) or not 0 <= predictive <= most:
        raise UserError(
            f"predictive is a whole number from 0 to {most}, the number of draws that go to ArviZ; not {predictive!r}"
        )
    return -(-predictive // CHAINS) * CHAINS
