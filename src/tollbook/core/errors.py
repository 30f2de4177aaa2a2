"""The refusals that all books share."""

from tollbook.refusal import Refusal as Refusal

RETRY_AFTER_SECONDS = 2  # a failover takes longer, most restarts do not


class DatabaseUnreachable(Refusal):
    """The database did not answer; nothing was read or written by this call that it did not confirm."""

    reason = "database-unreachable"
    status = 503

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, retry_after_seconds=RETRY_AFTER_SECONDS)
