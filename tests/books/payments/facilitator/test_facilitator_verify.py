"""Verifying by our own road says what the SDK's own code says, of every payment."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from eth_account.signers.local import LocalAccount
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from x402.mechanisms.evm.exact.facilitator import ExactEvmScheme
from x402.mechanisms.evm.signers import FacilitatorWeb3Signer
from x402.schemas import PaymentPayload, PaymentRequirements

from clients.pay import require, sign
from fixtures.facilitator import change, encode_settlement, key_of, sign_with_nonce
from fixtures.rpc_proxy import play_proxy
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator
from tollbook.core.local_chain import DEPLOYER, NETWORK, LocalChain

addresses = st.binary(min_size=20, max_size=20).map(lambda raw: "0x" + raw.hex())
words = st.binary(min_size=32, max_size=32).map(lambda raw: "0x" + raw.hex())
numbers = st.sampled_from([0, 1, 9_999, 10_000, 10_001, 2**64, 2**256 - 1]).map(str)
times = st.integers(-20, 20).map(lambda seconds: str(int(time.time()) + seconds)) | numbers


@dataclass(frozen=True)
class Mutation:
    """A field of a valid signed payment, and what it is replaced by."""

    place: str
    field: str
    value: Any

    def apply(self, payload: PaymentPayload, wanted: PaymentRequirements) -> tuple[PaymentPayload, Any]:
        """The payment and the requirements with that field changed."""
        if self.place == "requirements":
            wanted = wanted.model_copy(update={self.field: self.value})
        elif self.place == "extra":
            wanted = wanted.model_copy(update={"extra": wanted.extra | {self.field: self.value}})
        elif self.place == "signature":
            value = self.value(payload.payload["signature"])
            return change(payload, signature=value), wanted
        else:
            payload = change(payload, **{self.field: self.value})
        return payload, wanted


def flip(position: int) -> Any:
    """The signature with one of its bytes changed."""

    def apply(signature: str) -> str:
        raw = bytearray.fromhex(signature[2:])
        raw[position] ^= 0x01
        return "0x" + raw.hex()

    return apply


def with_last_byte(value: int) -> Any:
    """The signature with another recovery id."""
    return lambda signature: signature[:-2] + f"{value:02x}"


mutations = st.one_of(
    st.just(Mutation("nothing", "", None)),
    st.builds(Mutation, st.just("authorization"), st.sampled_from(["from", "to"]), addresses),
    st.builds(Mutation, st.just("authorization"), st.just("value"), numbers),
    st.builds(Mutation, st.just("authorization"), st.sampled_from(["validAfter", "validBefore"]), times),
    st.builds(Mutation, st.just("authorization"), st.just("nonce"), words),
    st.builds(Mutation, st.just("requirements"), st.just("amount"), numbers),
    st.builds(Mutation, st.just("requirements"), st.sampled_from(["pay_to", "asset"]), addresses),
    st.builds(Mutation, st.just("extra"), st.sampled_from(["name", "version"]), st.text(max_size=9)),
    st.builds(Mutation, st.just("signature"), st.just(""), st.integers(0, 64).map(flip)),
    st.builds(Mutation, st.just("signature"), st.just(""), st.integers(0, 255).map(with_last_byte)),
    st.builds(
        Mutation,
        st.just("signature"),
        st.just(""),
        st.binary(min_size=66, max_size=200).map(lambda raw: lambda _: "0x" + raw.hex()),
    ),
)


@pytest.fixture
async def sdk(chain: LocalChain) -> ExactEvmScheme:
    """The SDK's own scheme on the same chain."""
    return ExactEvmScheme(FacilitatorWeb3Signer(key_of(chain.make_account()), chain.url))


async def compare(
    facilitator: InProcessFacilitator, sdk: ExactEvmScheme, payload: PaymentPayload, wanted: Any
) -> tuple[bool, str | None]:
    """What both say of a payment, which must be the same."""
    ours = await facilitator.verify(payload, wanted)
    theirs = await asyncio.to_thread(sdk.verify, payload, wanted)
    assert (ours.is_valid, ours.invalid_reason) == (theirs.is_valid, theirs.invalid_reason)
    return ours.is_valid, ours.invalid_reason


def test_every_changed_payment_is_judged_as_the_sdk_judges_it(
    chain: LocalChain, token: str, payer: LocalAccount, database_url: str
) -> None:
    seller, operator = chain.make_account(), chain.make_account()
    wanted = require(token, seller.address)
    theirs = ExactEvmScheme(FacilitatorWeb3Signer(key_of(operator), chain.url))
    seen = set[str | None]()

    with asyncio.Runner() as runner:
        ours = InProcessFacilitator({NETWORK: chain.url}, key_of(operator), database_url)

        @settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
        @given(mutations)
        def judge(mutation: Mutation) -> None:
            payload = sign_with_nonce(payer, wanted, "0x" + secrets.token_hex(32))
            changed, required = mutation.apply(payload, wanted)
            _, reason = runner.run(compare(ours, theirs, changed, required))
            seen.add(reason)

        judge()
        runner.run(ours.aclose())
    assert len(seen) >= 6  # it went down many roads, the valid one among them
    assert None in seen


async def test_what_the_chain_forbids_is_named_as_the_sdk_names_it(
    in_process: InProcessFacilitator,
    sdk: ExactEvmScheme,
    chain: LocalChain,
    payer: LocalAccount,
    token: str,
    requirements: PaymentRequirements,
) -> None:
    used = await sign(payer, requirements)
    chain.send({"from": DEPLOYER, "to": token, "data": encode_settlement(used)})
    assert (await compare(in_process, sdk, used, requirements))[1] == "invalid_exact_evm_nonce_already_used"
    poor = await sign(chain.make_account(amount=9_999), requirements)
    reason = "invalid_exact_evm_insufficient_balance"
    assert (await compare(in_process, sdk, poor, requirements))[1] == reason
    early = change(used, validAfter=str(int(time.time()) + 600))
    reason = "invalid_exact_evm_payload_authorization_valid_after"
    assert (await compare(in_process, sdk, early, requirements))[1] == reason


async def test_a_token_that_is_none_is_judged_as_the_sdk_judges_it(
    in_process: InProcessFacilitator,
    sdk: ExactEvmScheme,
    schemes_chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
) -> None:
    multicall = "0xcA11bde05977b3631167028862bE2a173976CA11"  # a contract, but no token
    for asset in (multicall, "0x" + "42" * 20):
        wanted = require(asset, seller.address)
        valid, _ = await compare(in_process, sdk, await sign(payer, wanted), wanted)
        assert not valid


@pytest.fixture
async def wallet(chain: LocalChain, payer: LocalAccount) -> AsyncIterator[LocalAccount]:
    """A payer whose account has code that answers every question with nothing, as some delegates do."""
    chain.call("anvil_setCode", payer.address, "0x00")
    yield payer
    chain.call("anvil_setCode", payer.address, "0x")


async def test_an_account_with_code_is_judged_as_the_sdk_judges_it(
    in_process: InProcessFacilitator,
    sdk: ExactEvmScheme,
    wallet: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    await compare(in_process, sdk, await sign(wallet, requirements), requirements)


async def test_a_payment_is_verified_in_one_round_trip(
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    database_url: str,
    requirements: PaymentRequirements,
) -> None:
    async with play_proxy(chain.url) as proxy:
        facilitator = InProcessFacilitator({NETWORK: proxy.url}, key_of(operator), database_url)
        assert (await facilitator.verify(await sign(payer, requirements), requirements)).is_valid
        proxy.asked.clear()
        assert (await facilitator.verify(await sign(payer, requirements), requirements)).is_valid
        assert [method for method in proxy.asked if method in ("eth_call", "eth_getCode")] == [
            "eth_getCode",
            "eth_call",
        ]
        await facilitator.aclose()
