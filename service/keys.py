"""API keys: who may ask which models. Only their hashes are kept, in a file and in memory.

A key is 256 random bits, which nobody can guess however quick the hash is: SHA-256 is as good as a slow one that is
made for passwords, and a stolen file opens nothing. So keys are made here (`gridloop key`), not thought up.
"""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import SettingUnusable, as_sentence
from service.renewal import Renewal

PREFIX = "gl_"
"""What a key begins with, so that one which was published by mistake can be found."""
REMEMBERED_KEYS = 1024
"""Headers whose key is known without hashing it (count): beyond that the memory begins anew."""
MAX_HEADER_BYTES = 512
"""A longer `Authorization` holds no key of ours (bytes)."""

_Glob = Annotated[str, Field(pattern=r"^[A-Za-z0-9._*?\[\]!-]{1,128}$")]


class Key(BaseModel):
    """What a key may do.

    Attributes:
        name: whose it is; several keys may have one name, as the old and the new one have while they are changed.
        sha256: of the key, in hex.
        models: globs of the models that it may ask; left out, all.
        admin: whether it opens the routes that change the server.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    models: tuple[_Glob, ...] | None = None
    admin: bool = Field(default=False, strict=True)

    def may_ask(self, model: str) -> bool:
        """Whether it may ask a model of this name, and hear of it."""
        return self._pattern is None or self._pattern.fullmatch(model) is not None

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        if self.models is None:
            return None
        return re.compile("|".join(map(fnmatch.translate, self.models)) or r"(?!)")


class Keyring:
    """The keys of a server: those of its settings, which may ask every model, and those of its file.

    Args:
        plain: keys as they are sent.
        file: where hashed ones are; it is read again when it changes, by `renewal`.

    Raises:
        SettingUnusable: the file cannot be used.
    """

    def __init__(self, plain: Sequence[str], file: Path | None = None) -> None:
        self._plain = [Key(name=f"GRIDLOOP_API_KEYS.{n}", sha256=digest(key)) for n, key in enumerate(plain, start=1)]
        self._keys: tuple[dict[str, Key], dict[bytes, Key]] = ({}, {})  # by their hash, and by the headers that came
        self.renewal: Renewal | None = None
        """Reads the file again; None where there is none."""
        if file is None:
            self._use(())
        else:
            self.renewal = Renewal("API keys", (file,), lambda: self._use(read_keys(file)))

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for."""
        return not self._keys[0]

    def find(self, authorization: bytes) -> Key | None:
        """The key of an `Authorization` header; None where it holds none of ours.

        What was found is remembered under the header's bytes: hashing takes longer than all else that is checked.

        The time tells nothing of the hashes: which one a sent key has, nobody can choose, a dict is searched by a keyed
        hash of that hash, and the whole is compared in constant time.
        """
        by_hash, by_header = self._keys
        if (known := by_header.get(authorization)) is not None:
            return known
        scheme, _, sent = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or len(authorization) > MAX_HEADER_BYTES:
            return None
        sha256 = hashlib.sha256(sent.strip()).hexdigest()
        key = by_hash.get(sha256)
        if key is None or not hmac.compare_digest(key.sha256, sha256):
            return None
        if len(by_header) >= REMEMBERED_KEYS:
            by_header.clear()
        by_header[authorization] = key
        return key

    def _use(self, keys: Iterable[Key]) -> None:
        """Replace the keys, from any thread: a request goes by the old ones or the new ones, and by none of both."""
        self._keys = {key.sha256: key for key in (*keys, *self._plain)}, {}


def read_keys(file: Path) -> list[Key]:
    """The keys of a file: a TOML table `[[key]]` for each.

    Raises:
        SettingUnusable: it cannot be read, is no such file, or has no key.
    """
    try:
        content = tomllib.loads(file.read_text("utf-8-sig"))
        keys = _File.model_validate(content).key
    except OSError as error:
        raise _unusable(file, f"cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise _unusable(file, f"is no file of keys: {as_sentence(error).rstrip('.')}") from None
    except ValueError as error:  # no TOML, or no UTF-8
        raise _unusable(file, f"is no TOML: {error}") from None
    digests = {key.sha256 for key in keys}
    if not digests:
        raise _unusable(file, "has no key, and would let nobody in")
    if len(digests) < len(keys):
        raise _unusable(file, "has one key twice")
    return keys


def new_key(name: str, *, models: Sequence[str] | None, admin: bool) -> tuple[str, Key]:
    """Make a key.

    Returns:
        The key as its owner sends it, which is kept nowhere, and what the file holds of it.

    Raises:
        ValidationError: the name, or a glob, has characters that it may not have.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    return secret, Key(name=name, sha256=digest(secret), models=None if models is None else tuple(models), admin=admin)


def as_toml(key: Key) -> str:
    """A key as its table in the file. Nothing that a key may hold needs an escape."""
    lines = ["[[key]]", f'name = "{key.name}"', f'sha256 = "{key.sha256}"']
    if key.models is not None:
        globs = ", ".join(f'"{glob}"' for glob in key.models)
        lines.append(f"models = [{globs}]")
    if key.admin:
        lines.append("admin = true")
    return "\n".join([*lines, ""])


def digest(key: str) -> str:
    """The hash of a key, in hex."""
    return hashlib.sha256(key.encode()).hexdigest()


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: list[Key] = []


def _unusable(file: Path, problem: str) -> SettingUnusable:
    return SettingUnusable("GRIDLOOP_API_KEYS_FILE", f"{file.name} {problem}")
