"""Mending: a sweep over what is not final. Every step is guarded by the row it changes: many may sweep."""

from dataclasses import dataclass

from tollbook.core.lanes_network import NetworkLanes


@dataclass(frozen=True, slots=True)
class Mended:
    """What a sweep did."""

    abandoned: int = 0

    def __add__(self, other: "Mended") -> "Mended":
        return Mended(self.abandoned + other.abandoned)


async def mend_network(lanes: NetworkLanes, lost_seconds: float, stuck_seconds: float) -> Mended:
    """One sweep over one network."""
    return Mended(abandoned=await lanes.free_abandoned())
