"""Labels: long texts that repeat in hot tables, kept once and named there by two bytes."""

from typing import cast

from tollbook.core.database import Database, WriteTx

LABELS_MAX = 32_767
OTHER = 0
OTHER_LABEL = "(other)"

_cache: dict[tuple[str, str, str], int] = {}


async def intern(database: Database, kind: str, label: str) -> int:
    """The number of `label` among its kind, made where it is new and then kept by this process.

    Once a kind has 32,767 labels every further one is 0, "(other)".
    """
    known = _cache.get((database.url, kind, label))
    if known is not None:
        return known
    async with database.write() as tx:
        label_id = await _find_or_make(tx, kind, label)
    if label_id != OTHER:  # what overflows has no bound, so it is not kept
        _cache[database.url, kind, label] = label_id
    return label_id


async def _find_or_make(tx: WriteTx, kind: str, label: str) -> int:
    known = await _find(tx, kind, label)
    if known is not None:
        return known
    # One maker a kind at a time, so that numbers have no gaps and no twins.
    await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended(%(kind)s, 7))", {"kind": kind})
    await tx.execute(
        """
        INSERT INTO core.labels (kind, label_id, label) VALUES (%(kind)s, 0, %(other)s)
        ON CONFLICT DO NOTHING
        """,
        {"kind": kind, "other": OTHER_LABEL},
    )
    await tx.execute(
        """
        INSERT INTO core.labels (kind, label_id, label)
        SELECT %(kind)s, max(label_id) + 1, %(label)s FROM core.labels WHERE kind = %(kind)s
        HAVING max(label_id) < %(labels_max)s
        ON CONFLICT (kind, label) DO NOTHING
        """,
        {"kind": kind, "label": label, "labels_max": LABELS_MAX},
    )
    return await _find(tx, kind, label) or OTHER


async def _find(tx: WriteTx, kind: str, label: str) -> int | None:
    return cast(
        "int | None",
        await tx.value(
            "SELECT label_id FROM core.labels WHERE kind = %(kind)s AND label = %(label)s",
            {"kind": kind, "label": label},
        ),
    )
