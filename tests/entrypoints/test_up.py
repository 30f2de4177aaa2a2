"""`tollbook up` as a process: it serves, it stops cleanly, it refuses what cannot work."""

import signal
import socket
from pathlib import Path

import httpx
import pytest

from fixtures.running import find_port, running


def get(url: str, **headers: str) -> httpx.Response:
    return httpx.get(url, headers=headers, trust_env=False, timeout=30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_asked_to_stop_and_leaves_nothing(number: int) -> None:
    port = find_port()
    with running("up", "--port", str(port), TOLLBOOK_STORAGE="memory") as up:
        up.wait_for("ready")
        counts = [told["counts"] for told in up.told if told["event"] == "migrated"]
        assert any("Tables 4/4 · Views 4/4 · Functions 2/2 · Indexes 13/13" in told for told in counts)
        secret = next(told["secret"] for told in up.told if told["event"] == "admin-key")
        base = f"http://127.0.0.1:{port}"
        assert get(f"{base}/healthz").status_code == 200
        assert get(f"{base}/readyz").status_code == 200
        assert get(f"{base}/v1/payments").status_code == 401
        assert get(f"{base}/v1/payments", Authorization=f"Bearer {secret}").status_code == 200
        assert up.family
        assert up.end(number) == 0
        assert up.find_survivors() == set()
        assert up.read_complaints() == ""


def test_an_occupied_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with running("up", "--port", str(port), "--data-dir", str(tmp_path / "data")) as up:
            assert up.process.wait(60) == 1
            complaint = up.read_complaints()
    assert f"Port {port}" in complaint
    assert "--port" in complaint
    assert not (tmp_path / "data").exists()


def test_an_unreachable_database_is_refused_in_one_line() -> None:
    url = "postgresql://tollbook:hunter2@127.0.0.1:1/tollbook"
    with running("up", "--port", str(find_port()), "--database-url", url) as up:
        assert up.process.wait(60) == 1
        complaint = up.read_complaints()
    assert complaint.count("\n") == 1
    assert "hunter2" not in complaint


def test_the_admin_key_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    files: list[str] = []
    for _ in range(2):
        port = find_port()
        with running("up", "--port", str(port), "--data-dir", str(tmp_path)) as up:
            up.wait_for("ready")
            files += [told["file"] for told in up.told if told["event"] == "admin-key"]
            secret = (tmp_path / "admin.key").read_text().strip()
            url = f"http://127.0.0.1:{port}/v1/payments"
            assert get(url, Authorization=f"Bearer {secret}").status_code == 200
            assert up.end(signal.SIGINT) == 0
    assert files == [str(tmp_path / "admin.key")]
    assert (tmp_path / "admin.key").stat().st_mode & 0o777 == 0o600


def test_a_facilitator_is_served_alone(tmp_path: Path) -> None:
    key = tmp_path / "operator.key"
    key.write_text("0x" + "11" * 32)
    key.chmod(0o600)
    port = find_port()
    with running(
        "facilitator",
        "--rpc",
        "local=http://127.0.0.1:1",
        "--key-file",
        str(key),
        "--port",
        str(port),
        TOLLBOOK_STORAGE="memory",
    ) as served:
        served.wait_for("serving")
        supported = httpx.get(
            f"http://127.0.0.1:{port}/supported",
            trust_env=False,
            timeout=30,
        ).json()
        assert supported["kinds"][0]["network"] == "eip155:31337"
        assert httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False, timeout=30).status_code == 503
        assert served.end(signal.SIGINT) == 0
        assert "Traceback" not in served.read_complaints()  # it said that the node does not answer


def test_without_node_the_demonstration_says_so_and_the_rest_runs() -> None:
    code = (
        "from tollbook.core import local_chain\n"
        "local_chain.ANVIL_PACKAGES.clear(); local_chain.shutil.which = lambda name: None\n"
        "from tollbook.entrypoints.cli import main; main()"
    )
    port = find_port()
    with running("up", "--demo", "--port", str(port), code=code, TOLLBOOK_STORAGE="memory") as up:
        up.wait_for("ready")
        told = next(told for told in up.told if told["event"] == "demo-missing")
        assert "Node 18" in told["message"]
        assert get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        assert up.end(signal.SIGINT) == 0
