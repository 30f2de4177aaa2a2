"""The local chain: it starts, holds a token, survives restarts and never outlives its parent."""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tollbook.core import local_chain
from tollbook.core.local_chain import LocalChain, LocalChainFailed, LocalChainMissing


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
    except FileNotFoundError:
        return False


def test_it_deploys_the_token_once_and_mints_it(chain: LocalChain) -> None:
    block = chain.call("eth_blockNumber")
    assert chain.ensure_token() == chain.ensure_token() == local_chain.TOKEN_ADDRESS
    assert chain.call("eth_blockNumber") == block
    account = chain.make_account(amount=1_500_000, wei=7)
    assert chain.read_balance(account.address) == 1_500_000
    assert int(chain.call("eth_getBalance", account.address, "latest"), 16) == 7


def test_a_restarted_chain_finds_its_money_again(chain: LocalChain, tmp_path: Path) -> None:
    state = tmp_path / "deep" / "chain.json"
    with LocalChain.start(state) as first:
        first.ensure_token()
        account = first.make_account(amount=42)
    with LocalChain.start(state) as second:
        assert second.read_balance(account.address) == 42
        assert second.ensure_token() == local_chain.TOKEN_ADDRESS


def test_stopping_twice_leaves_nothing_running(chain: LocalChain) -> None:
    other = LocalChain.start()
    other.stop()
    other.stop()
    assert other.process.returncode is not None
    assert not is_running(other.process.pid)


def test_a_broken_state_file_is_refused_with_what_anvil_says(chain: LocalChain, tmp_path: Path) -> None:
    state = tmp_path / "chain.json"
    state.write_text('{"tru')
    with pytest.raises(LocalChainFailed, match=r"(?s)failed to parse json file.*Remove .*chain.json"):
        LocalChain.start(state)
    assert state.read_text() == '{"tru'


def test_an_occupied_port_is_refused(chain: LocalChain) -> None:
    with pytest.raises(LocalChainFailed, match="in use"):
        LocalChain.start(port=int(chain.url.rpartition(":")[2]))


def test_a_refused_request_says_which(chain: LocalChain) -> None:
    with pytest.raises(LocalChainFailed, match="eth_nonsense"):
        chain.call("eth_nonsense")


def test_without_anvil_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LocalChainMissing, match="npm ci"):
        local_chain.find_anvil(tmp_path)


def test_anvil_on_the_path_serves_where_npm_has_no_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "anvil"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert local_chain.find_anvil(tmp_path) == binary


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a child to its parent's life")
def test_a_killed_parent_takes_the_chain_with_it(chain: LocalChain) -> None:
    program = (
        "from tollbook.core.local_chain import LocalChain; import time;"
        "chain = LocalChain.start(); print(chain.process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=dict(os.environ))
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_running(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(1_200):
        if not is_running(child):
            break
        time.sleep(0.05)
    assert not is_running(child)
