"""What commands say of what they cannot use: never the password, the node's key or the operator's in it."""

import json

import pytest

from tollbook.core.local_chain import NETWORK
from tollbook.entrypoints.cli import run
from tollbook.migrate.url import redact

SECRET = "5ecr3tPassw0rd"
HALF = SECRET[:7]
KEY = "0x" + "5ec2e7" * 10 + "beef"
DATABASES = [
    f"postgresql://me:{SECRET}@127.0.0.1:9/gone",
    f"postgresql://me:{SECRET}%zz@127.0.0.1:9/gone",
    f"postgresql://me:p@{SECRET}@127.0.0.1:9/gone",
    f"postgresql://me:{SECRET}/p@127.0.0.1:9/gone",
    f"postgresql://me:{SECRET}@127.0.0.1:nine/gone",
    f"postgresql://127.0.0.1:9/gone?password={SECRET}",
    f"host=127.0.0.1 port=9 password={SECRET}",
    f"host=127.0.0.1 port=9 password='{SECRET}",
    f"host=127.0.0.1 password=p {SECRET}",
    f"mysql://me:{SECRET}@127.0.0.1/gone",
]
NODES = [
    json.dumps({NETWORK: f"http://127.0.0.1:9/v3/{SECRET}?key={SECRET}"}),
    json.dumps({NETWORK: f"http://me:{SECRET}@127.0.0.1:9/"}),
    json.dumps({NETWORK: f"http://127.0.0.1:nine/{SECRET}"}),
    json.dumps({NETWORK: f"http://127.0.0.1:99999/{SECRET}"}),
    json.dumps({NETWORK: f"127.0.0.1:9/{SECRET}"}),
    json.dumps([f"http://127.0.0.1:9/{SECRET}"]),
    json.dumps({NETWORK: {"url": f"http://127.0.0.1:9/{SECRET}"}}),
    '{"a": "http://127.0.0.1:9/' + SECRET,
]


def hear(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """All that a command says, also of what nobody foresaw."""
    try:
        run([*arguments])
    except (Exception, SystemExit) as error:  # it is printed with its causes
        causes = [error, error.__cause__, error.__context__]
        said = "".join(str(cause) for cause in causes)
    else:
        said = ""
    told = capfd.readouterr()
    assert told.out + told.err + said
    return told.out + told.err + said


@pytest.mark.parametrize("url", DATABASES)
def test_no_command_says_the_password_of_a_database_it_cannot_reach(
    url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = hear(capfd, "payments", "list", "--database-url", url)
    monkeypatch.setenv("DATABASE_URL", url)
    for arguments in (
        ("doctor", "--json"),
        ("worker",),
        ("migrate", "status"),
        ("payments", "list", "--json"),
    ):
        said += hear(capfd, *arguments)
    assert HALF not in said


@pytest.mark.parametrize("nodes", NODES)
def test_no_command_says_the_key_of_a_node_it_cannot_use(
    nodes: str, database_url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("TOLLBOOK_RPC_URLS", nodes)
    monkeypatch.setenv("TOLLBOOK_FACILITATOR_KEY", KEY)
    said = ""
    for arguments in (("payments", "reconcile"), ("payments", "channels", "claim", "--network", NETWORK)):
        said += hear(capfd, *arguments, "--json")
    for url in (nodes, f"{NETWORK}=http://127.0.0.1:9/{SECRET}"):
        said += hear(capfd, "doctor", "--rpc", url)
    assert HALF not in said
    assert KEY[2:] not in said


@pytest.mark.parametrize("key", [KEY[:-1], KEY + "1", "zz" + KEY, f'"{KEY}"'])
def test_no_command_says_an_operators_key_that_it_cannot_read(
    key: str, database_url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("TOLLBOOK_FACILITATOR_KEY", key)
    monkeypatch.setenv("TOLLBOOK_RPC_URLS", NODES[0])
    node = ("--rpc", f"{NETWORK}=http://127.0.0.1:9/")
    said = hear(capfd, "doctor", *node) + hear(capfd, "facilitator", *node)
    assert KEY[2:40] not in said + hear(capfd, "payments", "channels", "claim", "--network", NETWORK)


def test_an_address_that_is_shown_can_be_used() -> None:
    shown = redact(f"postgresql://me:{SECRET}@h:1/name?host=%2Ftmp%2Fx&password={SECRET}")
    assert shown == "postgresql://me@h:1/name?host=/tmp/x"
    assert redact("postgresql:///name?host=%2Ftmp") == "postgresql:///name?host=/tmp"
