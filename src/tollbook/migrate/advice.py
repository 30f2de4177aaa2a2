"""What to do about errors of the server's that come of where a file is run, and not of the file."""

import re

ROLE = "Roles are the server's: make it there first (CREATE ROLE)"
TOOLS_TABLE = (
    "That is the table of the tool that these files were written for, which is not kept here: make it "
    "beforehand, or leave this statement out"
)
SUPERUSER = "Have a superuser make it in this database first: CREATE EXTENSION {}"
EXTENSION = "The extension {0} has it: write CREATE EXTENSION {0} before, or have it made in this database"
SUPABASE = "Supabase has it made in its databases: run this there, or make what it needs of it first"
# Harbor's files add a column to theirs.
HISTORY_TABLE = (
    r"(?i)\b(?:schema_migrations|schema_version|flyway_schema_history|goose_db_version|gorp_migrations"
    r"|_sqlx_migrations|__diesel_schema_migrations|pgmigrations)\b"
)
# By what the server says: its SQLSTATE and its words. What is in parentheses is said in the advice.
SAID: tuple[tuple[str, str, str], ...] = (
    ("42704", r"^role ", ROLE),
    ("42P01", HISTORY_TABLE, TOOLS_TABLE),
    ("42501", r'^permission denied to create extension "([^"]+)"', SUPERUSER),
    ("3F000", r'^schema "(?:auth|extensions|graphql|realtime|storage|vault)"', SUPABASE),
    ("42704", r'^type "(?:\w+\.)?(citext|cube|hstore|ltree)(?:\[\])?"', EXTENSION),
)
# Types, functions and classes of operators, by the extension that has them.
EXTENSIONS = {
    "pg_trgm": r"^operator class \"g(?:in|ist)_trgm_ops\"|^function (?:word_)?similarity\(",
    "pgcrypto": r"^function (?:\w+\.)?(?:crypt|digest|gen_random_bytes|gen_salt|hmac|pgp_\w+)\(",
    "postgis": r"^type \"(?:\w+\.)?geo(?:metry|graphy)|^function (?:\w+\.)?st_\w+\(",
    "timescaledb": r"^function (?:\w+\.)?create_hypertable\(",
    "unaccent": r"^function (?:\w+\.)?unaccent\(",
    '"uuid-ossp"': r"^function (?:\w+\.)?uuid_generate_v\d\w*\(",
    "vector": r"^type \"(?:\w+\.)?(?:half|sparse)?vec(?:tor)?\b|^operator class \"(?:half)?vec\w*_ops\"",
}
MISSING = ("42704", "42883")  # of a type or an operator class, of a function


def advise(sqlstate: str | None, message: str) -> str | None:
    """Return what to do about an error, a sentence without its end; None where the file is to be mended."""
    for state, words, advice in SAID:
        if state == sqlstate and (found := re.search(words, message)):
            return advice.format(*found.groups())
    if sqlstate in MISSING:
        return next(
            (EXTENSION.format(name) for name, words in EXTENSIONS.items() if re.search(words, message)), None
        )
    return None
