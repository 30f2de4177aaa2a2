"""Payloads made to make the facilitator stumble: each is refused for what it is, none is a fault of ours."""

import random
from contextlib import suppress
from typing import Any

import pytest
from eth_account.signers.local import LocalAccount
from x402.schemas import PaymentPayload, PaymentRequired

from clients.bare_sdk import PRICE, make_buyer
from clients.pay import require, sign
from fixtures.facilitator import key_of
from fixtures.schemes import approve_permit2
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator, SettlementUnknown
from tollbook.books.payments.schemes.batch import Channels
from tollbook.core.local_chain import NETWORK, TOKEN_ADDRESS, LocalChain

ODD: list[Any] = [
    None,
    5,
    -1,
    "",
    "x",
    "0x",
    "0x" + "zz" * 32,
    [],
    {},
    [[]],
    True,
    1.5,
    "9" * 90,
    "\x00",
    "\ud800",
]


def vary(value: Any, chance: random.Random) -> Any:
    """The same with one odd thing somewhere in it."""
    if isinstance(value, dict) and value:
        fields: dict[str, Any] = dict(value)  # pyright: ignore[reportUnknownArgumentType]
        name = chance.choice([*fields, "permit2Authorization", "authorization"])
        if chance.random() < 0.15:
            fields.pop(name, None)
        elif isinstance(fields.get(name), dict) and chance.random() < 0.7:
            fields[name] = vary(fields[name], chance)
        else:
            fields[name] = chance.choice(ODD)
        return fields
    return chance.choice(ODD)


@pytest.mark.parametrize("scheme", ["exact", "permit2", "upto", "batch-settlement"])
async def test_a_payload_with_something_odd_in_it_is_refused_and_nothing_breaks(
    in_process: InProcessFacilitator,
    schemes_chain: LocalChain,
    permit2_payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
    scheme: str,
) -> None:
    wanted = require(TOKEN_ADDRESS, seller.address, PRICE, scheme="exact" if scheme == "permit2" else scheme)
    if scheme == "permit2":
        wanted.extra["assetTransferMethod"] = "permit2"
    supported = await in_process.supported()
    if scheme == "upto":
        [kind] = [kind for kind in supported.kinds if kind.scheme == scheme]
        wanted.extra |= kind.extra or {}
    if scheme == "batch-settlement":
        wanted = Channels(database_url, in_process, supported).complete(wanted)
    payment = await make_buyer(permit2_payer, schemes_chain.url).create_payment_payload(
        PaymentRequired(accepts=[wanted])
    )
    assert isinstance(payment, PaymentPayload)
    chance = random.Random(scheme)
    for _ in range(150):
        odd = payment.model_copy(update={"payload": vary(payment.payload, chance)})
        try:
            await in_process.verify(odd, wanted)
            with suppress(SettlementUnknown):  # where it is odd in nothing that counts, it settles
                await in_process.settle(odd, wanted)
        except Exception as error:
            raise AssertionError(odd.payload) from error


async def test_a_settled_payment_inside_one_that_cannot_settle_does_not_pay_again(
    in_process: InProcessFacilitator,
    schemes_chain: LocalChain,
    permit2_payer: LocalAccount,
    seller: LocalAccount,
) -> None:
    wanted = require(TOKEN_ADDRESS, seller.address, PRICE)
    old = await sign(permit2_payer, wanted)
    assert (await in_process.settle(old, wanted)).success
    wanted = wanted.model_copy(update={"extra": wanted.extra | {"assetTransferMethod": "permit2"}})
    new = await make_buyer(permit2_payer, schemes_chain.url).create_payment_payload(
        PaymentRequired(accepts=[wanted])
    )
    assert isinstance(new, PaymentPayload)
    approve_permit2(schemes_chain, permit2_payer.address, 0)
    both = new.model_copy(update={"payload": old.payload | new.payload})
    assert not (await in_process.settle(both, wanted)).success
    assert schemes_chain.read_balance(seller.address) == PRICE


async def test_claims_that_a_deposit_drags_along_are_nobodys_claims(
    in_process: InProcessFacilitator,
    schemes_chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    operator: LocalAccount,
    database_url: str,
) -> None:
    channels = Channels(database_url, in_process, await in_process.supported())
    wanted = channels.complete(require(TOKEN_ADDRESS, seller.address, PRICE, scheme="batch-settlement"))
    payment = await make_buyer(payer).create_payment_payload(PaymentRequired(accepts=[wanted]))
    assert isinstance(payment, PaymentPayload)
    choosy = InProcessFacilitator(
        {NETWORK: schemes_chain.url}, key_of(operator), database_url, recipients=[seller.address]
    )
    for claims in (5, [5], [{"voucher": {}}]):
        odd = payment.model_copy(update={"payload": payment.payload | {"claims": claims}})
        assert (await choosy.verify(odd, wanted)).is_valid
    await choosy.aclose()
