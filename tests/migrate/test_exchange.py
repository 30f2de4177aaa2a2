"""What the engine writes into its own queries arrives as it was, whatever is in it."""

from collections.abc import Iterator
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tollbook.embedded import Server
from tollbook.migrate.exchange import command, load, send, write
from tollbook.migrate.session import Connection

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])) | st.sampled_from(
    ["'", "\\", "\\'", "%", "%(name)s", "$1", '"', "--", "E'\\000'", "{a,b}", "NULL"]
)


@pytest.fixture(params=["on", "off"])
def session(migrate_server: Server, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """A session in which a backslash in '…' is one, or is none: a file may have set it."""
    with psycopg.connect(migrate_server.url(), autocommit=True) as connection:
        connection.execute("SELECT set_config('standard_conforming_strings', %s, false)", [request.param])
        connection.execute("SET escape_string_warning = off")
        yield connection


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT, st.lists(TEXT, max_size=3), st.integers(1 - 2**63, 2**63 - 1), st.uuids())
def test_values_arrive_as_they_were(
    session: Connection, text: str, texts: list[str], number: int, uuid: UUID
) -> None:
    """Also beside a minus sign, which would begin a comment with that of a number."""
    query = "SELECT %(text)s::text, %(texts)s, 0 -%(number)s::bigint, %(uuid)s::uuid, %(none)s::text, '%%'"
    values = {"text": text, "texts": texts, "number": number, "uuid": uuid, "none": None}
    results = command(session, write(session, [(query, values)]))
    assert load(session, results) == [(text, texts, -number, uuid, None, "%")]


def test_what_breaks_off_meanwhile_leaves_a_session_that_can_go_on(
    session: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement is cancelled, not waited for, and its answer is not taken for the next one's.

    A server takes no notice where it has not begun: it is told again.
    """
    cancel, told = session.cancel_safe, list[None]()

    def tell() -> None:
        told.append(None)
        if len(told) > 1:
            cancel()

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "cancel_safe", tell)
    with pytest.raises(KeyboardInterrupt):
        send(session, "SELECT pg_sleep(3600)", meanwhile=interrupt)
    assert load(session, send(session, "SELECT 'the next'")) == [("the next",)]
