"""Databases beside another go, also when someone is in them whom we may not send away."""

import threading

import psycopg

from tollbook.embedded import Server
from tollbook.migrate import beside

LEAVES_AFTER_SECONDS = 0.2


def test_a_superuser_who_is_just_leaving_holds_up_no_drop(migrate_server: Server) -> None:
    with psycopg.connect(migrate_server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE left_behind")
        theirs = psycopg.connect(migrate_server.url("left_behind", user="postgres"))
        leaving = threading.Timer(LEAVES_AFTER_SECONDS, theirs.close)
        leaving.start()
        beside.drop(connection, "left_behind")
        leaving.join()
        assert not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'left_behind'").fetchall()
