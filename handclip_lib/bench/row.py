"""What is timed, and in which precision."""

from collections.abc import Callable
from dataclasses import dataclass

from handclip_lib.schema import Params

PHOTOGRAPHS = 256  # of a study, at most


@dataclass(frozen=True)
class Row:
    """Two ways to one result. `kit` is this library's; `other` None: `kit` is timed alone, once.

    goal: in words, of the ratio kit / other unless it says of what; images: that one call of
    `kit` deals with; memory: what gives the most that `kit` and `other` take, in megabytes, each
    in a process of its own.
    """

    name: str
    kit: Callable[[], object]
    other: Callable[[], object] | None
    goal: str = ""
    images: int = 0
    memory: tuple[Callable[[], float], Callable[[], float]] | None = None


def in_precision(p: Params, precision: str, compiled: bool = False) -> Params:
    """The same parameters with another precision of the device, the tower compiled or not."""
    change = {"precision": precision, "training": precision, "compile": compiled}
    return p.model_copy(update={"device": p.device.model_copy(update=change)})
