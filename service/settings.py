"""Settings: every knob of the service, each an environment variable `GRIDLOOP_<NAME>` and an option of `serve`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.cpu import CpuBudget, cpu_budget
from service.limits import Limits

MAX_WORKERS = 64
"""Most server processes that are started without being asked for."""

UNIX = "unix:"
"""What a host begins with that is the path of a Unix socket."""
FD = "fd:"
"""What a host begins with that is the number of a listening socket's file descriptor."""
PREFIX = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)+")
"""A path prefix: what needs no escape in a URL, a page or a shell."""

_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class Settings(BaseSettings, Limits):
    """How one server behaves, its limits included. Frozen; built once by the command line and passed down."""

    model_config = SettingsConfigDict(env_prefix="GRIDLOOP_", frozen=True, extra="forbid")

    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on; 0.0.0.0 for all, `unix:/path` for a Unix socket, `fd:3` for one inherited.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(
        default=0, ge=0, le=128, description="Server processes; 0 chooses by the CPU budget (affinity and cgroup)."
    )
    models: Path = Field(
        default=Path("models"),
        description="The model repository: one folder per model, or a URL, such as s3://bucket/models, which is "
        "fetched; or one model's folder.",
    )
    model_name: str = Field(
        default="",
        max_length=256,
        description="Name of the model where `models` is one model's folder; empty: its name.",
    )
    tasks: Path | None = Field(
        default=None,
        description="Folder of more tasks, one Python file each, which are run: as trusted as an installed package.",
    )
    watch_s: float = Field(
        default=5.0,
        ge=0,
        le=86400,
        description="A change in the models folder is taken up so soon, as two looks at it, half as far apart, must "
        "agree; 0: never looked at (seconds).",
    )
    admin_api: bool | None = Field(
        default=None,
        description="Whether models may be loaded and unloaded over HTTP; left out: where only this machine can "
        "connect.",
    )
    load_timeout_s: float = Field(
        default=120.0,
        gt=0,
        le=86400,
        description="Time for loading one version of a model; after it, the version is listed as failed (seconds).",
    )
    log_format: Literal["auto", "console", "json"] = Field(
        default="auto", description="`console` for people, `json` for machines; `auto`: console on a terminal."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least important records that are written; `info` includes one line per request."
    )
    traces: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Spans of every request by OpenTelemetry; `auto`: where OTEL_EXPORTER_OTLP_ENDPOINT names a place.",
    )
    max_body_bytes: int = Field(
        default=16 * 1024 * 1024, gt=0, description="Largest request body after decompression (bytes)."
    )
    max_bytes_in_flight: int = Field(
        default=128 * 1024 * 1024,
        gt=0,
        description="Bodies that a worker receives and parses at a time, together, before 503 (bytes).",
    )
    max_files: int = Field(default=1000, gt=0, description="Files in one request (count).")
    max_rows: int = Field(default=10_000, gt=0, description="Rows of the tensors of one `/v2` request (count).")
    max_queue: int = Field(
        default=1024, gt=0, description="Rows that may wait per model and worker before 503 (count)."
    )
    max_queue_bytes: int = Field(
        default=64 * 1024 * 1024, gt=0, description="Bodies that may wait per model and worker before 503 (bytes)."
    )
    max_connections: int = Field(
        default=4096,
        gt=0,
        description="Connections open at a time, over all workers; for one more the longest idle are closed, or it is "
        "answered with 503 (count).",
    )
    request_timeout_s: float = Field(
        default=30.0, gt=0, le=3600, description="Deadline of requests without `X-Request-Timeout` (seconds)."
    )
    body_timeout_s: float = Field(
        default=20.0, gt=0, description="Time to receive a request's headers and body before 408 (seconds)."
    )
    drain_grace_s: float = Field(
        default=0.0,
        ge=0,
        description="Time after SIGTERM in which requests are still taken while `/readyz` is 503 already, so that "
        "balancers look away first (seconds).",
    )
    drain_timeout_s: float = Field(
        default=20.0, ge=0, description="Time for requests in flight after SIGTERM (seconds)."
    )
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Comma-separated keys for `Authorization: Bearer …`, for every model; none here nor in a file: "
        "open. Probes stay open.",
        repr=False,
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="File of hashed keys, with the models that each may ask, as `gridloop key` writes it; read again "
        "when it changes.",
    )
    tls_cert: Path | None = Field(
        default=None,
        description="Certificate (PEM, with those between it and its root): the port speaks HTTPS and nothing else. "
        "Read again when it is renewed.",
    )
    tls_key: Path | None = Field(
        default=None, description="Private key of the certificate (PEM); left out: it is in the certificate's file."
    )
    tls_key_password_file: Path | None = Field(
        default=None, description="File with the password of the private key, where it has one."
    )
    rate_limit: float = Field(
        default=0.0, ge=0, description="Requests per second and client before 429, over all workers; 0: no limit."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Comma-separated origins whose pages may call from a browser, such as https://app.example.com; "
        "* for all; empty: none.",
    )
    root_path: str = Field(
        default="", description="Path prefix under which a proxy offers the server, such as /ml; empty: none."
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("127.0.0.0/8", "::1", "unix"),
        description="Comma-separated addresses and networks whose `X-Forwarded-Proto`, `-Host` and `-Prefix` are "
        "believed; unix for all on a Unix socket, * for everybody.",
    )

    @field_validator("api_keys", "cors_origins", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(item for part in value.split(",") if (item := part.strip())) if isinstance(value, str) else value

    @field_validator(
        "tasks", "admin_api", "api_keys_file", "tls_cert", "tls_key", "tls_key_password_file", mode="before"
    )
    @classmethod
    def _is_set(cls, value: object) -> object:
        """A variable that is empty is one that is not set: the folder that `Path` makes of it is not meant."""
        return None if value == "" else value

    @field_validator("tls_key", "tls_key_password_file")
    @classmethod
    def _has_a_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("tls_cert") is None:
            raise ValueError("is of no use without GRIDLOOP_TLS_CERT, and would leave the port without TLS")
        return value

    @field_validator("host")
    @classmethod
    def _can_be_listened_on(cls, value: str) -> str:
        if value == UNIX:
            raise ValueError("needs the path of the socket, as in unix:/run/gridloop/http.sock")
        if value.startswith(FD) and not value.removeprefix(FD).isdecimal():
            raise ValueError("needs the number of a file descriptor, as in fd:3")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_origin(origin) for origin in value)

    @field_validator("root_path")
    @classmethod
    def _is_a_prefix(cls, value: str) -> str:
        prefix = "/" + value.strip().strip("/")
        if prefix == "/":
            return ""
        if not PREFIX.fullmatch(prefix):
            raise ValueError("must be a path such as /ml or /apis/ml, of letters, digits and . _ ~ -")
        return prefix

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            if item not in ("*", "unix"):
                try:
                    ipaddress.ip_network(item, strict=False)
                except ValueError:
                    raise ValueError(
                        f"{item!r} is no IP address or network such as 10.0.0.0/8, nor unix, nor *"
                    ) from None
        return value

    @field_validator("port", mode="before")
    @classmethod
    def _not_a_service_link(cls, value: object) -> object:
        """Kubernetes sets GRIDLOOP_PORT=tcp://10.0.0.1:8000 in every pod beside a Service named gridloop."""
        return cls.model_fields["port"].default if isinstance(value, str) and "://" in value else value

    @classmethod
    def unknown_variables(cls, environment: Mapping[str, str]) -> list[str]:
        """Variables that look like settings and are none, such as misspelt ones; not Kubernetes' service links."""
        known = {f"GRIDLOOP_{name.upper()}" for name in cls.model_fields}
        links = ("GRIDLOOP_SERVICE_", "GRIDLOOP_PORT_")
        return sorted(
            v for v in environment if v.startswith("GRIDLOOP_") and v not in known and not v.startswith(links)
        )

    @property
    def limits(self) -> Limits:
        """The largest requests taken, as tasks see them."""
        return Limits(**{name: getattr(self, name) for name in Limits.model_fields})

    @property
    def has_admin_api(self) -> bool:
        """Whether models may be loaded and unloaded over HTTP."""
        if self.admin_api is not None:
            return self.admin_api
        if self.host.startswith(UNIX) or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def scheme(self) -> str:
        """What its URLs begin with."""
        return "http" if self.tls_cert is None else "https"

    def plan(self, budget: CpuBudget | None = None) -> Plan:
        """How many processes to start: one for each core that may be used."""
        budget = budget or cpu_budget()
        return Plan(self.workers or min(budget.cores, MAX_WORKERS), budget)


def _origin(text: str) -> str:
    """An origin as browsers send it: in lower case, without a slash at its end or the scheme's own port."""
    if text in ("*", "null"):
        return text
    match = _ORIGIN.fullmatch(text.lower().removesuffix("/"))
    if not match:
        raise ValueError(f"{text!r} is no origin: write * or scheme, host and port, as in https://app.example.com:8443")
    scheme, host, port = match.groups()
    return f"{scheme}://{host}" + (f":{port}" if port and port != _DEFAULT_PORTS.get(scheme) else "")


@dataclass(frozen=True, slots=True)
class Plan:
    """How the cores are used.

    Attributes:
        workers: server processes, each of which runs graphs on one core at a time.
        budget: the cores there are.
    """

    workers: int
    budget: CpuBudget
