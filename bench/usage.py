"""What a metered request costs: token check, quota, and a usage row on disk, against pgbench and the disk."""

import asyncio
import os
import re
import secrets
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import uvloop

import tollbook
from tollbook.books.payments.tokens import hash_secret
from tollbook.books.payments.usage import Meter
from tollbook.embedded import binaries, throwaway

ENDPOINT = "GET /weather/*"
QUOTA = 2_000_000_000
SECONDS = 4.0
TOKENS = 1_000
SOURCE = Path(tollbook.__file__).parent

# One statement a request, as a program without shared commits would do it.
PGBENCH = """
\\set n random(1, :tokens)
WITH paid AS (
    UPDATE payments.x402_payments SET requests_used = requests_used + 1
    WHERE payment_id = (SELECT payment_id FROM payments.x402_tokens
                        WHERE token_hash = sha256((:n)::text::bytea) AND revoked_at IS NULL
                          AND expires_at > now())
      AND requests_used < requests_allocated
    RETURNING payment_id)
INSERT INTO payments.x402_usage (payment_id, response_time_ms, endpoint_id, status_code)
SELECT payment_id, 5, 1, 200 FROM paid;
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement: requests a second and the latencies in milliseconds."""

    name: str
    rate: float
    p50_ms: float
    p99_ms: float
    goal: int | None = None


def migrate(url: str) -> None:
    """Make the books' tables."""
    for folder in (SOURCE / "core" / "migrations", SOURCE / "books" / "payments" / "migrations"):
        for file in sorted(folder.glob("*.up.sql")):
            with psycopg.connect(url) as connection:
                connection.execute(file.read_bytes())


def fill(url: str) -> None:
    """A payment and a token each for the secrets "1" to "1000"."""
    now = datetime.now(UTC)
    with psycopg.connect(url) as connection:
        connection.execute(
            """
            INSERT INTO payments.x402_payments (
                payment_id, created_at, updated_at, verified_at, settled_at, expires_at, settled_in,
                requests_allocated, decimals, amount, lifetime, status, settlement, network, chain, asset,
                scheme, from_address, to_address, endpoint, nonce)
            SELECT n, now(), now(), now(), now(), %(until)s, 1, %(quota)s, 6, 1000000, '1 day', 'verified',
                   'settled', 'eip155:84532', 'base-sepolia', '0x' || repeat('11', 20), 'exact',
                   '0x' || repeat('22', 20), '0x' || repeat('33', 20), %(endpoint)s, n::text
            FROM generate_series(1, %(tokens)s) AS n
            """,
            {"until": now + timedelta(days=1), "quota": QUOTA, "tokens": TOKENS, "endpoint": ENDPOINT},
        )
        connection.execute(
            """
            INSERT INTO payments.x402_tokens (token_id, payment_id, issued_at, expires_at, token_hash)
            SELECT n, n, now(), %(until)s, sha256(n::text::bytea) FROM generate_series(1, %(tokens)s) AS n
            """,
            {"until": now + timedelta(days=1), "tokens": TOKENS},
        )
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


async def meter(url: str, waiting: int, tokens: int, seconds: float = SECONDS) -> Figure:
    """`waiting` clients, each admitting and recording one request after another."""
    hashes = [hash_secret(str(nth + 1)) for nth in range(tokens)]
    taken: list[float] = []
    async with Meter(url) as running:
        until = time.perf_counter() + seconds

        async def client() -> None:
            while (began := time.perf_counter()) < until:
                admission = await running.admit(hashes[secrets.randbelow(tokens)], ENDPOINT)
                await running.record(admission, endpoint=ENDPOINT, status_code=200, response_time_ms=5)
                taken.append(time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(waiting)))
        elapsed = time.perf_counter() - began
    taken.sort()
    name = f"meter, {waiting} waiting, {'one token' if tokens == 1 else f'{tokens:,} tokens'}"
    goal = {(64, 1): 50_000, (256, 1): 100_000, (64, TOKENS): 30_000, (256, TOKENS): 30_000}
    return Figure(
        name,
        len(taken) / elapsed,
        statistics.median(taken) * 1000,
        taken[int(len(taken) * 0.99)] * 1000,
        goal.get((waiting, tokens)),
    )


def pgbench(url: str, clients: int, tokens: int) -> Figure:
    """The same work as one statement a request."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(PGBENCH)
        script.flush()
        log = Path(script.name).with_suffix("")
        command = [str(binaries() / "pgbench"), "-n", "-M", "prepared", "-c", str(clients), "-j", "2"]
        command += ["-T", str(int(SECONDS)), "-D", f"tokens={tokens}", "-f", script.name, "-l"]
        ran = subprocess.run(
            [*command, f"--log-prefix={log}", url], capture_output=True, text=True, check=True, timeout=60
        )
    latencies: list[int] = []
    for part in log.parent.glob(f"{log.name}.*"):
        if part.suffix != ".sql":
            latencies += [int(line.split()[2]) for line in part.read_text().splitlines()]
            part.unlink()
    latencies.sort()
    rate = re.search(r"tps = ([\d.]+)", ran.stdout)
    assert rate is not None
    name = f"pgbench, {clients} clients, {'one token' if tokens == 1 else f'{tokens:,} tokens'}"
    return Figure(
        name,
        float(rate[1]),
        statistics.median(latencies) / 1000,
        latencies[int(len(latencies) * 0.99)] / 1000,
    )


def sync(folder: Path) -> Figure:
    """The floor under every commit: write 8 KiB and have the disk confirm it."""
    taken: list[float] = []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        until = time.perf_counter() + 1
        while (began := time.perf_counter()) < until:
            os.pwrite(file.fileno(), b"x" * 8192, 0)
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - began)
    taken.sort()
    return Figure(
        "fdatasync of 8 KiB",
        len(taken),
        statistics.median(taken) * 1000,
        taken[int(len(taken) * 0.99)] * 1000,
    )


def show(figures: list[Figure], base: float) -> None:
    """One table; the ratio is to pgbench with 64 clients on one token."""
    print(f"{'':40}{'req/s':>10}{'p50 ms':>9}{'p99 ms':>9}{'goal':>10}{'of goal':>9}{'x pgbench':>11}")
    for figure in figures:
        goal = f"{figure.goal:,}" if figure.goal else ""
        of_goal = f"{figure.rate / figure.goal:.2f}" if figure.goal else ""
        row = f"{figure.name:40}{figure.rate:>10,.0f}{figure.p50_ms:>9.2f}{figure.p99_ms:>9.2f}"
        print(f"{row}{goal:>10}{of_goal:>9}{figure.rate / base:>11.1f}")


def main() -> None:
    """Measure on a throw-away server."""
    with throwaway() as server:
        url = server.url()
        migrate(url)
        fill(url)
        figures = [sync(server.data_dir)]
        one_by_one = [pgbench(url, 64, tokens) for tokens in (1, TOKENS)]
        figures += one_by_one
        for tokens in (1, TOKENS):
            figures += [uvloop.run(meter(url, waiting, tokens)) for waiting in (1, 64, 256)]
    show(figures, one_by_one[0].rate)


if __name__ == "__main__":
    main()
