"""A walk at random: two workers, a node that errs or hides, a chain that takes back; each is paid once."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from fixtures.rpc_proxy import Proxy, play_proxy
from fixtures.settling import OPEN, Payroll, make_payroll, take_turn
from fixtures.walks import WHOLE
from tollbook.books.settlement import endings, execution, limits
from tollbook.books.settlement.execution import Desk
from tollbook.core import clock
from tollbook.core.database import Database
from tollbook.core.errors import Refusal
from tollbook.core.lanes import mend as lanes_mend
from tollbook.core.lanes import network as lanes_network
from tollbook.core.local_chain import LocalChain, LocalChainFailed

SEND, LOGS = "eth_sendRawTransaction", "eth_getLogs"
STEPS, CALM_TURNS_MAX = 40, 120
SEEDS = range(20 if WHOLE else 2)
HIDDEN_BY = ("txpool is full", "insufficient funds", "replacement transaction underpriced", "nonce too low")
REFUSALS = ("txpool is full", "insufficient funds", "nonce too low", "already known", "the node is confused")


@pytest.fixture
async def walked(
    database: Database, own_chain: LocalChain, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Payroll, Proxy]]:
    own_chain.ensure_token()
    monkeypatch.setattr(lanes_mend, "BEHIND_SECONDS", 0.0)
    monkeypatch.setattr(lanes_network, "RESERVED_SECONDS_MAX", 0.0)
    monkeypatch.setattr(lanes_network, "EMPTY_SECONDS", 0.0)
    monkeypatch.setattr(execution, "ATTEMPTS_MAX", 3)
    async with play_proxy(own_chain.url) as proxy:
        yield make_payroll(database, own_chain, url=proxy.url, accounts=2), proxy


class Walk:
    """What may happen, in any order."""

    def __init__(self, payroll: Payroll, proxy: Proxy, desks: list[Desk], chance: random.Random) -> None:
        self.payroll, self.proxy, self.desks, self.chance = payroll, proxy, desks, chance
        self.ids: list[str] = []
        self.before: Any = None
        # What was settled by the chain's word alone, since a node lied, is not followed when the chain
        # takes back what was final: both are not tried together.
        self.lies = chance.random() < 0.5

    async def step(self) -> None:
        rare = [self.cancel, self.retry, *([self.hide, self.mine] if self.lies else [self.take_back])]
        happenings = [self.order] * 3 + [self.turn] * 5 + [self.err] * 3 + rare
        await self.chance.choice(happenings)()

    async def order(self) -> None:
        symbol, amount = self.chance.choice([("USDC", "0.000007"), ("ETH", "0.000000000000000007")])
        self.ids.append(await self.payroll.order(amount, asset_symbol=symbol))
        await self.payroll.validate()

    async def turn(self) -> None:
        if self.chance.random() < 0.3:
            await self.payroll.make_due()
        desks = self.chance.sample(self.desks, self.chance.randint(1, 2))
        await asyncio.gather(*(self._turn(desk) for desk in desks))

    async def _turn(self, desk: Desk) -> None:
        with suppress(Refusal):
            await take_turn(desk)

    async def err(self) -> None:
        kind = self.chance.randrange(4)
        if kind == 2 and not self.lies:
            kind = 1
        if kind == 0:
            self.proxy.lost_answers = {SEND}
        elif kind == 1:
            self.proxy.refusals[SEND] = self.chance.sample(REFUSALS, 2)
        elif kind == 2:
            self.proxy.false_refusals[SEND] = self.chance.sample(REFUSALS, 3)
        else:
            self.calm()

    def calm(self) -> None:
        self.proxy.lost_answers = set()
        self.proxy.refusals, self.proxy.false_refusals, self.proxy.secretive = {}, {}, False
        self.payroll.chain.call("evm_mine")
        self.payroll.chain.call("evm_setAutomine", True)

    async def hide(self) -> None:
        """What the node takes from now on it says it refused, and shows to nobody until it has a block."""
        self.proxy.secretive, self.proxy.false_refusals[SEND] = True, self.chance.choices(HIDDEN_BY, k=3)
        self.payroll.chain.call("evm_setAutomine", False)

    async def mine(self) -> None:
        self.payroll.chain.call("evm_mine")

    async def cancel(self) -> None:
        with suppress(Refusal):
            async with self.payroll.database.write() as tx:
                if self.ids:
                    await endings.cancel(tx, self.chance.choice(self.ids), None, now=clock.now())

    async def retry(self) -> None:
        with suppress(Refusal):
            async with self.payroll.database.write() as tx:
                if self.ids:
                    await limits.retry(tx, self.chance.choice(self.ids), now=clock.now())

    async def take_back(self) -> None:
        """What was settled since the last time happened never, and somebody sends some of it again."""
        chain = self.payroll.chain
        if self.before is not None and self.chance.random() < 0.5:
            found = [await self.payroll.get(one) for one in self.ids]
            raws = [chain.call("eth_getRawTransactionByHash", one.tx_hash) for one in found if one.tx_hash]
            chain.call("evm_revert", self.before)
            chain.call("anvil_mine", "0x2")
            for raw in self.chance.sample(raws, len(raws) // 2):
                with suppress(LocalChainFailed):
                    chain.call(SEND, raw)
        self.before = chain.call("evm_snapshot")

    async def end(self) -> None:
        """Nothing more goes wrong: everything comes to its end."""
        self.calm()
        for _ in range(CALM_TURNS_MAX):
            await self.payroll.make_due()
            await self._turn(self.desks[0])
            await self._turn(self.desks[1])
            found = [await self.payroll.get(one) for one in self.ids]
            if not any(one.status in OPEN for one in found):
                return
        raise AssertionError([(one.status, one.error) for one in found if one.status in OPEN])


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_goes_wrong_each_command_is_paid_once_or_says_that_it_was_not(
    walked: tuple[Payroll, Proxy], seed: int
) -> None:
    payroll, proxy = walked
    async with payroll.open_desk() as one, payroll.open_desk() as other:
        walk = Walk(payroll, proxy, [one, other], random.Random(seed))
        for _ in range(STEPS):
            await walk.step()
        await walk.end()
    found = [await payroll.get(command_id) for command_id in walk.ids]
    paid = [
        payroll.count_paid(one)
        if one.asset
        else int(payroll.chain.call("eth_getBalance", one.payee, "latest"), 16)
        for one in found
    ]
    assert paid == [7 if one.status == "settled" else 0 for one in found]
    assert any(one.status == "settled" for one in found)
