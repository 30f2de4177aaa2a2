"""The settlement book over HTTP: /v1/settlement, and the reference's two paths under /commands."""

import base64
import binascii
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal, cast

from fastapi import APIRouter, Body, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from tollbook.books.settlement import bulk, commands, dry_run, endings, limits, requests
from tollbook.books.settlement.commands import Command, Move, Status
from tollbook.books.settlement.dry_run import Forecast
from tollbook.books.settlement.intake import Gate
from tollbook.books.settlement.requests import ID, ID_LETTERS_MAX, CommandRequest
from tollbook.books.settlement.settings import SettlementSettings
from tollbook.books.settlement.streams import NDJSON, Results
from tollbook.core import clock, idempotency
from tollbook.core.chains import normalize_address
from tollbook.core.errors import Refusal
from tollbook.core.http import PROBLEMS, Base, BodyTooLarge, IdempotentRoute, require
from tollbook.core.paging import LIMIT_DEFAULT, CursorMalformed, Limit, Page

READ = "settlement:read"
WRITE = "settlement:write"
BULK = "/v1/settlement/commands/bulk"
STREAMS = (BULK,)  # bounded here, not by core.http's frame

CURSOR_LETTERS_MAX = 256
STREAMED = (NDJSON, "application/ndjson", "application/jsonl")
REQUEST_SCHEMA = "#/components/schemas/CommandRequest"


class MediaTypeUnknown(Refusal):
    """The body is of a kind that is not read here."""

    reason = "media-type-unknown"
    status = 415


CommandPath = Annotated[str, Path(max_length=ID_LETTERS_MAX, pattern=ID, description="The command's id.")]
Named = Annotated[str | None, Query(max_length=ID_LETTERS_MAX)]
CommandCursor = Annotated[
    str | None, Query(max_length=CURSOR_LETTERS_MAX, description="next_cursor of the page before.")
]

router = APIRouter(
    prefix="/v1/settlement/commands", tags=["settlement"], route_class=IdempotentRoute, responses=PROBLEMS
)
reference = APIRouter(
    prefix="/commands", tags=["settlement (reference)"], route_class=IdempotentRoute, responses=PROBLEMS
)
# Without Idempotency-Key, which would have to know the whole body: the commands' own ids do the same.
streams = APIRouter(tags=["settlement"], responses=PROBLEMS)


@dataclass(frozen=True, slots=True)
class Accepted:
    """The command is in the books, now or before."""

    status: Literal["accepted"]
    command_id: str


@dataclass(frozen=True, slots=True)
class StatusOnly:
    """What the reference tells of a command."""

    command_id: str
    status: Status


@dataclass(frozen=True, slots=True)
class CommandHistory:
    """A command and every move it made, the first one first."""

    command: Command
    history: list[Move]


class Cancellation(BaseModel):
    """Why a command is taken back; and whether at once, though a node may yet bring it out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: str | None = Field(default=None, max_length=commands.REASON_LETTERS_MAX)
    although_it_may_come: bool = False


def _get_gate(http_request: Request, database: Base) -> Gate:
    """This app's gate, made when it is first needed."""
    state = http_request.app.state
    if not hasattr(state, "settlement_gate"):
        state.settlement_gate = Gate(database)
    return cast(Gate, state.settlement_gate)


async def receive_command(
    gate: Annotated[Gate, Depends(_get_gate)], request: CommandRequest, response: Response
) -> Accepted:
    """Receive a command to pay somebody. Sent again it is answered again, and paid once.

    With other content under the same id: 422. While another request with this id is handled: 409.
    """
    received = await gate.take(requests.read(request))
    if received.replayed:
        response.headers[idempotency.REPLAYED_HEADER] = "true"
    return Accepted("accepted", received.command_id)


router.post("", status_code=202, dependencies=[require(WRITE)])(receive_command)
reference.post("/ingest", status_code=202, dependencies=[require(WRITE)])(receive_command)


@reference.get("/{command_id}", dependencies=[require(READ)])
async def get_status(database: Base, command_id: CommandPath) -> StatusOnly:
    """How far a command has come."""
    async with database.read() as tx:
        command = await commands.get(tx, command_id)
    return StatusOnly(command.command_id, command.status)


@router.get("", dependencies=[require(READ)])
async def list_commands(
    database: Base,
    status: Status | None = None,
    workflow_id: Named = None,
    account_ref: Named = None,
    payee: Named = None,
    asset_symbol: Named = None,
    cursor: CommandCursor = None,
    limit: Limit = LIMIT_DEFAULT,
) -> Page[Command]:
    """Commands, the newest first."""
    async with database.read() as tx:
        rows = await commands.page(
            tx,
            after=_read_cursor(cursor),
            limit=limit + 1,
            status=status,
            workflow_id=workflow_id,
            account_ref=account_ref,
            payee=None if payee is None else normalize_address(payee),
            asset_symbol=asset_symbol,
        )
    items = rows[:limit]
    return Page(items=items, next_cursor=_make_cursor(items[-1]) if len(rows) > limit else None)


@router.post("/simulate", dependencies=[require(READ)])
async def simulate_commands(
    database: Base,
    wanted: Annotated[list[CommandRequest], Body(max_length=dry_run.SIMULATED_MAX)],
) -> list[Forecast]:
    """What would become of each of these commands, were they sent now. Nothing is kept, nothing is sent."""
    orders = [requests.read(one) for one in wanted]
    return await dry_run.simulate(database, SettlementSettings(), orders)


@router.get("/{command_id}", dependencies=[require(READ)])
async def get_command(database: Base, command_id: CommandPath) -> CommandHistory:
    """One command, with its history."""
    async with database.read() as tx:
        return CommandHistory(await commands.get(tx, command_id), await commands.list_moves(tx, command_id))


@router.post("/{command_id}/cancel", dependencies=[require(WRITE)])
async def cancel_command(
    database: Base, command_id: CommandPath, wanted: Cancellation | None = None
) -> Command:
    """Take a command back, as long as no transaction of it is under way; after that: 409.

    One that was refused by a node stays `executed` until that can come no more, and is not sent any more.
    """
    wanted = wanted or Cancellation()
    async with database.write() as tx:
        return await endings.cancel(
            tx,
            command_id,
            wanted.reason,
            although_it_may_come=wanted.although_it_may_come,
            now=clock.now(),
        )


@router.post("/{command_id}/retry", dependencies=[require(WRITE)])
async def retry_command(database: Base, command_id: CommandPath) -> Command:
    """Try a command that failed again, in a new round: what failed before surely paid nothing."""
    async with database.write() as tx:
        return await limits.retry(tx, command_id, now=clock.now())


@streams.post(
    BULK,
    dependencies=[require(WRITE)],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                NDJSON: {"schema": {"type": "string", "description": "A command a line."}},
                "application/json": {"schema": {"type": "array", "items": {"$ref": REQUEST_SCHEMA}}},
            },
        }
    },
)
async def receive_commands(database: Base, request: Request) -> Response:
    """Receive many commands, with a result for each: those that are wrong are told, the others are kept.

    NDJSON is a stream: a line of result for each line, told as soon as it is on disk, and a last one with the
    counts; whoever does not get that one sends the rest again. A JSON array is answered by one object.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        results, counts = await bulk.take_array(database, await _read_bounded(request))
        return JSONResponse({"results": results, **asdict(counts)})
    if kind not in STREAMED:
        raise MediaTypeUnknown(f"Send {NDJSON} (a command a line) or application/json (an array).")
    return Results(database)


async def _read_bounded(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > bulk.ARRAY_BYTES_MAX:
            raise BodyTooLarge(
                f"An array has {bulk.ARRAY_BYTES_MAX} bytes at most. Send NDJSON, which is a stream."
            )
    return bytes(body)


def _make_cursor(command: Command) -> str:
    text = f"{command.received_at.astimezone(UTC):%Y%m%dT%H%M%S.%f} {command.command_id}"
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def _read_cursor(cursor: str | None) -> tuple[datetime, str] | None:
    if cursor is None:
        return None
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode(
            "ascii"
        )
        at, _, command_id = text.partition(" ")
        return datetime.strptime(at, "%Y%m%dT%H%M%S.%f").replace(tzinfo=UTC), command_id
    except (binascii.Error, ValueError):
        raise CursorMalformed(
            "The cursor is not one of ours. Take next_cursor as it came, or start without."
        ) from None


ROUTERS = (router, reference, streams)
