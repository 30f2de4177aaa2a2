"""docs/reconcile.md has a chapter for every kind of difference, and for no other."""

import re
from pathlib import Path
from typing import get_args

from tollbook.books.payments.reconciler.differences import Kind

ROOT = Path(__file__).parents[2]
MIGRATION = ROOT / "src/tollbook/books/payments/migrations/0005_refunds.up.sql"


def test_the_page_names_exactly_the_kinds_of_the_code() -> None:
    page = (ROOT / "docs" / "reconcile.md").read_text()
    kinds = re.findall(r"^### `(\w+)`$", page, re.MULTILINE)
    assert kinds == list(get_args(Kind))
    for chapter in page.split("\n### ")[1:]:
        assert "**Done:**" in chapter
        assert "**To do:**" in chapter


def test_the_table_knows_exactly_the_kinds_of_the_code() -> None:
    check = re.search(r"CHECK \(kind IN \((.*?)\)\)", MIGRATION.read_text(), re.DOTALL)
    assert check is not None
    assert re.findall(r"'(\w+)'", check[1]) == list(get_args(Kind))
