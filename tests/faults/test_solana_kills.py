"""Killed at any boundary of a Solana payment: who paid once has what he bought, the books equal the chain."""

import pytest

from faults.walker import Way, walk
from fixtures.paid_shop import Shop
from fixtures.solana_walk import AFTER, BEFORE

pytestmark = pytest.mark.filterwarnings("ignore:(Client|TxOpts) is deprecated")


@pytest.mark.parametrize(
    ("way", "victims"),
    [
        (BEFORE, ("process",)),
        (AFTER, ("process",)),
        (BEFORE, ("postgres",)),
        (AFTER, ("postgres",)),
        (AFTER, ("postgres", "process")),
    ],
    ids=lambda part: part.route if isinstance(part, Way) else " and ".join(part),
)
def test_a_kill_at_any_boundary_of_a_solana_payment_costs_nobody_anything(
    solana_walk: Shop, way: Way, victims: tuple[str, ...]
) -> None:
    walk(solana_walk, way, victims, thin=True)
