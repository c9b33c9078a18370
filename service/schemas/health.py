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
