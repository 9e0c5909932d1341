"""The parts of zuko that the backbones use, imported without its side effects on torch's distributions.

Importing zuko turns argument validation off for every torch distribution and empties ``Distribution.arg_constraints``.
Both are put back here. What stays is ``Transform.call_and_ladj``, which zuko's own transforms need; no other room
relies on it.
"""

from __future__ import annotations

from torch.distributions import Distribution

__all__ = [
    "AutoregressiveTransform",
    "DependentTransform",
    "GeneralCouplingTransform",
    "MaskedLinear",
    "MonotonicRQSTransform",
]

_saved = {name: Distribution.__dict__[name] for name in ("_validate_args", "arg_constraints")}
try:
    from zuko.flows.coupling import GeneralCouplingTransform
    from zuko.nn import MaskedLinear
    from zuko.transforms import AutoregressiveTransform, DependentTransform, MonotonicRQSTransform
finally:
    for _name, _value in _saved.items():
        setattr(Distribution, _name, _value)
