"""Where the books are: a database somebody else runs, or the embedded server, started or attached to."""

from dataclasses import dataclass

from tollbook import embedded
from tollbook.core.settings import Settings


@dataclass(frozen=True, slots=True)
class Storage:
    """The database's address, and the embedded server behind it where it is ours."""

    url: str
    server: embedded.Server | None

    def close(self) -> None:
        """Stop the embedded server if this process started it."""
        if self.server is not None:
            self.server.stop()


def open_storage(settings: Settings) -> Storage:
    """Find the database; the embedded server is started, or attached to where another process runs it."""
    if settings.database_url is not None:
        return Storage(settings.database_url, None)
    if settings.storage == "memory":
        server = embedded.throwaway()
    else:
        server = embedded.start(settings.data_dir.expanduser())
    return Storage(server.url(), server)
