"""The manifest of a run folder: a schema, read with suspicion."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from emfc.errors import UserError
from emfc.flows.configuration import FlowConfiguration

__all__ = ["FORMAT", "MANIFEST", "Manifest", "StoredFile", "read_manifest", "sha256"]

FORMAT: Final = 1
MANIFEST = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class StoredFile(BaseModel):
    """A file of the folder and what it must contain.

    Attributes:
        name: Its name in the folder.
        sha256: Checksum of its bytes.
        size: Number of its bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    sha256: str
    size: int = Field(ge=0)

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("must be the name of a file in this folder")
        return name

    @classmethod
    def of(cls, name: str, content: bytes) -> StoredFile:
        """Describes a file of that name and content."""
        return cls(name=name, sha256=sha256(content), size=len(content))


class Manifest(BaseModel):
    """What a run folder holds.

    Attributes:
        format: Version of this schema.
        emfc: Version of emfc that wrote it.
        configuration: The learned layers and their place.
        gate: Kind of the program's gates.
        gate_form: What the gates act on.
        optimize: Whether the program is evaluated optimised or site by site.
        dtype: Floating-point type of the flow.
        preprocess: The preprocessing, as its room describes it.
        program: The compiled program, as the front end describes it.
        files: The tensor files.
        checksum: SHA-256 of all of the above in canonical JSON.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1]
    emfc: str
    configuration: FlowConfiguration
    gate: Literal["site", "element"] | None
    gate_form: Literal["value", "parameter"] = "value"
    optimize: bool
    dtype: Literal["float32", "float64", "bfloat16", "float16"]
    preprocess: dict[str, Any] | None
    program: dict[str, Any]
    files: dict[Literal["program", "weights"], StoredFile]
    checksum: str = ""

    def seal(self) -> bytes:
        """Returns the manifest as JSON with its checksum set."""
        document = self.model_dump(mode="json", warnings="none")
        self.checksum = document["checksum"] = _checksum(document)
        return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def sha256(content: bytes) -> str:
    """Returns the SHA-256 checksum in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """Reads and checks the manifest of a run folder.

    Raises:
        UserError: If it is missing, damaged, of a newer version, or was changed after it was written.
    """
    if not path.exists():
        raise UserError(f"there is no run folder {path}")
    file = path / MANIFEST
    if not file.is_file():
        raise UserError(f"{path} is not a run folder: it has no {MANIFEST}")
    try:
        document = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: it is not complete JSON; train again or restore it from a copy") from error
    if not isinstance(document, dict) or not isinstance(document.get("format"), int):
        raise UserError(f"{file} is damaged: it does not say its format")
    if document["format"] > FORMAT:
        raise UserError(
            f"{path} was written by a newer emfc (format {document['format']}; this one reads up to {FORMAT}); "
            "update emfc to read it"
        )
    sealed = document.get("checksum")
    try:
        manifest = Manifest.model_validate_json(json.dumps(_completed(document)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{file} is damaged: {where}: {first['msg']}") from error
    if sealed != _checksum(document):
        raise UserError(f"{file} was changed after it was saved: its checksum does not match")
    return manifest


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    """The manifest with what the flows of earlier versions were, which did not write it."""
    configuration = document.get("configuration")
    if not isinstance(configuration, dict):
        return document
    return {**document, "configuration": {"normalise": False, "log_scale_bound": None, **configuration}}


def _checksum(document: dict[str, Any]) -> str:
    body = {key: value for key, value in document.items() if key != "checksum"}
    return sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())
