"""Graphs: the open graphs of a model version by name, and what running one takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, TypedDict, TypeVar, Unpack

from service.graph import MAIN_GRAPH, Array, Signature
from service.runtime.stop import Stop


class Conditions(TypedDict, total=False):
    """What a run may be told beside its tensors.

    Attributes:
        alone: nothing else runs now, so every core may be used.
        stop: ends the run early, from another thread.
    """

    alone: bool
    stop: Stop | None


class Runnable(Protocol):
    """One graph that can be run."""

    signature: Signature

    def run(
        self, tensors: Mapping[str, Array], outputs: tuple[str, ...] = (), **conditions: Unpack[Conditions]
    ) -> Mapping[str, Array]:
        """Compute the outputs of one batch; raise as soon as it is stopped."""


GraphT = TypeVar("GraphT", covariant=True)


class Graphs(Mapping[str, GraphT]):
    """The graphs of a version by name, the main one first; that one is also found under no name, as runs ask for it.

    Args:
        graphs: at least one, by name.

    Attributes:
        main: the first.
    """

    __slots__ = ("_by_name", "main")

    def __init__(self, graphs: Mapping[str, GraphT]) -> None:
        self._by_name = dict(graphs)
        self.main = next(iter(self._by_name.values()))

    @staticmethod
    def of(session: Runnable | Graphs[Runnable]) -> Graphs[Runnable]:
        """Of a graph that is the only one."""
        return session if isinstance(session, Graphs) else Graphs({MAIN_GRAPH: session})

    def __getitem__(self, name: str) -> GraphT:
        """The graph that a run is for.

        Raises:
            GraphNotFound: there is none of that name.
        """
        if not name:
            return self.main
        try:
            return self._by_name[name]
        except KeyError:
            raise GraphNotFound(f"there is no graph {name!r}; there are: {', '.join(self)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)


class GraphNotFound(KeyError):
    """A run is for a graph that its task has not declared (`Task.graphs`)."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would show its quotes
