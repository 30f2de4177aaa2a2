"""`tollbook doctor`: looks at everything Tollbook stands on, and says what is wrong and what to do."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Literal

import click
import httpx
import psycopg
from eth_account import Account

from tollbook import embedded
from tollbook.books.payments.solana.node import SolanaNode
from tollbook.books.payments.solana.payment import PRIORITY_FEE_LAMPORTS_MAX, SIGNATURES
from tollbook.core import local_chain
from tollbook.core.chains import Chain, ChainRefused, ChainUnreachable, hide_credentials, is_solana
from tollbook.core.commands import answer, check_connection, open_database
from tollbook.core.errors import Refusal
from tollbook.core.lanes.counts import LATEST, PENDING, count
from tollbook.core.lanes.node import Node
from tollbook.core.local_chain import LocalChainMissing
from tollbook.core.operator_keys import (
    OperatorKeyUnusable,
    is_solana_key,
    read_keypair,
    read_operator_keys,
)
from tollbook.core.secret_key import find_secret_key
from tollbook.core.settings import Settings
from tollbook.entrypoints import migrations
from tollbook.entrypoints.serving import NoSuchHost, PortTaken, listening
from tollbook.migrate.url import redact

PYTHON_MIN = (3, 11)
POSTGRES_MIN = 150000  # as server_version_num has it
DISK_BYTES_MIN = 1024**3
SKEW_SECONDS_MAX = 30  # EIP-3009's validAfter and validBefore are the chain's time, not ours
NODE_SECONDS_MAX = 10
NODE_MAJOR_MIN = 18
ANSWER_SECONDS_MAX = 2
COIN_DIGITS = 18  # of wei in the coin that pays for gas
SOL_DIGITS = 9  # of lamports in a SOL
RENT_LAMPORTS = 890_880  # less must not be left in an account, or else nothing
SETTLEMENT_LAMPORTS_MAX = SIGNATURES * 5_000 + PRIORITY_FEE_LAMPORTS_MAX
LOOK = {"good": ("✓", "green"), "note": ("–", "yellow"), "wrong": ("✗", "red")}  # noqa: RUF001

State = Literal["good", "note", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, and what to do about it. A `note` keeps nothing from working."""

    check: str
    state: State
    says: str
    do: str | None = None


def examine(
    settings: Settings, host: str, port: int, rpc_urls: Mapping[str, str], key_files: Sequence[Path]
) -> list[Finding]:
    """Look at everything; a check that fails does not keep the next from being made."""
    checks: Sequence[Callable[[], Iterator[Finding]]] = (
        _look_at_python,
        lambda: _look_at_folder(settings),
        _look_at_binaries,
        lambda: _look_at_database(settings),
        lambda: _look_at_port(host, port),
        _look_at_node,
        lambda: _look_at_chains(rpc_urls, key_files),
    )
    return [finding for check in checks for finding in check()]


def show(findings: Sequence[Finding], *, as_json: bool) -> None:
    """Print the findings as a list for people, or as JSON."""
    if as_json:
        answer([asdict(finding) for finding in findings], as_json=True)
        return
    for finding in findings:
        mark, color = LOOK[finding.state]
        click.echo(f"{click.style(mark, fg=color)} {finding.check:<12} {finding.says}")
        if finding.do:
            click.echo(f"  {'':<12} → {finding.do}")
    wrong = sum(finding.state == "wrong" for finding in findings)
    click.echo(
        "Nothing is wrong." if not wrong else f"{wrong} of {len(findings)} checks found something wrong."
    )


def _look_at_python() -> Iterator[Finding]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] >= PYTHON_MIN:
        yield Finding("Python", "good", f"{version} at {sys.executable}")
    else:
        yield Finding("Python", "wrong", f"{version} is too old", "Install Python 3.11 or newer.")


def _look_at_folder(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        yield Finding(
            "Data folder",
            "wrong",
            f"{folder} cannot be written by this user",
            "Give --data-dir a folder of yours, or run as the user who made it.",
        )
        return
    yield Finding("Data folder", "good", str(folder) if folder.exists() else f"{folder} (not made yet)")
    free = shutil.disk_usage(nearest).free
    says = f"{free / 1024**3:.1f} GiB free"
    if free < DISK_BYTES_MIN:
        yield Finding("Disk", "wrong", says, "Free at least 1 GiB, or choose a folder on another disk.")
    else:
        yield Finding("Disk", "good", says)


def _look_at_binaries() -> Iterator[Finding]:
    try:
        folder = embedded.binaries()
    except Refusal as refusal:
        yield Finding("PostgreSQL", "wrong", "the embedded server is not installed", refusal.sentence)
        return
    yield Finding("PostgreSQL", "good", f"embedded at {folder}")
    if (folder / "pg_dump").is_file() or shutil.which("pg_dump"):
        yield Finding("pg_dump", "good", "found: `migrate backup` works")
    else:
        yield Finding("pg_dump", "wrong", "not found", "Install postgresql-client, or migrate --skip-backup.")


def _look_at_database(settings: Settings) -> Iterator[Finding]:
    """What the configured database says; the embedded one is started for the question if it does not run."""
    if settings.database_url is None and settings.storage == "memory":
        yield Finding("Database", "note", "in memory (TOLLBOOK_STORAGE=memory): kept while `up` runs")
        return
    if settings.database_url is None and not (settings.data_dir / "postgresql").exists():
        yield Finding("Database", "note", "embedded, not made yet", "`tollbook up` makes it.")
        return
    try:
        with open_database(settings) as url:
            check_connection(url)
            yield from _ask_database(url)
            yield from look_at_webhooks(settings, url)
    except (Refusal, psycopg.Error) as error:
        yield Finding(
            "Database", "wrong", str(error).strip().splitlines()[0], "See the sentence before this."
        )


def _ask_database(url: str) -> Iterator[Finding]:
    with closing(psycopg.connect(url)) as connection:
        version = connection.info.server_version
        name = connection.info.parameter_status("server_version")
    if version < POSTGRES_MIN:
        yield Finding(
            "Database",
            "wrong",
            f"PostgreSQL {name} at {redact(url)} is too old",
            "Use PostgreSQL 15 or newer.",
        )
        return
    yield Finding("Database", "good", f"PostgreSQL {name} at {redact(url)}")
    yield from _look_at_migrations(url)


def _look_at_migrations(url: str) -> Iterator[Finding]:
    pending, drift = migrations.compare(url)
    if pending:
        yield Finding(
            "Migrations", "note", f"{len(pending)} pending: {', '.join(pending)}", "tollbook migrate apply"
        )
    if drift:
        yield Finding("Migrations", "wrong", "; ".join(drift), "tollbook migrate verify tells more.")
    if not pending and not drift:
        yield Finding("Migrations", "good", "all applied, and what they promise is there")


def look_at_webhooks(settings: Settings, url: str) -> Iterator[Finding]:
    """Whether those who asked are told; nothing where nobody asked."""
    with closing(psycopg.connect(url)) as connection:
        [table] = connection.execute("SELECT to_regclass('settlement.webhook_subscriptions')").fetchone() or [
            None
        ]
        rows: list[tuple[str, bool, str | None]] = []
        if table is not None:
            rows = connection.execute(
                """
                SELECT subscription_id, enabled,
                       CASE WHEN enabled THEN 'it fails since ' || failing_since ELSE disabled_reason END
                FROM settlement.webhook_subscriptions ORDER BY created_at
                """
            ).fetchall()
    for name, enabled, why in rows:
        if not enabled or why is not None:
            says = f"{name}{'' if enabled else ' is disabled'}: {why or 'no reason is known'}"
            yield Finding(
                "Webhooks", "note", says, f"tollbook webhooks deliveries {name} tells what it answered."
            )
    if rows:
        try:
            if settings.database_url is not None:  # beside the embedded one it is made at need
                find_secret_key(settings)
            yield Finding(
                "Webhooks", "good", f"{sum(enabled for _, enabled, _ in rows)} of {len(rows)} enabled"
            )
        except Refusal as refusal:
            yield Finding("Webhooks", "wrong", "no secret key: nothing is sent", refusal.sentence)


def _look_at_port(host: str, port: int) -> Iterator[Finding]:
    try:
        with listening(host, port):
            yield Finding("Port", "good", f"{port} of {host} is free")
    except PortTaken:
        if _is_ours(host, port):
            yield Finding("Port", "note", f"{port} of {host} is taken by a running Tollbook")
        else:
            advice = "End the program that has it, or choose another --port."
            yield Finding("Port", "wrong", f"{port} of {host} is taken by another program", advice)
    except NoSuchHost as refusal:
        yield Finding("Port", "wrong", refusal.sentence)


def _is_ours(host: str, port: int) -> bool:
    """Whether a Tollbook answers there."""
    try:
        answered = httpx.get(f"http://{host}:{port}/healthz", timeout=ANSWER_SECONDS_MAX, trust_env=False)
        return "tollbook" in answered.text.lower() or answered.json().get("status") == "ok"
    except (httpx.HTTPError, ValueError, AttributeError):
        return False


def _look_at_node() -> Iterator[Finding]:
    """Node and anvil are for the demonstration alone: without them everything else works."""
    node = shutil.which("node")
    version = _read_version(node) if node else None
    if version is None or version[0] < NODE_MAJOR_MIN:
        yield Finding(
            "Node",
            "note",
            "not found" if version is None else f"{version[0]} is too old",
            "Only `up --demo` and its tests need Node 18 or newer.",
        )
    else:
        yield Finding("Node", "good", ".".join(map(str, version)))
    try:
        yield Finding("Local chain", "good", str(local_chain.find_anvil()))
    except LocalChainMissing as missing:
        yield Finding("Local chain", "note", "anvil is not installed", str(missing))


def _read_version(node: str) -> tuple[int, ...] | None:
    try:
        said = subprocess.run([node, "--version"], capture_output=True, timeout=NODE_SECONDS_MAX).stdout
        return tuple(int(part) for part in said.decode().strip().removeprefix("v").split("."))
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None


def _look_at_chains(rpc_urls: Mapping[str, str], key_files: Sequence[Path]) -> Iterator[Finding]:
    """The nodes, and on each what the operators have to pay with, whose keys are known."""
    keys: list[str] = []
    try:
        keys = read_operator_keys(key_files, os.environ)
    except OperatorKeyUnusable as unusable:
        yield Finding("Operator", "wrong", str(unusable))
    for network, url in rpc_urls.items():
        own_keys = [key for key in keys if is_solana_key(key) is is_solana(network)]
        ask = _ask_solana if is_solana(network) else _ask_evm
        try:
            yield from asyncio.run(ask(network, url, own_keys))
        except (ChainUnreachable, ChainRefused) as error:
            advice = "Check the RPC URL, its key and the network."
            yield Finding(f"Node of {network}", "wrong", str(error), advice)


async def _ask_evm(network: str, url: str, keys: Sequence[str]) -> list[Finding]:
    name = f"Node of {network}"
    async with Chain(network, url) as chain:
        number = await chain.get_chain_id()
        block = await chain.get_block()
        if f"eip155:{number}" != network:
            says = f"{hide_credentials(url)} is of eip155:{number}"
            return [Finding(name, "wrong", says, "Give the right node.")]
        addresses = [Account.from_key(key).address for key in keys]  # pyright: ignore[reportUnknownMemberType]
        purses = [(each, await chain.get_balance(each)) for each in addresses]
    async with aclosing(Node(network, url)) as node:
        used, pending = [await count(node, addresses, block) for block in (LATEST, PENDING)]
    skew = 0.0 if block is None else (block.time - datetime.now(UTC)).total_seconds()
    if skew > SKEW_SECONDS_MAX:
        says = f"its newest block is {skew:.0f} s ahead of this machine's clock"
        advice = "Set this machine's clock (NTP): payments are valid by the chain's time."
        return [Finding(name, "wrong", says, advice)]
    says = f"answers at {hide_credentials(url)}, newest block {-skew:.0f} s old"
    return [
        Finding(name, "good", says),
        *(_judge_purse(network, address, wei, COIN_DIGITS, "coin", 1) for address, wei in purses),
        *(
            _tell_waiting(network, each, used[each] or 0, pending[each] or 0)
            for each in addresses
            if (used[each] or 0) < (pending[each] or 0)
        ),
    ]


def _tell_waiting(network: str, address: str, used: int, pending: int) -> Finding:
    says = f"{address}: {pending - used} transactions wait for blocks, from nonce {used} on"
    advice = "Where that lasts: the worker's log names those that were not sent from here, and what to do."
    return Finding(f"Operator on {network}", "note", says, advice)


async def _ask_solana(network: str, url: str, keys: Sequence[str]) -> list[Finding]:
    async with SolanaNode(network, url) as node:
        await node.check_network()
        final = await node.get_time((await node.get_final()).slot)
        addresses = [str(read_keypair(key).pubkey()) for key in keys]
        purses = [(each, await node.get_balance(each)) for each in addresses]
    age = (datetime.now(UTC) - final).total_seconds()
    least = RENT_LAMPORTS + SETTLEMENT_LAMPORTS_MAX
    says = f"answers at {hide_credentials(url)}, newest final block {age:.0f} s old"
    return [
        Finding(f"Node of {network}", "good", says),
        *(_judge_purse(network, address, has, SOL_DIGITS, "SOL", least) for address, has in purses),
    ]


def _judge_purse(network: str, address: str, has: int, digits: int, coin: str, least: int) -> Finding:
    """`has` and `least` in the coin's minor units."""
    says = f"{address} has {Decimal(has).scaleb(-digits).normalize():f} {coin} for fees"
    if has >= least:
        return Finding(f"Operator on {network}", "good", says)
    advice = f"Send it {coin}: with less than {Decimal(least).scaleb(-digits):f} it settles nothing."
    return Finding(f"Operator on {network}", "wrong", says, advice)
