"""Vouchers by hand: what they say of a voucher, the SDK says as well."""

from dataclasses import replace

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st
from x402.mechanisms.evm.batch_settlement.client.voucher import sign_voucher
from x402.mechanisms.evm.batch_settlement.facilitator.utils import (
    verify_batch_settlement_voucher_typed_data,
)
from x402.mechanisms.evm.batch_settlement.types import ChannelConfig, VoucherPayload
from x402.mechanisms.evm.batch_settlement.utils import compute_channel_id
from x402.mechanisms.evm.signers import EthAccountSigner
from x402.schemas import PaymentPayload

from clients.pay import require
from tollbook.books.payments.schemes.vouchers import find_channel_id, is_plain
from tollbook.core.local_chain import CHAIN_ID, NETWORK, TOKEN_ADDRESS

PAYER = Account.from_key("0x" + "11" * 32)
SELLER = Account.from_key("0x" + "22" * 32).address
CONFIG = ChannelConfig(PAYER.address, PAYER.address, SELLER, SELLER, TOKEN_ADDRESS, 900, "0x" + "44" * 32)
TERMS = require(TOKEN_ADDRESS, SELLER, 1_000, scheme="batch-settlement")
TERMS.extra |= {"receiverAuthorizer": SELLER, "withdrawDelay": 900}


def make_voucher(amount: int, config: ChannelConfig = CONFIG, signature: str | None = None) -> PaymentPayload:
    signer = EthAccountSigner(PAYER)
    voucher = sign_voucher(signer, compute_channel_id(config, NETWORK), str(amount), NETWORK)
    payload = VoucherPayload()
    payload.channel_config, payload.voucher = (
        config,
        replace(voucher, signature=signature or voucher.signature),
    )
    return PaymentPayload(x402_version=2, accepted=TERMS, payload=payload.to_dict())


def ask_sdk(payment: PaymentPayload) -> bool:
    voucher, config = payment.payload["voucher"], payment.payload["channelConfig"]
    return verify_batch_settlement_voucher_typed_data(
        signer=None,  # type: ignore[arg-type]
        channel_id=voucher["channelId"],
        max_claimable_amount=voucher["maxClaimableAmount"],
        payer_authorizer=config["payerAuthorizer"],
        payer=config["payer"],
        signature=voucher["signature"],
        chain_id=CHAIN_ID,
    )


@settings(deadline=None, max_examples=40)
@given(amount=st.integers(0, 2**128 - 1), salt=st.binary(min_size=32, max_size=32))
def test_a_voucher_that_its_payer_signed_is_plain(amount: int, salt: bytes) -> None:
    config = replace(CONFIG, salt="0x" + salt.hex())
    payment = make_voucher(amount, config)
    assert find_channel_id(config, NETWORK) == compute_channel_id(config, NETWORK)
    assert is_plain(payment, TERMS)
    assert ask_sdk(payment)


@settings(deadline=None, max_examples=60)
@given(place=st.integers(0, 64), byte=st.integers(0, 255), amount=st.integers(0, 2**128 - 1))
def test_what_is_plain_with_another_signature_is_good_for_the_sdk_as_well(
    place: int, byte: int, amount: int
) -> None:
    signature = bytearray.fromhex(make_voucher(amount).payload["voucher"]["signature"][2:])
    signature[place] = byte
    payment = make_voucher(amount, signature="0x" + signature.hex())
    assert is_plain(payment, TERMS) <= ask_sdk(payment)


@pytest.mark.parametrize(
    "change", ["payer_authorizer", "receiver", "receiver_authorizer", "token", "withdraw_delay"]
)
def test_a_voucher_for_a_channel_of_other_terms_is_not_plain(change: str) -> None:
    other = 901 if change == "withdraw_delay" else "0x" + "55" * 20
    assert not is_plain(make_voucher(1_000, replace(CONFIG, **{change: other})), TERMS)
