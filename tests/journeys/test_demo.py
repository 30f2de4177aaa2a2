"""The demonstration as a stranger sees it: it sells, its books are read, it comes back after a kill."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from fixtures.running import find_port, running
from tollbook.core.local_chain import LocalChainMissing, find_anvil

SECONDS_MAX = 60
POLLS_MAX = 600
ROOT = Path(__file__).parents[2]


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


def send_the_page_s_command(port: int, folder: Path) -> str:
    """What docs/settlement.md says to send; how it ends."""
    body = re.findall(r"-d '(\{.*?\})'", (ROOT / "docs" / "settlement.md").read_text())[0]
    headers = {"Authorization": f"Bearer {(folder / 'admin.key').read_text().strip()}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
        sent = client.post("/commands/ingest", content=body, headers={"Content-Type": "application/json"})
        assert sent.status_code == 202
        path = f"/commands/{sent.json()['command_id']}"
        status = ""
        for _ in range(POLLS_MAX):
            status = client.get(path).json()["status"]
            if status not in ("received", "validated", "executed"):
                break
            time.sleep(0.1)
        return status


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
        assert send_the_page_s_command(int(arguments[3]), tmp_path) == "settled"
        assert second.end(signal.SIGINT) == 0
        assert second.find_survivors() == set()
        assert second.read_complaints() == ""
    assert (tmp_path / "demo" / "accounts.json").stat().st_mode & 0o777 == 0o600
