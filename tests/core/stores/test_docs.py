"""The page on the stores: every example runs as it is printed, on a real database."""

import re
import secrets
from pathlib import Path
from typing import Any

import psycopg
import pytest
from eth_account import Account
from solders.keypair import Keypair
from x402.mechanisms.evm.signers import FacilitatorWeb3Signer
from x402.mechanisms.svm.signers import FacilitatorKeypairSigner

from tollbook.core.local_chain import LocalChain
from tollbook.core.stores.payment_identifiers import Answer

PAGE = Path(__file__).parents[3] / "docs" / "stores.md"
SNIPPETS = dict(
    re.findall(r"^## (.+?)$.*?```python\n(.*?)```", "## Shared\n" + PAGE.read_text(), re.M | re.S)
)
USES = {
    "Facilitator: transactions that were sent": "scheme._pending_store.set('k', '0x1')",
    "Facilitator, Solana: payments being settled": "assert not scheme._settlement_cache.is_duplicate('k')",
    "Seller: payment channels": "assert scheme.get_storage().list() == []",
    "Buyer: payment channels": "assert client_scheme._storage.get('0x' + 'ab' * 32) is None",
    "Seller: sign-in with a wallet": "assert not sign_ins.has_paid('/', '0x1')",
    "Seller: payment identifiers": "",
    "Shared": "pending.set('k', '0x1'); sign_ins.record_nonce('n')",
}


def run(name: str, url: str, **names: Any) -> dict[str, Any]:
    space = {"URL": url, "key": secrets.token_bytes(32), "account": Account.create()} | names
    exec(SNIPPETS[name] + "\n" + USES[name], space)
    return space


def test_every_example_is_run() -> None:
    assert set(SNIPPETS) == set(USES)


@pytest.mark.parametrize("name", USES)
def test_an_example_runs_on_a_database_with_nothing_in_it(
    name: str, empty_url: str, chain: LocalChain
) -> None:
    if "sign-in" in name:
        pytest.importorskip("jsonschema", reason="install x402[extensions]")
    run(
        name,
        empty_url,
        evm_signer=FacilitatorWeb3Signer("0x" + secrets.token_hex(32), chain.url),
        svm_signer=FacilitatorKeypairSigner(Keypair()),
        receiver=Account.create().address,
        facilitator=None,
    )


async def test_the_example_of_identifiers_answers_once(empty_url: str) -> None:
    answer_once = run("Seller: payment identifiers", empty_url)["answer_once"]
    handled: list[bytes] = []

    async def handle() -> Answer:
        handled.append(b"x")
        return Answer(200, (), b"dry")

    request = ("pay_7d5d747be160e280", "GET", "/weather", b"", "0x1", "100 usdc")
    assert [await answer_once(*request, handle) for _ in range(2)] == [Answer(200, (), b"dry")] * 2
    assert len(handled) == 1


def test_the_page_names_every_table(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'stores'").fetchall()
    assert [name for (name,) in tables if f"`{name}`" not in PAGE.read_text()] == []
