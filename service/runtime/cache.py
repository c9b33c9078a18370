"""Where what was found out about a graph on this machine is kept from one start to the next."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path


def cache_place(kind: str, *identity: str | int) -> Path | None:
    """A place in this user's cache folder (`XDG_CACHE_HOME`), whether or not there is something yet.

    Args:
        kind: of what is kept there: the name of a folder.
        identity: all that it depends on.

    Returns:
        A path without a suffix; None for a user without a home.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # as in many containers
        return None
    return cache / "gridloop" / kind / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
