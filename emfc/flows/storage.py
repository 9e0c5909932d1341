"""Run folders: a trained flow on disk, as JSON and safetensors, with its program stored as data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor

import emfc.distributions  # noqa: F401  stored programs may name families of the library's own
from emfc import __version__
from emfc.data import preprocess_from_config
from emfc.errors import UserError
from emfc.flows.baseline import SupportLayer
from emfc.flows.files import remove_leftovers, write_bytes, write_folder
from emfc.flows.flow import EmbeddedModelFlow
from emfc.flows.manifest import FORMAT, MANIFEST, Manifest, StoredFile, read_manifest, sha256
from emfc.layers import StructuredLayer
from emfc.program.ir import Program
from emfc.program.serialize import program_from_document, program_to_document

__all__ = ["load", "save"]


def save(flow: EmbeddedModelFlow, path: str | os.PathLike[str], *, state: Mapping[str, Tensor] | None = None) -> None:
    """Writes a flow into a run folder: ``manifest.json``, ``program.safetensors`` and ``weights.safetensors``.

    The program is stored as data, so that neither its source file nor any pickle is needed to load it. A flow that the
    folder holds already is replaced; other files in the folder stay. Whenever the process is killed, the folder holds
    either the old flow or the new one, complete.

    Args:
        flow: The flow.
        path: The run folder; made if it is not there.
        state: Weights to store in place of the flow's own, by parameter name.

    Raises:
        UserError: If the folder cannot be written.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"cannot write the run folder {folder}: there is a file of that name")
    layer = flow.layer.program_layer if isinstance(flow.layer, SupportLayer) else flow.layer
    document, tensors = program_to_document(layer.program)
    weights = {**flow.state_dict(), **(state or {})}
    contents = {"program": _tensor_bytes(tensors), "weights": _tensor_bytes(weights)}
    manifest = Manifest(
        format=FORMAT,
        emfc=__version__,
        configuration=flow.configuration,
        gate=layer.gate,
        gate_form=getattr(layer, "gate_form", "value"),
        optimize=layer.optimize,
        dtype=str(flow.noise_reference.dtype).removeprefix("torch."),  # type: ignore[arg-type]
        preprocess=None if flow.preprocess is None else flow.preprocess.config(),
        program=document,
        files={},
    )
    plain = {kind: f"{kind}.safetensors" for kind in contents}
    if not folder.exists():
        _name_files(manifest, contents, plain)
        files = {plain[kind]: content for kind, content in contents.items()}
        write_folder(folder, {**files, MANIFEST: manifest.seal()})
        return
    _replace(folder, manifest, contents, plain)


def _replace(folder: Path, manifest: Manifest, contents: Mapping[str, bytes], plain: Mapping[str, str]) -> None:
    """Puts a flow into a folder that exists, so that the manifest names complete files at every moment.

    The new files first get names of their own; then the manifest changes over to them; then the plain names, which
    nothing refers to any more, are renewed and the manifest changes over once more.
    """
    remove_leftovers(folder)
    aside = {kind: f"{kind}-{sha256(content)[:16]}.safetensors" for kind, content in contents.items()}
    if (folder / MANIFEST).exists():
        for kind, content in contents.items():
            write_bytes(folder / aside[kind], content)
        _name_files(manifest, contents, aside)
        write_bytes(folder / MANIFEST, manifest.seal())
    for kind, content in contents.items():
        write_bytes(folder / plain[kind], content)
    _name_files(manifest, contents, plain)
    write_bytes(folder / MANIFEST, manifest.seal())
    for kind in contents:
        for old in folder.glob(f"{kind}-{'[0-9a-f]' * 16}.safetensors"):
            old.unlink(missing_ok=True)


def _name_files(manifest: Manifest, contents: Mapping[str, bytes], names: Mapping[str, str]) -> None:
    manifest.files = {kind: StoredFile.of(names[kind], content) for kind, content in contents.items()}  # type: ignore[misc]


def _tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return write_tensors({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})


def load(path: str | os.PathLike[str], *, device: torch.device | str | None = None) -> EmbeddedModelFlow:
    """Reads a flow from a run folder; runs no code of the folder's and reads no pickle.

    Args:
        path: The run folder.
        device: Where to put the flow; the CPU if left out.

    Raises:
        UserError: If the folder is missing, damaged, changed after it was saved, or from a newer version.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    tensors = _read_tensors(folder, manifest, "program")
    weights = _read_tensors(folder, manifest, "weights")
    program = program_from_document(manifest.program, tensors)
    layer = _layer(program, manifest, folder)
    if not manifest.configuration.program:
        layer = SupportLayer(layer)
    preprocess = None
    if manifest.preprocess is not None:
        preprocess = preprocess_from_config(manifest.preprocess)
    flow = EmbeddedModelFlow.from_layer(layer, manifest.configuration, preprocess=preprocess)
    flow.to(dtype=getattr(torch, manifest.dtype))
    _fill(flow, weights, folder / manifest.files["weights"].name)
    return flow.to(device=device) if device is not None else flow


def _layer(program: Program, manifest: Manifest, folder: Path) -> Any:
    """The layer of a stored program, tried once: a program that was tampered with must not fail later."""
    try:
        layer = StructuredLayer(program, gate=manifest.gate, gate_form=manifest.gate_form, optimize=manifest.optimize)
        with torch.no_grad():
            prototype = layer.supports.prototype(torch.zeros(0, dtype=getattr(torch, program.dtype)))
            layer().log_prob(prototype)
    except Exception as error:
        raise UserError(f"{folder} holds a program that cannot be run: {type(error).__name__}: {error}") from error
    return layer


def _read_tensors(folder: Path, manifest: Manifest, kind: Any) -> dict[str, Tensor]:
    if kind not in manifest.files:
        raise UserError(f"{folder / MANIFEST} is damaged: it names no {kind} file")
    stored = manifest.files[kind]
    file = folder / stored.name
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error}); the run folder is not complete") from error
    if len(content) < stored.size:
        raise UserError(f"{file} is truncated: it has {len(content)} of {stored.size} bytes; the run folder is damaged")
    if sha256(content) != stored.sha256:
        raise UserError(f"{file} was changed after it was saved: its checksum does not match")
    try:
        return read_tensors(content)
    except SafetensorError as error:
        raise UserError(f"{file} is damaged: {error}") from error


def _fill(flow: EmbeddedModelFlow, weights: Mapping[str, Tensor], file: Path) -> None:
    """Copies stored weights into a flow, name by name, of the same shapes."""
    own = flow.state_dict()
    differing = sorted(own.keys() ^ weights.keys())
    if differing:
        raise UserError(f"{file} does not fit its manifest: the tensor {differing[0]!r} is in only one of them")
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape or tensor.dtype != weights[name].dtype:
            raise UserError(f"{file} does not fit its manifest: the tensor {name!r} has another shape or type")
    flow.load_state_dict(dict(weights))
