"""What is drawn of a database: its schema, and what ran on it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tollbook.migrate import arrangement, diagram
from tollbook.migrate.arrangement import Box

Run = Callable[..., Any]
OUTSIDE = re.compile(r"(?:src|href|url\()\s*=?\s*[\"']?\s*(?:https?:)?//|@import|<link")


@pytest.fixture
def shop(write: Any, apply: Run) -> None:
    write(
        "0001_shop",
        up="CREATE SCHEMA hr; CREATE TABLE customers (id int PRIMARY KEY, name text);"
        "CREATE TABLE orders (id int PRIMARY KEY, customer int NOT NULL REFERENCES customers, at date);"
        "CREATE TABLE invoices (number int PRIMARY KEY REFERENCES orders);"
        'CREATE TABLE hr.people (id int PRIMARY KEY, boss int REFERENCES hr.people, "<b>" int);'
        "CREATE TABLE hr.teams (id int PRIMARY KEY, lead int REFERENCES hr.people);"
        "ALTER TABLE hr.people ADD team int REFERENCES hr.teams;"
        "CREATE TABLE log (at date, text text) PARTITION BY RANGE (at);"
        "CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');",
        down="SELECT 1;",
    )
    assert apply().exit_code == 0


def test_the_schema_is_drawn_from_the_catalog(shop: None, run: Run, url: str, tmp_path: Path) -> None:
    out = tmp_path / "schema.svg"
    answer = json.loads(run("graph", "--out", str(out), "--json").output)
    assert answer == {"file": str(out), "tables": 6, "references": 5}
    picture = ElementTree.fromstring(out.read_text())
    drawn = {one.get("data-table") for one in picture.iter() if one.get("data-table")}
    assert drawn == {
        "public.customers",
        "public.orders",
        "public.invoices",
        "public.log",
        "hr.people",
        "hr.teams",
    }
    ends = {(one.get("data-from"), one.get("data-to")) for one in picture.iter() if one.get("data-from")}
    assert ("public.orders", "public.customers") in ends
    assert ("hr.people", "hr.people") in ends
    found = {one.name: one for one in diagram.read(url).references}
    assert found["invoices_number_fkey"].one
    assert not found["orders_customer_fkey"].one


def test_a_page_needs_nothing_from_elsewhere_and_shows_text_as_text(
    shop: None, run: Run, tmp_path: Path
) -> None:
    for command in ("graph", "timeline"):
        out = tmp_path / f"{command}.html"
        assert run(command, "--out", str(out)).exit_code == 0
        text = out.read_text()
        assert not OUTSIDE.search(text)
        assert "prefers-color-scheme: dark" in text
        assert ("&lt;b&gt;" in text) == (command == "graph")


def test_another_ending_is_refused(shop: None, run: Run) -> None:
    assert run("graph", "--out", "schema.png").exit_code == 2


def test_no_two_boxes_overlap_and_none_leaves_the_sheet() -> None:
    boxes = {f"t{n}": Box(100 + n * 7 % 90, 60 + n * 31 % 400) for n in range(60)}
    links = [(f"t{n}", f"t{n * 7 % 40}") for n in range(60)] + [("t3", "t4"), ("t4", "t3")]
    sheet = arrangement.place(boxes, links)
    width, height = sheet.width, sheet.height
    assert len(boxes) == 60
    placed = [*boxes.values(), *(lane for lanes in sheet.lanes.values() for lane in lanes)]
    assert len(placed) > 60
    for place, one in enumerate(placed):
        assert one.x >= 0 <= one.y
        assert one.x + one.width <= width
        assert one.y + one.height <= height
        for other in placed[place + 1 :]:
            apart = one.x + one.width <= other.x or other.x + other.width <= one.x
            assert apart or one.y + one.height <= other.y or other.y + other.height <= one.y


def test_a_database_without_tables_has_a_picture_too(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "schema.html"
    assert run("graph", "--out", str(out)).exit_code == 0
    assert "There are no tables" in out.read_text()
    assert run("timeline", "--out", str(out)).exit_code == 0
    assert "Nothing has run here yet" in out.read_text()


def test_the_timeline_says_what_ran_when_and_what_failed(
    shop: None, write: Any, apply: Run, run: Run, tmp_path: Path
) -> None:
    write("0002_more", up="CREATE TABLE more (n int);", down="DROP TABLE more;")
    assert apply().exit_code == 0
    assert run("revert", "--auto", "--skip-backup").exit_code == 0
    write("0003_bad", up="SELECT 1/0;")
    assert apply().exit_code == 1
    answer = json.loads(run("timeline", "--out", str(tmp_path / "t.html"), "--json").output)
    runs = [
        (one["command"], one["outcome"], [part["migration"] for part in one["parts"]], one["left"])
        for one in answer["runs"]
    ]
    assert runs == [
        ("apply", "failed", ["shop/0002_more"], ["shop/0003_bad"]),
        ("revert", "done", ["shop/0002_more"], []),
        ("apply", "done", ["shop/0002_more"], []),
        ("apply", "done", ["shop/0001_shop"], []),
    ]
    assert answer["runs"][2]["parts"][0]["reverted_at"]
    text = (tmp_path / "t.html").read_text()
    assert "<b>shop/0003_bad</b> not done" in text
