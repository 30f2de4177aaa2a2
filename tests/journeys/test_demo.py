"""The demonstration as a stranger sees it: it sells, its books are read, it comes back after a kill."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fixtures.running import find_port, running
from tollbook.core.local_chain import LocalChainMissing, find_anvil

SECONDS_MAX = 60


@pytest.fixture(autouse=True)
def anvil() -> None:
    """There is no demonstration without Node."""
    try:
        find_anvil()
    except LocalChainMissing as missing:
        if shutil.which("node"):
            raise
        pytest.skip(str(missing))


def read_payments(data_dir: Path) -> list[dict[str, Any]]:
    """What `tollbook payments list` says about this folder's books."""
    command = "from tollbook.entrypoints.cli import main; main()"
    listed = subprocess.run(
        [sys.executable, "-c", command, "payments", "list", "--json", "--data-dir", str(data_dir)],
        capture_output=True,
        check=True,
        timeout=SECONDS_MAX,
    )
    return json.loads(listed.stdout)


def test_a_payment_is_settled_read_back_and_found_again_after_a_kill(tmp_path: Path) -> None:
    arguments = ("up", "--demo", "--port", str(find_port()), "--data-dir", str(tmp_path))
    with running(*arguments) as first:
        settled = first.wait_for("payment-settled")
        first.wait_for("payment-settled")  # the first one's requests are used up by now
        by_hash = {payment["tx_hash"]: payment for payment in read_payments(tmp_path)}
        payment = by_hash[settled["transaction"]]
        assert (payment["status"], payment["settlement"]) == ("used", "settled")
        assert (payment["amount_usdc"], payment["requests_used"]) == ("0.01", 5)
        accounts = (tmp_path / "demo" / "accounts.json").read_text()
        assert len(first.family) > 2  # the database's processes and the chain
        first.end(signal.SIGKILL)
        assert first.find_survivors() == set()

    with running(*arguments) as second:
        again = second.wait_for("payment-settled")
        assert again["transaction"] != settled["transaction"]
        found = {payment["tx_hash"] for payment in read_payments(tmp_path)}
        assert {settled["transaction"], again["transaction"]} <= found
        assert (tmp_path / "demo" / "accounts.json").read_text() == accounts
        assert not any(told["event"] == "admin-key" for told in second.told)
        assert second.end(signal.SIGINT) == 0
        assert second.find_survivors() == set()
        assert second.read_complaints() == ""
    assert (tmp_path / "demo" / "accounts.json").stat().st_mode & 0o777 == 0o600
