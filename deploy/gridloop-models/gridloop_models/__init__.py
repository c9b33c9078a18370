"""Three small models for Gridloop, found by `gridloop serve` where there is no folder `models`."""

from pathlib import Path


def repository() -> Path:
    """The folder of model folders, as `GRIDLOOP_MODELS` would name it."""
    return Path(__file__).parent / "models"
