"""docs/hazards.md is what the rules say of themselves, and each rule is a file of its own name."""

import re
from pathlib import Path

import pytest

from tollbook.migrate.lint import RULES, Rule, page

ROOT = Path(__file__).parents[2]
ROOM = ROOT / "src" / "tollbook" / "migrate" / "lint" / "rules"


def test_the_page_is_the_one_that_the_rules_write() -> None:
    written = (ROOT / "docs" / "hazards.md").read_text()
    assert written == page.write_page(), "tollbook migrate lint --rules --markdown > docs/hazards.md"


def test_the_register_is_the_folder() -> None:
    files = {path.stem.replace("_", "-") for path in ROOM.glob("*.py") if path.stem != "__init__"}
    assert files == {rule.id for rule in RULES}
    assert len(RULES) == len(files)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_says_what_why_and_what_instead(rule: Rule) -> None:
    for words in (rule.what, rule.why, rule.safe):
        assert words.endswith(".")
    assert "\n" not in rule.what
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", rule.id)
