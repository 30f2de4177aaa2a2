"""The look of the pages that the engine draws: nothing from elsewhere, readable by day and by night."""

from html import escape

COLOURS = """
:root { color-scheme: light dark; --ground: #fbfbfa; --card: #ffffff; --ink: #1d2126; --soft: #69727d;
  --line: #d5d9de; --edge: #98a2ad; --key: #9a6700; --good: #1a7f37; --bad: #cf222e; --mark: #0969da;
  --head-light: 91%; --head-ink: 24%; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --card: #1c2127; --ink: #e4e8ec;
  --soft: #98a2ad; --line: #363d46; --edge: #6b7682; --key: #d8a32f; --good: #57ab5a; --bad: #f47067;
  --mark: #6cb6ff; --head-light: 23%; --head-ink: 86%; } }
"""
_STYLE = """
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 14px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
header { padding: 20px 28px 8px; }
h1 { font-size: 20px; font-weight: 650; margin: 0; overflow-wrap: anywhere; }
header p { margin: 2px 0 0; color: var(--soft); }
main { padding: 8px 28px 32px; }
"""


def shorten(database: str) -> str:
    """Return a database's own name: a page may be shown to more people than its address."""
    return database.rpartition("/")[2] or database


def write_page(title: str, said: str, style: str, body: str) -> str:
    """Return a whole page. title and said are plain text; body is HTML."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{COLOURS}{_STYLE}{style}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><p>{escape(said)}</p></header>
<main>{body}</main>
</body>
</html>
"""
