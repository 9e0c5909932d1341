"""What must be the same for a training to go on from where another stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["digest_of_program", "digest_of_values"]


def digest_of_values(values: Mapping[str, Tensor]) -> str:
    """Give a checksum of named tensors: of names, shapes, types and every number."""
    digest = hashlib.sha256()
    for name, tensor in values.items():
        held = tensor.detach().cpu().contiguous()
        digest.update(json.dumps([name, str(held.dtype), list(held.shape)]).encode())
        digest.update(held.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def digest_of_program(program: Any) -> str:
    """Give a checksum of a compiled program; where its lines stand in a file does not count."""
    from emfc.program.serialize import program_to_document

    document, tensors = program_to_document(program)
    document["sites"] = [
        {key: value for key, value in site.items() if key not in ("location", "source")} for site in document["sites"]
    ]
    text = json.dumps(document, sort_keys=True)
    return hashlib.sha256(f"{text}{digest_of_values(tensors)}".encode()).hexdigest()
