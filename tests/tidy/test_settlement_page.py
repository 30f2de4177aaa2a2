"""docs/settlement.md names commands, fields and statuses that there are, and leads somewhere."""

import re
import shlex
from pathlib import Path
from typing import get_args

import click

from tollbook.books.settlement.cli import settlement_group as group
from tollbook.books.settlement.commands import Status
from tollbook.books.settlement.requests import CommandRequest

PAGE = Path(__file__).parents[2] / "docs" / "settlement.md"
COMMAND = re.compile(r"tollbook settlement ([a-z]+ [^`#\n]*)")
FIELD = re.compile(r"^\| (`[a-z_`, ]+) \| (?:needed)? ?\|", re.MULTILINE)
ROW = re.compile(r"^\| (`[a-z`, ]+) \| [a-z]", re.MULTILINE)
LINK = re.compile(r"\]\((?!http)([^)#]+)\)")


def test_its_fields_and_statuses_are_those_of_the_code() -> None:
    page = PAGE.read_text()
    fields, _, rest = page.partition("## What becomes of it")
    assert set(re.findall(r"`(\w+)`", " ".join(FIELD.findall(fields)))) == set(CommandRequest.model_fields)
    statuses = " ".join(ROW.findall(rest.partition("## Many at once")[0]))
    assert set(re.findall(r"`(\w+)`", statuses)) == set(get_args(Status))


def test_every_command_and_option_in_it_exists_and_none_is_missing() -> None:
    found = [shlex.split(words) for words in COMMAND.findall(PAGE.read_text())]
    assert {words[0] for words in found} == set(group.commands)
    for verb, *words in found:
        command = group.get_command(click.Context(group), verb)
        assert command is not None
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, words


def test_its_links_lead_somewhere() -> None:
    for link in LINK.findall(PAGE.read_text()):
        assert (PAGE.parent / link).exists(), link
