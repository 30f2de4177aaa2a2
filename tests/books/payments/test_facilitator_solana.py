"""The Solana facilitator on the real runtime and real PostgreSQL; and the bare SDK beside it."""

import asyncio

import pytest
from solders.keypair import Keypair
from x402.mechanisms.svm.exact.facilitator import ExactSvmScheme
from x402.mechanisms.svm.signers import FacilitatorKeypairSigner

from clients.pay_solana import require, sign
from fixtures.solana import MINT
from fixtures.solana_rpc import LocalSolana

# The SDK asks nodes through classes that their library means to retire.
pytestmark = pytest.mark.filterwarnings("ignore:(Client|TxOpts) is deprecated")


async def test_row_n_the_bare_sdk_calls_a_transaction_that_landed_with_an_error_a_success(
    solana: LocalSolana, solana_payer: Keypair, solana_operator: Keypair, solana_seller: Keypair
) -> None:
    requirements = require(solana_seller.pubkey(), solana_operator.pubkey())
    payment = await sign(solana_payer, solana.url, requirements)
    solana.behaviour.before_landing.append(lambda: solana.give(solana_payer.pubkey(), MINT, 0))
    scheme = ExactSvmScheme(FacilitatorKeypairSigner(solana_operator, solana.url))
    answer = await asyncio.to_thread(scheme.settle, payment, requirements)
    assert answer.success
    assert solana.balance(solana_seller.pubkey(), MINT) == 0
