"""Atlas: plain numbered SQL, with words of its own in the remarks at a file's head."""

import re
from dataclasses import replace

from tollbook.migrate.files import Script

CHECKPOINT = "-- atlas:checkpoint"  # stands for all before it, where those are not there any more
WORD = re.compile(r"--[ \t]*atlas:(?P<name>txmode|delimiter)[ \t]+(?P<value>[^\n]*?)[ \t]*$", re.MULTILINE)
HEAD = re.compile(r"(?:[ \t]*(?:--[^\n]*)?\n)*")
HIDDEN = r"|--[^\n]*|/\*.*?\*/|\$(?P<tag>[A-Za-z_]\w*)?\$.*?\$(?P=tag)?\$|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\""


def heed(script: Script) -> Script:
    """Return a script with what Atlas' words at its head say done: no transaction, another end of statements.

    Each character stays at its index.
    """
    if "atlas:" not in script.text:
        return script
    head = HEAD.match(script.text)
    end = head.end() if head else 0
    said = {word["name"]: word["value"] for word in WORD.finditer(script.text, 0, end)}
    if said.get("txmode") == "none":
        script = replace(script, options=replace(script.options, transaction=False))
    delimiter = said.get("delimiter", ";").replace("\\n", "\n").replace("\\t", "\t")
    return script if delimiter == ";" else replace(script, text=_end(script.text, end, delimiter))


def _end(text: str, start: int, delimiter: str) -> str:
    """Write semicolons for what ends statements, where nothing hides it."""
    places = re.compile(f"(?P<end>{re.escape(delimiter)}){HIDDEN}", re.DOTALL)

    def write(place: re.Match[str]) -> str:
        return f";{place['end'][1:] if place['end'].isspace() else ' ' * (len(delimiter) - 1)}"

    return text[:start] + places.sub(lambda place: write(place) if place["end"] else place[0], text[start:])
