"""The numbers of a training, and where it stands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from emfc.training.progress import EpochRow

__all__ = ["Outcome", "Settings"]


@dataclass(frozen=True)
class Settings:
    """Numbers of a training; see ``fit``."""

    epochs: int
    batch_size: int
    learning_rate: float
    gate_factor: float
    program_factor: float
    weight_decay: float
    warm_up: float
    patience: int
    gradient_clip: float
    averaging: float
    dropout: float
    max_divergences: int
    seed: int
    steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "patience", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        if self.steps is not None and not self.steps > 0:
            raise ValueError(f"steps is {self.steps}; it must be positive")
        for name in ("gate_factor", "program_factor", "weight_decay", "max_divergences"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("warm_up", "averaging", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")


@dataclass
class Outcome:
    """Where a training stands."""

    history: list[EpochRow] = field(default_factory=list)
    best_epoch: int = 0
    best_nll: float = math.inf
    seconds: float = 0.0
    stopped: str = "epochs"
    diverged: int = 0
