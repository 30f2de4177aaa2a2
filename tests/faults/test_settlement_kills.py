"""Killed at any boundary of a settlement: no command is paid twice, none is forgotten, the books say so."""

import json
import random
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from faults.paid_shop import ANY, WORKER
from faults.walker import Boundary, check_road, choose_two, die_at_each, list_boundaries, thin_out
from fixtures.paid_shop import Shop
from tollbook.core.local_chain import LocalChain

PURSE = 1_000_000_000
ROAD = (
    "INSERT settlement.settlement_commands",
    "UPDATE settlement.settlement_commands",
    "core.take_nonces",
    "UPDATE core.transactions",
    "broadcast",
)
FACTS = ["received", "validated", "executed", "confirmed"]
DEATHS_TWICE = 6
SEED = 5
COMMANDS, LIVES = 60, 8
END_SECONDS_MAX = 300


@dataclass
class Case:
    """Two commands, one of a token and one of the coin, whose carrying out meets one death or two."""

    shop: Shop
    orders: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def __post_init__(self) -> None:
        for symbol, amount in (("USDC", "0.000007"), ("ETH", "0.000000000000000007")):
            self.orders.append(
                {
                    "command_id": secrets.token_hex(8),
                    "payee": "0x" + secrets.token_hex(20),
                    "asset_symbol": symbol,
                    "amount": amount,
                }
            )

    def live(self, **changes: Any) -> None:
        """Carry them out, until they have ended or somebody dies."""
        self.shop.run_errand("commands", {"orders": json.dumps(self.orders)}, **changes)

    def run(self, dies_at: Boundary, victims: tuple[str, ...], dies_again_at: int = 0) -> bool:
        """Whether it did die there."""
        self.shop.told.clear()
        self.live(dies_at=dies_at, victims=victims)
        if dies_again_at:
            self.live(late=1, dies_at=(ANY, dies_again_at), victims=victims)
        self.live(late=2)
        self.check()
        return self.shop.was_killed()

    def check(self) -> None:
        token, coin = self.orders
        chain = self.shop.chain
        assert chain.read_balance(token["payee"]) == 7
        assert int(chain.call("eth_getBalance", coin["payee"], "latest"), 16) == 7
        for order in self.orders:
            told = self.shop.query(
                "SELECT kind FROM core.journal WHERE subject = %s ORDER BY entry_id",
                order["command_id"],
            )
            assert [kind for (kind,) in told] == FACTS
            [(status, tx_hash)] = self.shop.query(
                "SELECT status, tx_hash FROM settlement.settlement_commands WHERE command_id = %s",
                order["command_id"],
            )
            assert status == "settled"
            assert chain.call("eth_getTransactionReceipt", tx_hash)["status"] == "0x1"


def find_boundaries(shop: Shop) -> list[Boundary]:
    """What two commands pass when nothing happens to them."""
    shop.chain.mint(shop.operator.address, PURSE)
    shop.told.clear()
    case = Case(shop)
    case.live()
    case.check()
    boundaries = list_boundaries(shop)
    check_road(boundaries, ROAD)
    return boundaries


@pytest.mark.parametrize("victims", [("process",), ("postgres",)], ids=" and ".join)
def test_a_kill_at_any_boundary_of_a_settlement_pays_nobody_twice_and_forgets_nobody(
    paid_shop: Shop, victims: tuple[str, ...]
) -> None:
    die_at_each(
        thin_out(find_boundaries(paid_shop)),
        lambda at: Case(paid_shop).run(at, victims),
        again=lambda: find_boundaries(paid_shop),
    )


def test_who_goes_on_with_a_settlement_may_be_killed_as_well(paid_shop: Shop) -> None:
    chance, boundaries = random.Random(SEED), find_boundaries(paid_shop)
    died = 0
    for _ in range(DEATHS_TWICE):
        first, second = choose_two(boundaries, chance)
        Case(paid_shop).run(first, ("process",), dies_again_at=second)
        died += sum(told["event"] == "killed" for told in paid_shop.told)
    assert died > DEATHS_TWICE


def test_two_workers_that_are_killed_again_and_again_pay_each_command_once(
    paid_shop: Shop, chain: LocalChain
) -> None:
    chance = random.Random(SEED)
    chain.mint(paid_shop.operator.address, PURSE)
    wanted = {f"walk-{number}-{secrets.token_hex(4)}": "0x" + secrets.token_hex(20)
              for number in range(COMMANDS)}  # fmt: skip
    for command_id, payee in wanted.items():
        paid_shop.query(
            """
            INSERT INTO settlement.settlement_commands (command_id, workflow_id, account_ref, payee,
                                                        asset_symbol, amount_numeric)
            VALUES (%s, 'walk', '', %s, 'USDC', 0.000007) RETURNING command_id
            """,
            command_id,
            payee,
        )
    for late in range(1, LIVES + 1):
        paid_shop.live(2, errand=WORKER, late=late)
        time.sleep(chance.uniform(0.05, 0.5))
        paid_shop.end()
    paid_shop.live(2, errand=WORKER, late=LIVES + 1)
    deadline = time.monotonic() + END_SECONDS_MAX
    count: Counter[str] = Counter()
    while count["settled"] < COMMANDS and time.monotonic() < deadline:
        time.sleep(0.1)
        rows = paid_shop.query("SELECT status FROM settlement.settlement_commands WHERE workflow_id = 'walk'")
        count = Counter(status for (status,) in rows)
    paid_shop.end()
    assert count == {"settled": COMMANDS}
    assert [chain.read_balance(payee) for payee in wanted.values()] == [7] * COMMANDS
    told = paid_shop.query(
        "SELECT count(*) FROM core.journal WHERE kind = 'confirmed' AND details->>'workflow_id' = 'walk'"
    )
    assert told == [(COMMANDS,)]
