"""Deposits through the facilitator: what was settled once answers for that very channel, and for no other."""

from typing import Any

import pytest
from eth_account.signers.local import LocalAccount
from x402.mechanisms.evm.batch_settlement.types import ChannelConfig
from x402.mechanisms.evm.batch_settlement.utils import compute_channel_id
from x402.schemas import PaymentPayload, PaymentRequired, PaymentRequirements

from clients.bare_sdk import PRICE, make_buyer
from clients.pay import require
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator
from tollbook.books.payments.schemes.batch import Channels
from tollbook.core.local_chain import NETWORK, TOKEN_ADDRESS, LocalChain

OTHER = "0x" + "0b" * 20


@pytest.fixture
async def terms(
    schemes_chain: LocalChain, in_process: InProcessFacilitator, seller: LocalAccount, database_url: str
) -> PaymentRequirements:
    channels = Channels(database_url, in_process, await in_process.supported())
    return channels.complete(require(TOKEN_ADDRESS, seller.address, PRICE, scheme="batch-settlement"))


async def sign(payer: LocalAccount, terms: PaymentRequirements) -> PaymentPayload:
    payment = await make_buyer(payer).create_payment_payload(PaymentRequired(accepts=[terms]))
    assert isinstance(payment, PaymentPayload)
    return payment


def change(payment: PaymentPayload, **fields: Any) -> PaymentPayload:
    changed = payment.model_copy(deep=True)
    changed.payload.update(fields)
    return changed


async def test_a_deposit_that_was_settled_pays_into_no_other_sellers_channel(
    in_process: InProcessFacilitator, payer: LocalAccount, terms: PaymentRequirements
) -> None:
    payment = await sign(payer, terms)
    assert (await in_process.settle(payment, terms)).success
    config = payment.payload["channelConfig"] | {"receiver": OTHER}
    channel_id = compute_channel_id(ChannelConfig.from_dict(config), NETWORK)
    voucher = payment.payload["voucher"] | {"channelId": channel_id}
    others = terms.model_copy(update={"pay_to": OTHER})
    copied = change(payment, channelConfig=config, voucher=voucher)
    copied.accepted = others
    assert not (await in_process.settle(copied, others)).success


async def test_a_settled_deposit_with_another_channels_id_is_no_success(
    in_process: InProcessFacilitator, payer: LocalAccount, terms: PaymentRequirements
) -> None:
    payment = await sign(payer, terms)
    assert (await in_process.settle(payment, terms)).success
    voucher = payment.payload["voucher"] | {"channelId": "0x" + "cd" * 32}
    assert not (await in_process.settle(change(payment, voucher=voucher), terms)).success


async def test_a_settled_deposit_in_another_spelling_is_the_same_deposit(
    in_process: InProcessFacilitator, payer: LocalAccount, terms: PaymentRequirements
) -> None:
    payment = await sign(payer, terms)
    first = await in_process.settle(payment, terms)
    config = payment.payload["channelConfig"]
    spelled = change(payment, channelConfig=config | {"payer": config["payer"].lower(), "note": "x"})
    again = await in_process.settle(spelled, terms)
    assert (again.success, again.transaction) == (True, first.transaction)
