"""Problem: the body of every error outside `/v2`, as RFC 9457 (*Problem Details for HTTP APIs*) defines it."""

from __future__ import annotations

from pydantic import BaseModel, Field


class FieldProblem(BaseModel):
    """One field that breaks the schema."""

    loc: list[str | int] = Field(description="Where: `body` or `query`, then field names and indices.")
    msg: str = Field(description="What is wrong with it.")


class Problem(BaseModel):
    """What went wrong, and what to do about it."""

    type: str = Field(description="Stable identifier of the kind of problem.", examples=["/problems/model-not-found"])
    title: str = Field(description="The kind of problem in words.", examples=["Model not found"])
    status: int = Field(description="The HTTP status.", examples=[404])
    detail: str = Field(description="What was wrong with this request, and what to do about it.")
    instance: str = Field(description="Path of the request.", examples=["/v1/image-classification"])
    request_id: str = Field(description="As in the `X-Request-ID` header; quote it when you ask for help.")
    errors: list[FieldProblem] = Field(
        default=[], description="What is wrong with each field or file, of the first 20 that cannot be used."
    )
    error_count: int = Field(default=0, description="How many there are, those that are not listed included.")
    reasons: dict[str, str] = Field(default={}, description="Of `not-ready` only: why, by model.")
