"""What a model folder declares in its `manifest.toml`.

Only what the ONNX graph cannot say itself: shapes, dtypes and the batch axis are read from the graph.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from service.errors import ManifestInvalid
from service.files import read_text
from service.manifest_problems import ManifestText, in_words, line_of
from service.state import StateRange

FILENAME = "manifest.toml"


MOST_ROWS = 32
"""Most rows in a run where the manifest does not ask for more (count)."""


Finite = Annotated[float, Field(allow_inf_nan=False)]


class Batching(BaseModel):
    """How the graph is run. What is left out is measured when the model is loaded (`service.runtime.tuning`)."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    max_batch_size: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Most rows in one run (count)."""
    lone_threads: Annotated[int, Field(ge=1, le=128)] | None = None
    """Threads of a run that has the machine to itself (count); every other run takes one."""


class Canary(BaseModel):
    """A version that answers a share of the requests which name none."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    version: str
    """Name of its folder."""
    percent: Annotated[float, Field(ge=0, le=100)]
    """Share of the callers that it answers (percent)."""


class Shadowing(BaseModel):
    """A version whose answers are only compared with those that callers get."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    version: str
    """Name of its folder."""
    percent: Annotated[float, Field(ge=0, le=100)] = 100.0
    """Share of the requests that are compared while the machine has time for it (percent)."""
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Largest difference of a number between answers that agree, as in golden samples."""


NOT_OF_VERSIONS = {
    "architecture",
    "canary",
    "default",
    "default_version",
    "description",
    "required",
    "shadow",
    "versions",
}
"""Keys of a manifest that change nothing in a version that is loaded."""


class Claims(BaseModel):
    """What a model folder says of its weights; a version whose weights differ says its own."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    licence: str = ""
    """Of the weights and, where it matters, of the data they were trained on."""
    metrics: dict[str, Finite] = {}
    """Figures that the model card claims, by name; the first is the one that counts."""


class OfVersion(Claims):
    """What a version's own manifest may say otherwise than the model's, beside the keys of its task."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    constants: dict[str, Finite] = {}
    """Values of graph inputs that no request gives, by name, such as `keep_prob = 1.0`."""
    load: Literal["start", "lazy"] = "start"
    """When it is loaded: `lazy` is when it is first asked for, unless it answers requests that name no model."""
    state: dict[str, str] = {}
    """Recurrent state of graphs with names of their own for it: the input -> the output that goes on with it, such as
    `h0 = "hn"`. An input `x` with an output `next_x` needs no entry."""
    state_ranges: dict[str, list[StateRange]] = {}
    """Which numbers the graph can leave in its recurrent state, by input: state tokens with others are refused."""


class Manifest(OfVersion):
    """A model folder's declaration: the keys that every model may have; the rest are its task's own, in `options`."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    task: str
    """Name of the endpoint that serves it, such as `image-classification`."""
    architecture: Literal["cnn", "rnn", "transformer", "other"] = "other"
    description: str = ""
    """One sentence for the list of models."""
    required: bool = False
    """Whether `/readyz` waits for this model."""
    default: bool = False
    """Whether it answers requests of its task that name no model."""
    default_version: str | None = None
    """The version that answers when a request names none; left out: the highest that is ready."""
    versions: Literal["all", "latest"] | list[str] = "all"
    """Which versions are loaded: all; the highest that can be served; or those named, such as `["1", "3"]`."""
    batching: Batching = Batching()
    canary: Canary | None = None
    """A version on trial, which answers a share of the requests that name no version."""
    shadow: Shadowing | None = None
    """A version whose answers nobody gets: they are compared with those of the default version."""

    _text: str = PrivateAttr(default="")
    _folder: Path | None = PrivateAttr(default=None)

    @field_validator("versions", mode="before")
    @classmethod
    def _is_a_choice(cls, value: object) -> object:
        names = value if isinstance(value, list) else ()
        if value not in ("all", "latest") and not (names and all(isinstance(name, str) for name in names)):
            raise ValueError('must be "all", "latest" or a list of names, such as ["1", "3"]')
        return value

    def serves(self, version: str | None) -> bool:
        """Whether a default version, where one is named, is sure to be among those that are loaded."""
        return version is None or self.versions == "all" or version in self.versions

    @property
    def how_run(self) -> str:
        """All that decides how a version is loaded and run: where it changes, versions are loaded anew."""
        return self.model_dump_json(exclude=NOT_OF_VERSIONS)

    def line(self, key: str) -> str:
        """In which line a key is written, as the end of a sentence about it; empty where it is not.

        Args:
            key: dotted where it is in a table, such as `canary.version`.
        """
        number = line_of(self._text, key.split("."))
        return f" (line {number})" if number else ""

    @property
    def on_trial(self) -> set[str]:
        """Versions that are tried beside the default one, and are not it for being the highest."""
        return {tried.version for tried in (self.canary, self.shadow) if tried}

    @property
    def named_versions(self) -> dict[str, str]:
        """Versions that the manifest needs, by the key that names each."""
        tried = {"canary.version": self.canary, "shadow.version": self.shadow}
        named = {key: each.version for key, each in tried.items() if each}
        return named if self.default_version is None else {"default_version": self.default_version, **named}

    def options(self, version: Path) -> dict[str, Any]:
        """All other keys and tables, such as `[preprocessing]`: the task checks them (`Task.Options`).

        Args:
            version: the version's folder; each key and table of its own `manifest.toml`, if it has one, replaces the
                model's.

        Raises:
            ManifestInvalid: that file is no TOML, or has a key that is the model's to say.
        """
        own = {key: value for key, value in self._own(version).items() if key not in OfVersion.model_fields}
        if common := [key for key in own if key in Manifest.model_fields]:
            raise ManifestInvalid(
                _where(version),
                f"{', '.join(common)} holds for every version; write it in {version.parent.name}/{FILENAME}. "
                "Here may be only licence, load, [metrics], [constants], [state], [state_ranges] and what the task "
                "reads, such as [calibration].",
            )
        return dict(self.model_extra or {}) | own

    def of_version(self, version: Path) -> OfVersion:
        """Licence, figures and constants of one version: what its own `manifest.toml` says goes before the model's.

        Args:
            version: the version's folder.

        Raises:
            ManifestInvalid: that file is no TOML, or breaks the schema.
        """
        own = self._own(version)
        try:
            return OfVersion.model_validate({key: own.get(key, getattr(self, key)) for key in OfVersion.model_fields})
        except ValidationError as error:
            text = ManifestText(_where(version), _text(version / FILENAME, _where(version), (version, version.parent)))
            raise ManifestInvalid(_where(version), in_words(error, OfVersion, [text])) from None

    def _own(self, version: Path) -> dict[str, Any]:
        """What a version's own manifest says; empty where it has none, or lies where the model's does."""
        if version == self._folder or not os.path.lexists(version / FILENAME):
            return {}
        return _parsed(_text(version / FILENAME, _where(version), (version, version.parent)), _where(version))


def read_manifest(folder: Path) -> Manifest:
    """Read and check a folder's manifest.

    Raises:
        ManifestInvalid: it is missing, is no TOML, or breaks the schema; the message says which line or field.
    """
    where = f"{folder.name}/{FILENAME}"
    text = _text(folder / FILENAME, where, (folder,))
    try:
        manifest = Manifest.model_validate(_parsed(text, where))
    except ValidationError as error:
        raise ManifestInvalid(where, in_words(error, Manifest, [ManifestText(where, text)])) from None
    manifest._text, manifest._folder = text, folder
    return manifest


def _where(version: Path) -> str:
    return f"{version.parent.name}/{version.name}/{FILENAME}"


def _text(path: Path, where: str, inside: Sequence[Path]) -> str:
    return read_text(path, where, missing="is missing; models/README.md shows a minimal one.", inside=inside)


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ManifestInvalid(where, f"is not valid TOML: {error}.") from None


def declares_required(folder: Path) -> bool:
    """Whether a manifest says `required = true`, however broken it is otherwise."""
    try:
        text = read_text(folder / FILENAME, FILENAME, missing="is missing.")
    except ManifestInvalid:
        return False
    return re.search(r"^\s*required\s*=\s*true\b", text, re.MULTILINE) is not None
