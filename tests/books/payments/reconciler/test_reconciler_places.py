"""Where money comes in is found without reading every payment that ever came."""

from fixtures.payments import make_offer
from tollbook.books.payments import payments
from tollbook.books.payments.reconciler.transfers import _find_place
from tollbook.core import clock
from tollbook.core.database import Database
from tollbook.core.local_chain import NETWORK

ROWS = 3_000
PLACES = [("0x" + "22" * 20, "0x" + "aa" * 20), ("0x" + "22" * 20, "0x" + "bb" * 20), ("0x" + "33" * 20,) * 2]

MANY = """
INSERT INTO payments.x402_payments (
    payment_id, network, chain, asset, decimals, amount, from_address, to_address, scheme, nonce, endpoint,
    requests_allocated, lifetime, status, settlement, created_at, updated_at)
SELECT n, network, chain, asset, decimals, amount, from_address, to_address, scheme,
       '0x' || lpad(to_hex(n), 64, '0'), endpoint, requests_allocated, lifetime, status, settlement,
       created_at, updated_at
FROM payments.x402_payments, generate_series(1, %(rows)s) AS n
WHERE payment_id = (SELECT max(payment_id) FROM payments.x402_payments)
"""


async def test_who_is_paid_is_found_by_a_look_for_each_and_no_more(database: Database) -> None:
    async with database.write() as tx:
        for pay_to, asset in PLACES:
            offer = make_offer(network=NETWORK, asset=asset, to_address=pay_to)
            await payments.reserve(tx, offer, now=clock.now())
        assert await tx.execute(MANY, {"rows": ROWS}) == ROWS
        other = make_offer(network="eip155:8453", to_address="0x" + "44" * 20)
        await payments.reserve(tx, other, now=clock.now())
        await tx.execute(
            "INSERT INTO payments.x402_cursors VALUES (%(network)s, 7, now())", {"network": NETWORK}
        )
        await tx.execute("ANALYZE payments.x402_payments")
    async with database.read() as tx:
        place = await _find_place(tx, NETWORK, [])
        scans, fetched = await tx.value(
            """
            SELECT (seq_scan, idx_tup_fetch) FROM pg_stat_xact_user_tables WHERE relname = 'x402_payments'
            """
        )
    assert place.recipients == sorted({pay_to for pay_to, _ in PLACES})
    assert place.assets == sorted({asset for _, asset in PLACES})
    assert (place.position, place.begun_at) == (7, None)
    assert scans == 0
    assert fetched <= 4 * len(PLACES)


async def test_before_the_first_look_the_books_begin_with_their_first_payment(database: Database) -> None:
    async with database.write() as tx:
        first = await payments.reserve(tx, make_offer(network=NETWORK), now=clock.now())
        await payments.reserve(tx, make_offer(network=NETWORK), now=clock.now())
    async with database.read() as tx:
        assert (await _find_place(tx, NETWORK, [])).begun_at == first.created_at
        assert (await _find_place(tx, "eip155:8453", [])).begun_at is None
