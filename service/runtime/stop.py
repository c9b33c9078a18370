"""Stop: ends what ONNX Runtime does in another thread, whose calls Python alone cannot interrupt."""

from __future__ import annotations

import onnxruntime as ort


class Stop:
    """Ends the runs that it was given to and the opening of graphs that it covers, those that begin later included.

    A run ends with an exception as soon as its present operator is done: ONNX Runtime looks at the flag before each
    operator, in every round of a loop too; a single huge operator is not interrupted. The batcher has one for each run,
    a version that is loaded has one for all that is done until it is ready.

    Attributes:
        options: what the runtime is given for a run.
    """

    __slots__ = ("_openings", "options")

    def __init__(self) -> None:
        self.options = ort.RunOptions()
        self._openings: tuple[ort.SessionOptions, ...] = ()

    def set(self) -> None:
        """End them; what has ended already does not mind."""
        self.options.terminate = True  # first: what is covered in this moment sees it, or is seen below
        for opening in self._openings:
            opening.set_load_cancellation_flag(True)

    @property
    def is_set(self) -> bool:
        """Whether they were ended, or will be."""
        return bool(self.options.terminate)

    def cover_opening(self, options: ort.SessionOptions) -> None:
        """Cover the opening of a graph with these options: it folds constants, which may be a loop without end."""
        self._openings = (*self._openings, options)
        if self.is_set:
            options.set_load_cancellation_flag(True)
