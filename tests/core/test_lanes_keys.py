"""Keys: what they sign is what eth_account signs, what they seal only they open, and none is ever shown."""

import secrets

import pytest
from eth_account import Account
from eth_utils.address import to_checksum_address
from hypothesis import given
from hypothesis import strategies as st

from tollbook.core.lanes.keys import Draft, Fees, Key, SigningKeyUnusable
from tollbook.core.sealing import SealBroken

words = st.integers(0, 2**256 - 1)
prices = st.integers(0, 2**63 - 1)
private_keys = st.integers(1, 2**255).map(lambda number: f"0x{number:064x}")
RECEIVER = "0x" + "ab" * 20


@given(
    private_keys,
    st.integers(0, 2**40),
    st.integers(21_000, 2**40),
    prices,
    st.none() | prices,
    words,
    st.binary(max_size=300),
)
def test_a_signature_is_the_one_that_eth_account_makes(
    private_key: str, nonce: int, gas: int, fee_max: int, tip_max: int | None, value: int, data: bytes
) -> None:
    draft = Draft(31337, nonce, gas, Fees(fee_max, tip_max), RECEIVER, value, data)
    raw, hash_ = Key(private_key).sign(draft)
    fees = (
        {"gasPrice": fee_max}
        if tip_max is None
        else {"maxFeePerGas": fee_max, "maxPriorityFeePerGas": tip_max}
    )
    expected = Account.from_key(private_key).sign_transaction(
        {
            "chainId": 31337,
            "nonce": nonce,
            "gas": gas,
            "to": to_checksum_address(RECEIVER),
            "value": value,
            "data": data,
            **fees,
        }
    )
    assert raw == bytes(expected.raw_transaction)
    assert hash_ == "0x" + bytes(expected.hash).hex()
    assert Key(private_key).address == Account.from_key(private_key).address.lower()


@given(st.integers(0, 2**63 - 1), words, st.binary(max_size=300))
def test_what_a_key_seals_only_it_opens_and_only_for_its_transaction(
    transaction_id: int, value: int, data: bytes
) -> None:
    key, other = Key("0x" + secrets.token_hex(32)), Key("0x" + secrets.token_hex(32))
    sealed = key.seal_call(transaction_id, RECEIVER, value, data)
    assert key.open_call(transaction_id, sealed) == (RECEIVER, value, data)
    for wrong_key, wrong_id in ((other, transaction_id), (key, transaction_id ^ 1)):
        with pytest.raises(SealBroken):
            wrong_key.open_call(wrong_id, sealed)


@pytest.mark.parametrize("text", ["", "0x", "0x" + "0" * 64, "0x" + "f" * 64, "0x" + "12" * 31, "secret"])
def test_what_is_no_key_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(SigningKeyUnusable) as refusal:
        Key(text)
    assert len(text) < 4 or text not in str(refusal.value)
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__


def test_a_key_shows_its_address_alone() -> None:
    private_key = "0x" + secrets.token_hex(32)
    key = Key(private_key)
    assert private_key[2:] not in repr(key)
    assert key.address in repr(key)
