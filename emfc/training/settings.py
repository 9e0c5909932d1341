"""The numbers of a training, and where it stands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from emfc.options import read_number, read_whole
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
        for name in ("epochs", "batch_size"):
            read_whole(name, getattr(self, name), 1)
        if self.steps is not None:
            read_whole("steps", self.steps, 1)
        if self.patience != math.inf:
            read_whole("patience", self.patience, 1)
        read_whole("max_divergences", self.max_divergences, 0)
        for name in ("learning_rate", "gradient_clip"):
            read_number(name, getattr(self, name), above=0.0, infinite=True)
        for name in ("gate_factor", "program_factor", "weight_decay"):
            read_number(name, getattr(self, name), least=0.0, infinite=True)
        for name in ("warm_up", "averaging", "dropout"):
            read_number(name, getattr(self, name), least=0.0, below=1.0)


@dataclass
class Outcome:
    """Where a training stands."""

    history: list[EpochRow] = field(default_factory=list)
    best_epoch: int = 0
    best_nll: float = math.inf
    seconds: float = 0.0
    stopped: str = "epochs"
    diverged: int = 0
