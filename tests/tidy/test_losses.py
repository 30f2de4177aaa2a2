"""docs/losses.md names tests: each must exist, and no row may be without one."""

import re
import string
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| ([a-p]) \|", re.MULTILINE)
TEST = re.compile(r"def (test_row_[a-p]_\w+)")


def test_every_test_that_the_page_names_exists_and_every_row_has_one() -> None:
    page = (ROOT / "docs" / "losses.md").read_text()
    written = {
        name for file in (ROOT / "tests").rglob("test_*.py") for name in TEST.findall(file.read_text())
    }
    named = set(re.findall(r"`(test_row_\w+)`", page))
    assert named <= written
    assert ROW.findall(page) == list(string.ascii_lowercase[:16])
    for row in string.ascii_lowercase[:16]:
        assert any(name.startswith(f"test_row_{row}_") for name in named), row
