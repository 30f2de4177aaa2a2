"""The pages on delivery and on other tools say commands that there are, and name every tool read."""

import re
import shlex
from pathlib import Path

import click
import pytest

from tollbook.migrate.cli import group
from tollbook.migrate.foreign import KEEPERS
from tollbook.migrate.formats import FORMATS

ROOT = Path(__file__).parents[2]
PAGES = ("docs/coming-from.md", "docs/migrate-deliver.md", "docs/how-a-migration-goes-wrong.md")
DEPLOY = (
    "deploy/Containerfile.migrate",
    *(str(p.relative_to(ROOT)) for p in (ROOT / "examples/deploy").iterdir()),
)
COMMAND = re.compile(r"(?:tollbook migrate|python -m tollbook\.migrate) ([a-z][^`#\n]*)")
ARGUMENTS = re.compile(r"(?:args:|CMD) \[(.*)\]")
LINK = re.compile(r"\]\((?!http)([^)#]+)\)")


def read_commands(name: str) -> list[list[str]]:
    text = (ROOT / name).read_text()
    found = [shlex.split(match.split(" > ")[0].rstrip(" ,;.:)(")) for match in COMMAND.findall(text)]
    return found + [shlex.split(match.replace(",", " ")) for match in ARGUMENTS.findall(text)]


@pytest.mark.parametrize("name", [*PAGES, *DEPLOY])
def test_every_command_and_option_in_it_exists(name: str) -> None:
    commands = group(list, lambda: "")
    for words in read_commands(name):
        command = commands.get_command(click.Context(commands), words[0])
        assert command is not None, words
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words[1:] if word.startswith("--")} <= known, words


def test_the_pages_have_commands_to_look_at() -> None:
    assert sum(len(read_commands(name)) for name in (*PAGES, *DEPLOY)) > 25


def test_every_tool_that_is_read_has_its_lines() -> None:
    text = (ROOT / "docs/coming-from.md").read_text()
    titles = " ".join(re.findall(r"(?m)^## (.*)$", text)).lower()
    for tool in [*(keeper.tool for keeper in KEEPERS), *(name for name in FORMATS if name != "native")]:
        assert tool.lower() in titles, tool
    for keeper in KEEPERS:
        assert keeper.table in text, keeper.table


@pytest.mark.parametrize("name", PAGES)
def test_its_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in LINK.findall(page.read_text()):
        assert (page.parent / link).exists(), link
