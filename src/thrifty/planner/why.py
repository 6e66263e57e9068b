"""Everything that `thrifty plan --why` adds to a plan: how it was reached, what it hangs on, and how it grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thrifty.planner.bandwidth import Bandwidth, bandwidth
from thrifty.planner.rivals import Rival, rivals
from thrifty.planner.search import Search
from thrifty.planner.sensitivity import Sensitivity, sensitivity
from thrifty.planner.waterfall import Waterfall, waterfall


@dataclass(frozen=True)
class Why:
    """What `planner.waterfall`, `sensitivity`, `rivals` and `bandwidth` say of one plan."""

    waterfall: Waterfall
    sensitivity: Sensitivity
    rivals: tuple[Rival, ...]
    bandwidth: Bandwidth

    def as_json(self) -> dict[str, Any]:
        """Everything, in types that JSON has; the rivals are under `sensitivity`."""
        others = {"rivals": [one.as_json() for one in self.rivals]}
        return {
            "waterfall": self.waterfall.as_json(),
            "sensitivity": self.sensitivity.as_json() | others,
            "bandwidth": self.bandwidth.as_json(),
        }


def explain_plan(found: Search, named: Sequence[str] = ()) -> Why:
    """Asks all of them about a search's plan.

    Args:
        named: accelerators to compare with, beside the cheapest of the catalog.

    Raises:
        ThriftyError: a name that the catalog does not have.
    """
    others = rivals(found, named)  # first: a wrong name should be told before anything is computed
    return Why(waterfall(found.plan), sensitivity(found), others, bandwidth(found.plan))
