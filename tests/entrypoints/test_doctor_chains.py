"""`tollbook doctor` on chains: is the node of the network, does its clock agree, can the operator pay."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from fixtures.lanes import key_of, send_elsewhere
from fixtures.running import run, write_key
from fixtures.solana_desk import Desk
from tollbook.core.local_chain import GAS_MONEY_WEI, LocalChain

Doctor = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def examine(desk: Desk, chain: LocalChain, tmp_path: Path) -> Doctor:
    """What the doctor finds of nodes and operators; keyword arguments are --rpc options."""
    solana = write_key(tmp_path, "solana.json", json.dumps(list(bytes(desk.operator))))
    operator = chain.make_account(wei=GAS_MONEY_WEI)
    evm = write_key(tmp_path, "operator.key", key_of(operator))

    def examine(*keys: str, **rpc: str) -> list[dict[str, Any]]:
        options = [part for name, url in rpc.items() for part in ("--rpc", f"{name.replace('_', '-')}={url}")]
        files = [part for key in keys or (solana, evm) for part in ("--key-file", key)]
        ran = run("doctor", "--json", "--data-dir", str(tmp_path), *options, *files)
        assert ran.stdout, ran.stderr
        for secret in (str(desk.operator), key_of(operator)):
            assert secret not in ran.stdout + ran.stderr
        found = json.loads(ran.stdout)
        return [each for each in found if each["check"].startswith(("Node of", "Operator"))]

    return examine


def test_a_solana_node_and_a_fee_payer_with_money_are_good(
    examine: Doctor, desk: Desk, chain: LocalChain
) -> None:
    found = examine(solana_devnet=desk.chain.url, local=chain.url)
    assert [each["state"] for each in found] == ["good"] * 4, found
    assert str(desk.operator.pubkey()) in found[1]["says"]


def test_a_fee_payer_without_money_is_wrong_and_the_sentence_says_whom_to_fund(
    examine: Doctor, desk: Desk, chain: LocalChain, tmp_path: Path
) -> None:
    desk.chain.fund(desk.operator.pubkey(), 900_000)
    (_, purse) = examine(solana_devnet=desk.chain.url)
    assert purse["state"] == "wrong"
    assert "SOL" in purse["do"]
    assert str(desk.operator.pubkey()) in purse["says"]
    poor = Account.create()
    (_, purse) = examine(write_key(tmp_path, "poor.key", key_of(poor)), local=chain.url)
    assert (purse["state"], poor.address in purse["says"]) == ("wrong", True)


def test_what_of_an_operator_waits_for_a_block_is_said(
    examine: Doctor, own_chain: LocalChain, tmp_path: Path
) -> None:
    operator = own_chain.make_account(wei=GAS_MONEY_WEI)
    own_chain.call("evm_setAutomine", False)
    send_elsewhere(own_chain, operator, 0)
    *_, waiting = examine(write_key(tmp_path, "busy.key", key_of(operator)), local=own_chain.url)
    assert waiting["state"] == "note"
    assert "1 transactions wait for blocks, from nonce 0 on" in waiting["says"]


def test_a_node_of_another_solana_network_is_wrong(examine: Doctor, desk: Desk) -> None:
    (node,) = examine(solana=desk.chain.url)
    assert node["state"] == "wrong"
    assert "EtWTRABZaYq6iMfeYKouRu166VU2xqa1" in node["says"]


def test_a_solana_node_that_does_not_answer_is_wrong(examine: Doctor) -> None:
    (node,) = examine(solana="http://127.0.0.1:9")
    assert node["state"] == "wrong"
