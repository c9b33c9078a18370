"""The largest requests that a server takes, each named once: its default, its bounds and its meaning.

A field here is a setting `GRIDLOOP_<NAME>`, an option of `gridloop serve`, and what tasks read as
`self.folder.limits.<name>`. It lies below the settings, which derive from it, and below the tasks, which look at it.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """The largest requests that a server takes; each has a `GRIDLOOP_` setting of the same name."""

    model_config = ConfigDict(frozen=True)

    max_image_pixels: int = Field(
        default=50_000_000, gt=0, description="Largest image (width × height), checked before it is decoded (pixels)."
    )
    max_series_points: int = Field(default=100_000, gt=0, description="Longest series in one request (points).")
    max_text_chars: int = Field(default=100_000, gt=0, description="Longest text in one request (characters).")
    max_audio_s: float = Field(
        default=600.0, gt=0, description="Longest recording in one request, for tasks that take sound (seconds)."
    )
