"""Stop: ends a run from another thread."""

from __future__ import annotations

import onnxruntime as ort


class Stop:
    """Belongs to one run; once set, the run ends with an exception as soon as its present operator is done.

    ONNX Runtime looks at the flag before each operator, in every round of a loop too: a single huge operator is not
    interrupted.

    Attributes:
        options: what the runtime is given.
    """

    __slots__ = ("options",)

    def __init__(self) -> None:
        self.options = ort.RunOptions()

    def set(self) -> None:
        """End the run; one that has ended already does not mind."""
        self.options.terminate = True

    @property
    def is_set(self) -> bool:
        """Whether it was ended, or will be."""
        return bool(self.options.terminate)
