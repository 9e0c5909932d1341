"""Posteriors on disk: JSON and safetensors, the prior program stored as data."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor

import emfc.distributions  # noqa: F401  stored programs may name families of the library's own
from emfc import __version__
from emfc.errors import UserError
from emfc.flows.files import write_bytes, write_folder
from emfc.flows.manifest import sha256
from emfc.inference.fitting import FitRecord
from emfc.inference.variational import VariationalFlow
from emfc.options import folder_of, keywords_of
from emfc.program.serialize import program_from_document, program_to_document

if TYPE_CHECKING:
    from emfc.inference.posterior import Posterior, Source

__all__ = ["POSTERIOR", "load_posterior", "posterior_files", "save_posterior"]

FORMAT: Final = 1
POSTERIOR = "posterior.json"
TENSORS = "posterior.safetensors"
_SAME_DATA = 1e-6  # of a number of the data, which a file or another precision may round
_RECORDED = {"steps": int, "start": str, "stopped": str, "particles": int, "objective": str, "remarks": list}
_PARTS = ("program", "weights", "parameters", "data", "draws")


class PosteriorDocument(BaseModel):
    """What ``posterior.json`` holds.

    Attributes:
        format: Version of this schema.
        emfc: Version of emfc that wrote it.
        dtype: Floating-point type.
        options: Options of the family.
        record: How the fit went.
        improper: Latent sites without a proper prior.
        program: The prior program.
        sha256: Checksum of the tensors' file.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1]
    emfc: str
    dtype: Literal["float32", "float64", "bfloat16", "float16"]
    options: dict[str, Any]
    record: dict[str, Any]
    improper: list[str]
    program: dict[str, Any]
    sha256: str


def posterior_files(posterior: Posterior) -> dict[str, bytes]:
    """The files of a posterior by name; the one with the checksum comes last."""
    document, tensors = program_to_document(posterior.flow.layer.program)
    parts: dict[str, dict[str, Tensor]] = {
        "program": tensors,
        "weights": posterior.flow.state_dict(),
        "parameters": posterior.parameters,
        "data": posterior.data,
        "draws": {
            "values": posterior.draws,
            "log_joint": posterior.log_joint_values,
            "log_weights": posterior.log_weights,
        },
    }
    flat = {f"{part}/{name}": value for part in _PARTS for name, value in parts[part].items()}
    content = write_tensors({name: value.detach().cpu().contiguous().clone() for name, value in flat.items()})
    held = PosteriorDocument(
        format=FORMAT,
        emfc=__version__,
        dtype=str(posterior.draws.dtype).removeprefix("torch."),  # type: ignore[arg-type]
        options=json.loads(json.dumps(posterior.options)),
        record=json.loads(json.dumps(_finite(asdict(posterior.record)))),
        improper=list(posterior.improper),
        program=document,
        sha256=sha256(content),
    )
    text = json.dumps(held.model_dump(mode="json", warnings="none"), indent=1, allow_nan=False)
    return {TENSORS: content, POSTERIOR: f"{text}\n".encode()}


def save_posterior(posterior: Posterior, path: str | os.PathLike[str]) -> None:
    """Writes a posterior into a folder; see `Posterior.save`."""
    folder = folder_of(path)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"cannot write the folder {folder}: there is a file of that name")
    files = posterior_files(posterior)
    if not folder.exists():
        write_folder(folder, files)
        return
    for name, content in files.items():
        write_bytes(folder / name, content)


def load_posterior(path: str | os.PathLike[str], source: Source | None) -> Posterior:
    """Reads a posterior from a folder; see `Posterior.load`."""
    from emfc.inference.infer import compile_posterior, data_values
    from emfc.inference.posterior import Posterior

    folder = folder_of(path)
    held = _read_document(folder)
    parts = _read_tensors(folder / TENSORS, held.sha256)
    try:
        record = _read_record(held.record)
        flow = _read_flow(held, parts)
        draws = _read_draws(parts["draws"], flow.dim)
    except UserError as error:
        raise UserError(f"{folder} is damaged: {error}") from error
    log_joint = None
    if source is not None:
        log_joint = compile_posterior(source.model, *source.args, **source.kwargs)
        _check_same(log_joint.target.prior(), flow, folder)
        _check_data(data_values(log_joint), parts["data"], folder)
        log_joint.to(dtype=draws["values"].dtype)
    return Posterior(
        flow,
        record,
        draws=draws["values"],
        log_joint_values=draws["log_joint"],
        log_weights=draws["log_weights"],
        parameters=parts["parameters"],
        data=parts["data"],
        options=held.options,
        improper=held.improper,
        source=source,
        log_joint=log_joint,
    )


def _read_document(folder: Path) -> PosteriorDocument:
    file = folder / POSTERIOR
    if not file.is_file():
        raise UserError(f"{folder} holds no posterior: it has no {POSTERIOR}")
    try:
        document = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: it is not complete JSON") from error
    if isinstance(document, dict) and isinstance(document.get("format"), int) and document["format"] > FORMAT:
        raise UserError(f"{folder} was written by a newer emfc (format {document['format']}); update emfc to read it")
    try:
        return PosteriorDocument.model_validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{file} is damaged: {where}: {first['msg']}") from error


def _read_tensors(file: Path, checksum: str) -> dict[str, dict[str, Tensor]]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error}); the folder is not complete") from error
    if sha256(content) != checksum:
        raise UserError(f"{file} was changed after it was saved: its checksum does not match")
    try:
        flat = read_tensors(content)
    except SafetensorError as error:
        raise UserError(f"{file} is damaged: {error}") from error
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    for name, value in flat.items():
        part, _, key = name.partition("/")
        if part not in parts:
            raise UserError(f"{file} is damaged: it has a tensor {name!r}")
        parts[part][key] = value
    return parts


def _check_same(program: Any, flow: VariationalFlow, folder: Path) -> None:
    """Refuses a model with other latent sites than the stored program's."""
    theirs = {site.name: site.shape for site in program.sites if not site.observed}
    ours = {site.name: site.shape for site in flow.layer.program.sites if not site.observed}
    if theirs != ours:
        raise UserError(f"the posterior in {folder} is of a model with other latent sites: {', '.join(ours)}")


def _check_data(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], folder: Path) -> None:
    """Refuses a model with other data than those that the stored posterior was conditioned on."""
    for name in sorted(theirs.keys() | ours.keys()):
        if name not in theirs or name not in ours:
            whose = "the stored posterior" if name in ours else "the model"
            raise UserError(f"the posterior in {folder} is of other data: {name!r} is observed by {whose} alone")
        left, right = theirs[name].detach().cpu().double(), ours[name].double()
        if left.shape != right.shape or not torch.allclose(left, right, rtol=_SAME_DATA, atol=0.0, equal_nan=True):
            raise UserError(
                f"the posterior in {folder} is of other data at site {name!r}; load it with the data that it was "
                "inferred from, or infer anew"
            )


def _read_record(held: Mapping[str, Any]) -> FitRecord:
    """How the fit went, with its numbers as they were.

    Raises:
        UserError: It is not as written.
    """
    known = {entry.name for entry in fields(FitRecord)}
    needed = {entry.name for entry in fields(FitRecord) if entry.default is entry.default_factory is MISSING}
    if not needed <= held.keys() <= known:
        raise UserError(f"its record has {', '.join(held)}")
    for name, kind in _RECORDED.items():
        if name in held and (not isinstance(held[name], kind) or isinstance(held[name], bool)):
            raise UserError(f"its record has {name} = {held[name]!r}, which is no {kind.__name__}")
    if not all(isinstance(remark, str) for remark in held.get("remarks", ())):
        raise UserError("its record has remarks that are no text")
    try:
        record = FitRecord(**held)
        for name in ("elbo", "elbo_se", "seconds", "learning_rate"):
            setattr(record, name, _number(getattr(record, name)))
        record.history = [(int(step), _number(value)) for step, value in record.history]
        record.starts = {name: _number(value) for name, value in record.starts.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError("its record has numbers that are none") from error
    return record


def _read_flow(held: PosteriorDocument, parts: Mapping[str, Mapping[str, Tensor]]) -> VariationalFlow:
    """The family with its weights.

    Raises:
        UserError: The program, the options or the weights are not as written.
    """
    unknown = held.options.keys() - set(keywords_of(VariationalFlow))
    if unknown:
        raise UserError(f"the family has no option {', '.join(sorted(unknown))}")
    flow = VariationalFlow(program_from_document(held.program, parts["program"]), **held.options)
    flow.to(dtype=getattr(torch, held.dtype))
    shapes = {name: value.shape for name, value in flow.state_dict().items()}
    if shapes != {name: value.shape for name, value in parts["weights"].items()}:
        raise UserError("its weights are not those of its family")
    flow.load_state_dict(dict(parts["weights"]))
    return flow


def _read_draws(held: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """Draws with their densities.

    Raises:
        UserError: Some are missing, or of another size.
    """
    if held.keys() != {"values", "log_joint", "log_weights"}:
        raise UserError(f"its draws have {', '.join(held)}")
    if held["values"].ndim != 2 or held["values"].shape[1] != width:
        raise UserError(f"its draws are not of {width} elements")
    if any(held[name].shape != held["values"].shape[:1] for name in ("log_joint", "log_weights")):
        raise UserError("its draws and their densities are not as many")
    return held


def _number(value: Any) -> float:
    """A number as `_finite` wrote it; a null, which stood for any number that is not finite, is none."""
    return math.nan if value is None else float(value)


def _finite(value: Any) -> Any:
    """The same nested value with text (``"nan"``, ``"inf"``, ``"-inf"``) for numbers that JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
