"""Extensions that the embedded server lacks: stand-ins of the same names, so that a schema can be made."""

from tollbook.embedded import Server
from tollbook.migrate.session import Connection


def offer(server: Server, admin: Connection, conn: Connection | None = None) -> list[str]:
    """Make stand-ins known to the server. Returns a sentence for each extension that is one."""
    return []
