"""What the settlement book refuses, each with the sentence that says what to do next."""

from tollbook.core.errors import Refusal

SHOWN_MAX = 128


class CommandUnknown(Refusal):
    """No command has this id."""

    reason = "command-unknown"
    status = 404

    def __init__(self, command_id: str) -> None:
        super().__init__(
            f"There is no command {command_id[:SHOWN_MAX]!r}. See tollbook settlement list, or send it."
        )


class CommandMalformed(Refusal):
    """What was sent is not a command."""

    reason = "command-malformed"
    status = 422
    exit_code = 2


class CommandReused(Refusal):
    """The id came with other content before. Nothing was changed."""

    reason = "command-reused"
    status = 422

    def __init__(self, command_id: str) -> None:
        super().__init__(
            f"Command {command_id} was received before with other content, and stays as it was. Give every "
            "new command an id of its own.",
            command_id=command_id,
        )


class CommandBusy(Refusal):
    """Another request with this id is being taken in."""

    reason = "command-busy"
    status = 409

    def __init__(self, command_id: str) -> None:
        super().__init__(
            f"Command {command_id} is being received just now. Send it again in a second.",
            command_id=command_id,
            retry_after_seconds=1,
        )


class CommandNotInState(Refusal):
    """The command's status does not allow what was asked; nothing was changed."""

    reason = "command-not-in-state"
    status = 409

    def __init__(self, command_id: str, status: str, wanted: str) -> None:
        super().__init__(
            f"Command {command_id} is {status} and cannot be {wanted}. Nothing was changed; see tollbook "
            f"settlement show {command_id}.",
            command_id=command_id,
            command_status=status,
        )
