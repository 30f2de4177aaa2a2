"""Files that hold several parts: each part is as long as the file, the rest of it blank."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from tollbook.migrate.files import Script
from tollbook.migrate.headers import Options


def cut(script: Script, spans: Iterable[tuple[int, int]], options: Options) -> Script:
    """Return the script with everything blank but what lies in the spans (start, end), in order.

    Its checksum is that of the part, so that a changed way back is no change of the way there.
    """
    kept: list[str] = []
    done = 0
    for start, end in spans:
        kept += [blank(script.text[done:start]), script.text[start:end]]
        done = end
    text = "".join([*kept, blank(script.text[done:])])
    return replace(
        script, text=text, checksum=hashlib.sha256(text.strip().encode()).hexdigest(), options=options
    )


def blank(text: str) -> str:
    """Return spaces and line ends in the text's place."""
    return "\n".join(" " * len(line) for line in text.split("\n"))
