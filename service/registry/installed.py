"""Model repositories that come as Python packages, for a service that runs where there is no folder of models.

A distribution names its repository under the entry point group `gridloop.models`: a function without arguments that
returns the folder. `gridloop-models` (deploy/gridloop-models) is one.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from service.registry.remote import fetched, url_of

GROUP = "gridloop.models"
DEFAULT = Path("models")
"""Where models are looked for when nothing is said."""


def located(models: Path) -> Path:
    """The repository to serve: the folder as it was given, or, where nothing was and there is none, an installed one.

    Args:
        models: the setting; `DEFAULT` counts as "nothing was said", and a URL is fetched.

    Returns:
        A folder that exists, or `models` as it came, for the error that names it. Of several installed ones, the first
        by the name of its entry point.

    Raises:
        SettingUnusable: what the URL names cannot be had.
    """
    if (url := url_of(models)) is not None:
        return fetched(url)
    if models != DEFAULT or models.is_dir():
        return models
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        folder = Path(entry.load()())
        if folder.is_dir():
            return folder
    return models
