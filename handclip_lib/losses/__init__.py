"""Losses by name, and their weighted sum from a list: `build_loss` makes a `Criterion`."""

from handclip_lib.losses.criterion import Criterion, build_loss, check_lists, tried
from handclip_lib.losses.guards import Collapse

__all__ = ["Collapse", "Criterion", "build_loss", "check_lists", "tried"]
