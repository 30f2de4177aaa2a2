"""Smart wallets pay through the SDK's own code, and by the facilitator's promises all the same."""

import asyncio
import json
import secrets
from pathlib import Path
from typing import Any

import pytest
from eth_abi.abi import encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from x402.schemas import PaymentPayload, PaymentRequirements

from clients.pay import require
from fixtures.facilitator import sign_with_nonce
from tollbook.books.payments.facilitator.in_process import Facilitator, InProcessFacilitator
from tollbook.core.local_chain import DEPLOYER, LocalChain

ARTIFACTS = Path(__file__).parents[3] / "fixtures" / "contracts"
PURSE = 100_000
# Counts down from 100,000, which costs 2.6 million gas, and then says yes to any signature.
BURNER = "0x620186a05b6001900380600457631626ba7e60e01b60005260206000f3"


def place(chain: LocalChain, contract: str) -> str:
    """Put a contract's code at a new address of its own."""
    address = to_checksum_address("0x" + secrets.token_hex(20))
    code = json.loads((ARTIFACTS / f"{contract}.json").read_text())["bytecode_runtime"]
    chain.call("anvil_setCode", address, code)
    return address


def send(chain: LocalChain, to: str, function: str, kinds: list[str], values: list[Any]) -> None:
    """Call a contract's function."""
    data = keccak(text=function)[:4] + encode(kinds, values)
    chain.send({"from": DEPLOYER, "to": to, "data": "0x" + data.hex()})


def read_balance(chain: LocalChain, token: str, address: str) -> int:
    """What an address has of that token."""
    data = "0x" + (keccak(text="balanceOf(address)")[:4] + encode(["address"], [address])).hex()
    return int(chain.call("eth_call", {"to": token, "data": data}, "latest"), 16)


class Wallet:
    """A wallet with its owner's key and money in a token that asks it about signatures."""

    def __init__(self, chain: LocalChain) -> None:
        self.owner: LocalAccount = Account.create()
        self.address, self.token = place(chain, "SmartWallet"), place(chain, "WalletUSD")
        send(chain, self.address, "adopt(address)", ["address"], [self.owner.address])
        send(chain, self.token, "mint(address,uint256)", ["address", "uint256"], [self.address, PURSE])

    def require(self, seller: LocalAccount) -> PaymentRequirements:
        """A cent in its token."""
        return require(self.token, seller.address, extra={"name": "Wallet USD", "version": "1"})

    def sign(self, wanted: PaymentRequirements) -> PaymentPayload:
        """A payment from the wallet, with a signature that is longer than an account's."""
        nonce = "0x" + secrets.token_hex(32)
        return sign_with_nonce(self.owner, wanted, nonce, payer=self.address, suffix="00")


@pytest.fixture
def wallet(schemes_chain: LocalChain) -> Wallet:
    return Wallet(schemes_chain)


async def test_a_smart_wallet_pays_once_however_often_it_is_settled(
    facilitator: Facilitator,
    schemes_chain: LocalChain,
    wallet: Wallet,
    seller: LocalAccount,
    operator: LocalAccount,
) -> None:
    wanted = wallet.require(seller)
    payload = wallet.sign(wanted)
    assert (await facilitator.verify(payload, wanted)).is_valid
    answers = await asyncio.gather(*(facilitator.settle(payload, wanted) for _ in range(10)))
    answers.append(await facilitator.settle(payload, wanted))
    assert all(answer.success for answer in answers)
    assert len({answer.transaction for answer in answers}) == 1
    assert schemes_chain.call("eth_getTransactionCount", operator.address, "latest") == "0x1"
    assert read_balance(schemes_chain, wallet.token, seller.address) == 10_000


async def test_a_stranger_cannot_sign_for_a_smart_wallet(
    in_process: InProcessFacilitator, wallet: Wallet, seller: LocalAccount
) -> None:
    wanted = wallet.require(seller)
    wallet.owner = Account.create()
    payload = wallet.sign(wanted)
    assert not (await in_process.verify(payload, wanted)).is_valid
    refused = await in_process.settle(payload, wanted)
    assert (refused.success, refused.transaction) == (False, "")


async def test_a_smart_wallets_empty_purse_is_named(
    in_process: InProcessFacilitator, wallet: Wallet, seller: LocalAccount
) -> None:
    wanted = wallet.require(seller).model_copy(update={"amount": str(PURSE + 1)})
    refused = await in_process.settle(wallet.sign(wanted), wanted)
    assert refused.error_reason == "invalid_exact_evm_insufficient_balance"


async def test_a_wallet_that_burns_gas_is_given_no_more_than_a_payment_needs(
    in_process: InProcessFacilitator,
    schemes_chain: LocalChain,
    wallet: Wallet,
    seller: LocalAccount,
) -> None:
    schemes_chain.call("anvil_setCode", wallet.address, BURNER)
    wanted = wallet.require(seller)
    burnt = await in_process.settle(wallet.sign(wanted), wanted)
    assert not burnt.success
    sent = schemes_chain.call("eth_getTransactionByHash", burnt.transaction)
    assert int(sent["gas"], 16) <= 500_000
