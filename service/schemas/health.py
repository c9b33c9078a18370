"""What the probes answer."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = Field(examples=["alive"])


class Ready(BaseModel):
    """Every model that must be there can answer."""

    status: Literal["ready"] = Field(examples=["ready"])


class NotReady(BaseModel):
    """Requests should go to another replica for now."""

    status: Literal["not ready"] = Field(examples=["not ready"])
    reasons: dict[str, str] = Field(
        description="Why, by model; of the whole server under `server` and `workers`.",
        examples=[{"cifar10-cnn": "is still loading"}],
    )
