"""docs/webhooks.md names the events that there are, commands and options that exist, and leads somewhere."""

import re
import shlex
from pathlib import Path

import click

from tollbook.core.webhooks.cli import group

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "tollbook"
PAGES = (ROOT / "docs" / "webhooks.md", ROOT / "examples" / "webhook_receiver" / "README.md")
ROW = re.compile(r"^\| `([a-z.]+)\.\*` \| (.*) \|$", re.MULTILINE)
KIND = re.compile(r"['\"]((?:payment|token|refund|difference)\.[a-z]+)['\"]")
COMMAND = re.compile(r"tollbook webhooks ([a-z]+ [^`#\n|]*)")
LINK = re.compile(r"\]\((?!http)([^)#]+)\)")


def test_the_events_of_payments_are_those_of_the_code() -> None:
    named = {
        f"{place.removeprefix('payments.')}.{kind}"
        for place, kinds in ROW.findall(PAGES[0].read_text())
        for kind in re.findall(r"`(\w+)`", kinds)
        if place.startswith("payments.")
    }
    files = [*(SOURCE / "books/payments").rglob("*.py"), *(SOURCE / "books/payments").rglob("*.up.sql")]
    assert named == {kind for file in files for kind in KIND.findall(file.read_text())}


def test_every_command_and_option_in_it_exists() -> None:
    found = [shlex.split(words) for page in PAGES for words in COMMAND.findall(page.read_text())]
    assert len(found) > 8
    for verb, *words in found:
        command = group.get_command(click.Context(group), verb)
        assert command is not None, verb
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word.strip("[]") for word in words if word.startswith(("--", "[--"))} <= known, words


def test_its_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in LINK.findall(page.read_text()):
            assert (page.parent / link).exists(), link
