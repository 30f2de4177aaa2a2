"""What is no SQL of ours, told by what it says: the tool that it was written for."""

import re
from pathlib import Path

from tollbook.migrate.formats import sections

ANY = "the tool it was written for"
DATA = ("json", "yaml", "yml", "xml")  # in which much else is written too
SAYS = {
    "TypeORM": r"\bMigrationInterface\b",
    "MikroORM": r"@mikro-orm/",
    "Sequelize": r"\bqueryInterface\b",
    "node-pg-migrate": r"node-pg-migrate|\bMigrationBuilder\b|\bpgm\.",
    "Kysely": r"(?i)\bkysely\b",
    "Knex": r"(?i)\bknex\b",
    "pgroll": r"""(?m)^\s*[{,]?\s*["']?operations["']?\s*:""",
    "Hasura": r"\brun_sql\b",
    "Liquibase": r"\bdatabaseChangeLog\b",
    "Rails": r"\bActiveRecord::Migration\b",
    "Sequel": r"\bSequel\.migration\b",
    "Ecto": r"\buse Ecto\.Migration\b",
    "Django": r"\bmigrations\.Migration\b",
    "yoyo": r"\byoyo\b",
    "Laravel": r"\bIlluminate\\Database\b",
    "Doctrine": r"\bDoctrine\\(?:DBAL|Migrations)\b",
    "Phinx": r"\bPhinx\\",
    "Entity Framework": r"\bEntityFrameworkCore\.Migrations\b|\bclass \w+ : Migration\b",
}
LIQUIBASE = re.compile(r"\s*--\s*liquibase\s+formatted\s+sql\b", re.IGNORECASE)


def name_tool(path: Path) -> str | None:
    """Return the tool that a file was written for; None where it does not say so."""
    text = sections.read_text(path)
    return next((tool for tool, pattern in SAYS.items() if re.search(pattern, text)), None)
