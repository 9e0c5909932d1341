"""The state of a training on disk: enough to go on from, written aside and renamed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from emfc.errors import UserError
from emfc.flows.files import write_bytes
from emfc.flows.storage import save as save_flow

__all__ = ["Checkpoint", "TrainingState", "load_state", "read_state"]

FILE = "training.safetensors"
FORMAT = 1
SHARE = 20
LONGEST = 12


class TrainingState(BaseModel):
    """Where a training stands after an epoch, without its tensors; losses may be infinite."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    format: int = FORMAT
    seed: int
    epochs: int
    epoch: int
    step: int
    best_epoch: int
    best_nll: float
    initial_nll: float
    lowest_train_nll: float
    rate_scale: float
    diverged: int
    average_steps: int
    history: list[dict[str, float]]
    seconds: float = 0.0


class Checkpoint:
    """Writes the best flow, and what is needed to go on, into a run folder.

    The flow is written as by ``emfc.save``. Each file is complete at any moment, whenever the process is killed.

    Args:
        path: The run folder.
        every: Seconds that lie at least between two writes; up to twelve times as many where a write takes long.
    """

    def __init__(self, path: str | os.PathLike[str], *, every: float = 5.0) -> None:
        self.path = Path(path)
        self.every = every
        self._last = -float("inf")
        self._pause = every

    def due(self) -> bool:
        """Returns whether enough time has gone since the last write."""
        return time.monotonic() - self._last >= self._pause

    def write(
        self, flow: Any, best: Mapping[str, Tensor] | None, state: TrainingState, tensors: Mapping[str, Tensor]
    ) -> None:
        """Writes the flow with its best weights (None where those of the last write still are), then the state.

        Raises:
            UserError: If the folder cannot be written; what was written before is still there.
        """
        began = time.monotonic()
        if best is not None or not self.path.is_dir():
            save_flow(flow, self.path, state=best)
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_bytes(self.path / FILE, save(held, metadata={"state": state.model_dump_json()}))
        self._last = time.monotonic()
        self._pause = max(self.every, min(SHARE * (self._last - began), LONGEST * self.every))


def read_state(path: str | os.PathLike[str]) -> TrainingState | None:
    """Reads how far the training in a folder has come; None if the folder holds none.

    Raises:
        UserError: If the file is damaged or of a newer version.
    """
    found = _read(Path(path) / FILE, device=None)
    return None if found is None else found[0]


def load_state(path: str | os.PathLike[str], *, device: torch.device) -> tuple[TrainingState, dict[str, Tensor]] | None:
    """Reads the state of a training; None if the folder holds none.

    Raises:
        UserError: If the file is damaged or of a newer version.
    """
    return _read(Path(path) / FILE, device=device)


def _read(file: Path, *, device: torch.device | None) -> tuple[TrainingState, dict[str, Tensor]] | None:
    """Reads the state, and its tensors if a device is given."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt", device="cpu") as content:
            document = json.loads((content.metadata() or {})["state"])
            if isinstance(document.get("format"), int) and document["format"] > FORMAT:
                raise UserError(f"{file} was written by a newer emfc; update emfc to go on from it")
            state = TrainingState.model_validate(document)
            names = content.keys() if device is not None else ()
            tensors = {name: content.get_tensor(name).to(device) for name in names}
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError, ValidationError, AttributeError) as error:
        raise UserError(f"{file} is damaged and cannot be gone on from; remove it to start again") from error
    return state, tensors
