"""Commands as they come in: read strictly, one way whichever door they came through.

What is let in has neither tabs, newlines, quotes nor backslashes in its texts: bulk.py relies on it.
"""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tollbook.books.settlement.errors import CommandMalformed
from tollbook.core.chains import find_network, normalize_address
from tollbook.core.errors import Refusal

ID_LETTERS_MAX = 128
SYMBOL_LETTERS_MAX = 64
NETWORK_LETTERS_MAX = 64
CHAIN_ID_MAX = (1 << 63) - 1
ADDRESSES_KEPT = 1 << 16  # a checksum costs 20 µs to verify, and the same parties come again and again
ERRORS_MAX = 5
FAULTS_LETTERS_MAX = 500
EVM_FAMILY = "eip155:"
NOBODY = "0x" + "0" * 40
SEPARATOR = "\n"  # in no text that is let in

# A path in which an id stands must name it and nothing else: no slash, and no dot in front.
ID = r"^[A-Za-z0-9_][A-Za-z0-9._:@+=~-]*$"
REFERENCE = r"^[A-Za-z0-9._:@+=~/#-]*$"
SYMBOL = r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$"
# NUMERIC(38,18), written plainly: no sign, no exponent, no underscore, no superfluous zero in front.
AMOUNT = r"^(0|[1-9][0-9]{0,19})(\.[0-9]{1,18})?$"

CommandId = Annotated[str, Field(min_length=1, max_length=ID_LETTERS_MAX, pattern=ID)]
Reference = Annotated[str, Field(max_length=ID_LETTERS_MAX, pattern=REFERENCE)]


class CommandRequest(BaseModel):
    """A command to pay somebody, as the reference has it; the last three fields are ours.

    `amount` is in whole coins, a text. `chain_id` 0 is the operator's default network.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "command_id": "cmd-1",
                    "workflow_id": "wf-1",
                    "account_ref": "acct-1",
                    "asset_symbol": "USDC",
                    "amount": "100.5",
                    "payee": "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
                    "chain_id": 8453,
                }
            ]
        },
    )

    command_id: CommandId
    workflow_id: Reference = ""
    account_ref: Reference = ""
    asset_symbol: Annotated[str, Field(max_length=SYMBOL_LETTERS_MAX, pattern=SYMBOL)] = ""
    amount: Annotated[str, Field(pattern=AMOUNT, examples=["100.5"])]
    payer: Annotated[str, Field(max_length=42)] = ""
    payee: Annotated[str, Field(max_length=42)] = ""
    chain_id: Annotated[int, Field(ge=0, le=CHAIN_ID_MAX)] = 0
    network: Annotated[str | None, Field(max_length=NETWORK_LETTERS_MAX, examples=["base"])] = None
    asset: Annotated[str | None, Field(max_length=42, description="The token's address.")] = None
    expires_at: AwareDatetime | None = None


class Order(NamedTuple):
    """A command that may be received: its texts in their one spelling, and the SHA-256 of all of it."""

    command_id: str
    workflow_id: str
    account_ref: str
    payer: str | None
    payee: str | None
    asset_symbol: str
    amount: str
    chain_id: int
    asset: str | None
    expires_at: datetime | None
    fingerprint: bytes


_ONE = TypeAdapter(CommandRequest)
_MANY = TypeAdapter(list[tuple[CommandRequest]])


def read(request: CommandRequest) -> Order:
    """A request as the order it is. Raises CommandMalformed."""
    try:
        payer = _spell(request.payer) if request.payer else None
        payee = _spell(request.payee) if request.payee else None
        asset = _spell(request.asset) if request.asset is not None else None
        chain_id = _read_chain(request.network, request.chain_id) if request.network else request.chain_id
        until = request.expires_at.astimezone(UTC) if request.expires_at is not None else None
    except Refusal as refusal:
        raise CommandMalformed(refusal.sentence) from None
    except OverflowError:
        raise CommandMalformed("expires_at is beyond the years that there are, 1 to 9999 in UTC.") from None
    amount = request.amount
    if "." in amount:
        amount = amount.rstrip("0").rstrip(".")
    if amount == "0":
        raise CommandMalformed("The amount is zero. A command pays something.")
    if payee == NOBODY:
        raise CommandMalformed("The payee is the zero address: what goes there is lost.")
    texts = (
        request.command_id, request.workflow_id, request.account_ref, payer or "", payee or "",
        request.asset_symbol, amount, str(chain_id), asset or "", until.isoformat() if until else "",
    )  # fmt: skip
    fingerprint = hashlib.sha256(SEPARATOR.join(texts).encode()).digest()
    return Order(
        request.command_id, request.workflow_id, request.account_ref, payer, payee, request.asset_symbol,
        amount, chain_id, asset, until, fingerprint,
    )  # fmt: skip


def read_lines(lines: Sequence[bytes]) -> list[Order | CommandMalformed]:
    """Each line's order, or why it is none. A line is one JSON object and nothing more."""
    try:
        # A list in a list: a line that is no object, or two, breaks a bracket. And no text of JSON can have
        # a raw newline in it, so none can swallow one.
        parsed = _MANY.validate_json(b"[[" + b"\n],[".join(lines) + b"\n]]")
    except ValidationError:
        return [_read_line(line) for line in lines]
    if len(parsed) != len(lines):
        return [_read_line(line) for line in lines]
    return [_try_read(one) for (one,) in parsed]


def _read_line(line: bytes) -> Order | CommandMalformed:
    try:
        return _try_read(_ONE.validate_json(line))
    except ValidationError as invalid:
        return _describe(invalid)


def _try_read(request: CommandRequest) -> Order | CommandMalformed:
    try:
        return read(request)
    except CommandMalformed as malformed:
        return malformed


def _describe(invalid: ValidationError) -> CommandMalformed:
    """In words, and without what was sent."""
    errors = invalid.errors(include_input=False, include_url=False)[:ERRORS_MAX]
    faults = [f"{'.'.join(map(str, error['loc'])) or 'the line'}: {error['msg']}" for error in errors]
    return CommandMalformed("; ".join(faults)[:FAULTS_LETTERS_MAX])


@lru_cache(ADDRESSES_KEPT)
def _spell(address: str) -> str:
    return normalize_address(address)


def _read_chain(name: str, chain_id: int) -> int:
    network = find_network(name).id
    number = int(network.removeprefix(EVM_FAMILY)) if network.startswith(EVM_FAMILY) else None
    if number is None:
        raise CommandMalformed(f"Commands are carried out on EVM networks; {name} is none.")
    if chain_id not in (0, number):
        raise CommandMalformed(f"network {name} is chain {number}, and chain_id says {chain_id}.")
    return number
