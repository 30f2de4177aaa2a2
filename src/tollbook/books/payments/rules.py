"""What a price is, what a route asks for, and which payments fit it: pure rules, no clock, no database."""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, cast

from eth_utils.address import to_checksum_address
from pydantic import ValidationError
from x402.mechanisms.evm.batch_settlement.constants import (
    ERC3009_DEPOSIT_COLLECTOR_ADDRESS,
    SCHEME_BATCH_SETTLEMENT,
)
from x402.mechanisms.evm.batch_settlement.encoding import build_erc3009_deposit_nonce
from x402.mechanisms.evm.batch_settlement.types import is_deposit_payload
from x402.mechanisms.evm.constants import SCHEME_EXACT, SCHEME_UPTO
from x402.schemas import PaymentPayload, PaymentRequirements

from tollbook.books.payments.solana.payment import read_payment as read_solana_payment
from tollbook.core.chains import Network, Token, find_network, is_solana, normalize_address_on

SIGNATURE_HEADER_BYTES_MAX = (
    16 * 1024
)  # an EIP-3009 payment is under 1 KiB; smart-wallet signatures are longer
REQUESTS_MAX = 1_000_000_000
LIFETIME_MAX = timedelta(days=3660)
TEXT_CHARS_MAX = 80  # of a client's text, in our own sentences
SOLANA_LIFETIME = timedelta(minutes=3)  # of a message: 150 blocks, and as many that nodes may be apart
UNIX_SECONDS_MAX = 253_370_764_799  # the end of 9998: datetime ends a year later, in every time zone
ANY_METHOD = "*"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

_PRICE = re.compile(r"\$?([0-9]{1,20}(?:\.[0-9]{1,18})?)")
_PARAMETER = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*(?:(:path)|:str|:int|:float|:uuid)?\}|\*")


class WrongPaywall(ValueError):
    """The paywall is configured in a way that cannot work; said when the app starts, never to a client."""


class MalformedPayment(ValueError):
    """A PAYMENT-SIGNATURE header that is no x402 version 2 payment; its text says in which way."""


@dataclass(frozen=True, slots=True)
class Payee:
    """Who is paid, where, in which token.

    `network` is a CAIP-2 id or a known name ("base", "eip155:8453"); `token` is its USDC unless given.
    `transfer` is "permit2" for tokens that know no EIP-3009: payers then approve Permit2 once.
    """

    network: str
    address: str
    token: Token | None = None
    transfer: Literal["eip3009", "permit2"] = "eip3009"


@dataclass(frozen=True, slots=True)
class PaidRoute:
    """What a route costs and what the price buys.

    `price` in dollars ("$0.01") of a dollar token. It buys `requests` requests within `lifetime`, the one
    that carries the payment included. `settle` says when the money moves: "after" the handler has begun a
    good answer and before its first byte leaves (a refusal, redirect or failure costs nothing), or "before"
    the handler runs: for handlers that are dear to run, or that hand the goods over by a redirect.

    With the `scheme` "exact" the price is charged. With "upto" (Permit2) and "batch-settlement" (channels:
    one deposit, many small charges) it is the most that is charged: the handler says what was used with the
    SDK's `set_settlement_overrides(response, {"amount": "2500" | "50%" | "$0.002"})`.
    """

    price: str
    scheme: Literal["exact", "upto", "batch-settlement"] = "exact"
    requests: int = 1
    lifetime: timedelta = timedelta(hours=24)
    settle: Literal["before", "after"] = "after"
    description: str | None = None
    mime_type: str | None = None
    timeout_seconds_max: int = 60


@dataclass(frozen=True, slots=True)
class Option:
    """One way to pay for a route: the network, the token and the terms as x402 states them."""

    network: Network
    token: Token
    requirements: PaymentRequirements


@dataclass(frozen=True, slots=True)
class Toll:
    """A paid route made ready: its key ("GET /weather/{city}"), its terms and the ways to pay."""

    key: str
    terms: PaidRoute
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True)
class Proof:
    """What a signed payment is, whoever presents it: its terms, and the nonce that makes it one.

    `nonce` is EIP-3009's bytes32, "permit2:" and Permit2's number, or the hash of Solana's message; texts of
    EVM are in lower case. A message of Solana has no time: it is over with a block, within SOLANA_LIFETIME.
    """

    network: str
    scheme: str
    asset: str
    payer: str
    pay_to: str
    nonce: str
    amount: int
    valid_before: datetime | None


@dataclass(frozen=True, slots=True)
class Tolls:
    """The paid routes, compiled: one look-up for an exact path, one regular expression for the rest."""

    all: tuple[Toll, ...]
    exact: Mapping[tuple[str, str], Toll]
    patterns: Mapping[str, tuple[re.Pattern[str], Sequence[Toll]]]

    def find(self, method: str, path: str) -> Toll | None:
        """The toll of a request, or None where it is free. HEAD costs what GET costs.

        A newline at the end is overlooked, because routers' `$` overlooks it.
        """
        method, path = method.upper(), path.removesuffix("\n")
        method = "GET" if method == "HEAD" else method
        return self._find(method, path) or self._find(ANY_METHOD, path)

    def _find(self, method: str, path: str) -> Toll | None:
        found = self.exact.get((method, path))
        if found is not None or method not in self.patterns:
            return found
        pattern, tolls = self.patterns[method]
        match = pattern.fullmatch(path)
        return None if match is None or match.lastgroup is None else tolls[int(match.lastgroup[1:])]


def read_price(price: str, decimals: int) -> int:
    """Minor units of a dollar price: `read_price("$0.01", 6)` is 10000.

    Raises WrongPaywall where the price is not positive or has no exact minor units.
    """
    match = _PRICE.fullmatch(price.strip())
    try:
        minor = Decimal(match.group(1)).scaleb(decimals) if match else Decimal(0)
    except InvalidOperation:
        minor = Decimal(0)
    if minor <= 0 or minor != minor.to_integral_value():
        raise WrongPaywall(
            f"The price {price!r} is not a positive amount with at most {decimals} decimals. "
            'Write it like "$0.01".'
        )
    return int(minor)


def compile_tolls(routes: Mapping[str, PaidRoute], payees: Sequence[Payee]) -> Tolls:
    """Make the paid routes ready: "GET /path", "GET /items/{id}", "GET /files/*"; without a method, all.

    Raises WrongPaywall with what to change where a route, price or payee cannot work.
    """
    if not routes or not payees:
        raise WrongPaywall("A paywall needs at least one route and one payee.")
    tolls: list[Toll] = []
    exact: dict[tuple[str, str], Toll] = {}
    patterned: dict[str, list[tuple[str, Toll]]] = {}
    for key, terms in routes.items():
        method, path = _read_route(key)
        toll = Toll(key, terms, _make_options(terms, payees))
        _check_terms(key, toll)
        tolls.append(toll)
        if _PARAMETER.search(path):
            patterned.setdefault(method, []).append((_compile_path(path), toll))
        else:
            # Both spellings: a router that forgives a trailing slash must not forgive the price.
            exact[method, path] = exact[method, path.rstrip("/") or "/"] = toll
            exact[method, path.rstrip("/") + "/"] = toll
    patterns = {
        method: (
            re.compile(
                "|".join(f"(?P<t{number}>{path})" for number, (path, _) in enumerate(paths)), re.DOTALL
            ),
            [toll for _, toll in paths],
        )
        for method, paths in patterned.items()
    }
    return Tolls(tuple(tolls), exact, patterns)


def decode_payment(header: bytes) -> PaymentPayload:
    """The payment of a PAYMENT-SIGNATURE header (x402 v2, HTTP transport: base64 of JSON).

    Raises MalformedPayment where there is none in it.
    """
    if len(header) > SIGNATURE_HEADER_BYTES_MAX:
        raise MalformedPayment(f"it is {len(header)} bytes long, more than {SIGNATURE_HEADER_BYTES_MAX}")
    try:
        text = base64.b64decode(header, validate=True)
        return PaymentPayload.model_validate_json(text, strict=False)
    except binascii.Error:
        raise MalformedPayment("it is not base64") from None
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        if problem["type"] == "json_invalid":
            raise MalformedPayment("it is not JSON") from None
        where = ".".join(str(part) for part in problem["loc"])
        raise MalformedPayment(f"{where or 'the JSON'}: {problem['msg']}") from None


def match_option(toll: Toll, payment: PaymentPayload) -> Option | str:
    """The option that a payment says it fulfils, or the sentence that says what differs."""
    offered = _read_terms(payment.accepted)
    options = [(option, _read_terms(option.requirements)) for option in toll.options]
    for name, value in offered.items():
        asked = dict.fromkeys(terms[name] for _, terms in options)
        options = [(option, terms) for option, terms in options if terms[name] == value]
        if not options:
            return (
                f"The payment's {name} is {value[:TEXT_CHARS_MAX]}; this route asks for {' or '.join(asked)}."
            )
    return _with_fee_payer(options[0][0], payment)


def _with_fee_payer(option: Option, payment: PaymentPayload) -> Option:
    """On Solana a payer has signed for the account that was named to him, of the several that take turns."""
    fee_payer = payment.accepted.extra.get("feePayer")
    if not option.network.is_solana or fee_payer is None:
        return option
    extra = {**option.requirements.extra, "feePayer": fee_payer}
    return replace(option, requirements=option.requirements.model_copy(update={"extra": extra}))


def _read_terms(requirements: PaymentRequirements) -> dict[str, str]:
    return {
        "scheme": requirements.scheme,
        "network": requirements.network,
        "asset": _fold(requirements.network, requirements.asset),
        "amount": requirements.amount,
        "recipient": _fold(requirements.network, requirements.pay_to),
    }


def _fold(network_id: str, address: str) -> str:
    """EVM's addresses come in several spellings; Solana's know upper and lower case."""
    return address if is_solana(network_id) else address.lower()


def read_proof(payment: PaymentPayload, requirements: PaymentRequirements) -> Proof:
    """What a payment proves. Call after `facilitator.find_fault` found none."""
    if is_solana(requirements.network):
        return _read_solana_proof(payment, requirements)
    if requirements.scheme == SCHEME_BATCH_SETTLEMENT:
        return _read_channel_proof(payment, requirements)
    permit = cast("dict[str, Any] | None", payment.payload.get("permit2Authorization"))
    if permit is not None:
        payer, nonce, until = permit["from"], f"permit2:{int(permit['nonce'])}", permit["deadline"]
    else:
        authorization = cast(dict[str, str], payment.payload["authorization"])
        payer, nonce, until = authorization["from"], authorization["nonce"], authorization["validBefore"]
    return Proof(
        network=requirements.network,
        scheme=requirements.scheme,
        asset=requirements.asset.lower(),
        payer=payer.lower(),
        pay_to=requirements.pay_to.lower(),
        nonce=nonce.lower(),
        amount=int(requirements.amount),
        valid_before=datetime.fromtimestamp(min(int(until), UNIX_SECONDS_MAX), UTC),
    )


def _read_solana_proof(payment: PaymentPayload, requirements: PaymentRequirements) -> Proof:
    signed = read_solana_payment(payment)
    return Proof(
        network=requirements.network,
        scheme=requirements.scheme,
        asset=signed.asset,
        payer=signed.payer,
        pay_to=requirements.pay_to,
        nonce=signed.message_hash,
        amount=signed.amount,
        valid_before=None,
    )


def _read_channel_proof(payment: PaymentPayload, requirements: PaymentRequirements) -> Proof:
    """What a channel's deposit or refund proves; vouchers move nothing and are never settled one by one."""
    payload = payment.payload
    channel_id, payer = payload["voucher"]["channelId"], payload["channelConfig"]["payer"]
    if is_deposit_payload(payload):
        amount, signed = payload["deposit"]["amount"], payload["deposit"]["authorization"]
        permit, authorization = signed.get("permit2Authorization"), signed.get("erc3009Authorization")
        if permit is not None:
            pay_to, nonce, until = permit["spender"], f"permit2:{int(permit['nonce'])}", permit["deadline"]
        else:
            pay_to, until = ERC3009_DEPOSIT_COLLECTOR_ADDRESS, authorization["validBefore"]
            nonce = build_erc3009_deposit_nonce(channel_id, authorization["salt"])
    else:
        pay_to, amount, until = payer, payload["amount"], UNIX_SECONDS_MAX
        nonce = f"refund:{channel_id}:{payload['refundNonce']}"
    return Proof(
        network=requirements.network,
        scheme=requirements.scheme,
        asset=requirements.asset.lower(),
        payer=payer.lower(),
        pay_to=pay_to.lower(),
        nonce=nonce.lower(),
        amount=int(amount),
        valid_before=datetime.fromtimestamp(min(int(until), UNIX_SECONDS_MAX), UTC),
    )


def _read_route(key: str) -> tuple[str, str]:
    method, _, path = key.rpartition(" ")
    method = method.strip().upper()
    unread = set("{}") & set(_PARAMETER.sub("", path))
    if not path.startswith("/") or unread or (method and method not in METHODS):
        raise WrongPaywall(f'The route {key!r} is not like "GET /weather/{{city}}" or "/weather".')
    return ("GET" if method == "HEAD" else method or ANY_METHOD), path


def _compile_path(path: str) -> str:
    regex, end = "", 0
    for parameter in _PARAMETER.finditer(path):
        regex += re.escape(path[end : parameter.start()])
        regex += ".*" if parameter.group() == "*" or parameter.group(1) else "[^/]+"
        end = parameter.end()
    return regex + re.escape(path[end:]) + "/?"


def _make_options(terms: PaidRoute, payees: Sequence[Payee]) -> tuple[Option, ...]:
    """One for each payee whose network knows the scheme: Solana knows the exact one alone."""
    networks = [find_network(payee.network) for payee in payees]
    return tuple(
        _make_option(terms, payee, network)
        for payee, network in zip(payees, networks, strict=True)
        if terms.scheme == SCHEME_EXACT or not network.is_solana
    )


def _make_option(terms: PaidRoute, payee: Payee, network: Network) -> Option:
    token = payee.token or network.usdc
    if token is None:
        raise WrongPaywall(f"No token is known on {network.name}: give the payee a token.")
    extra = {} if network.is_solana else {"name": token.name, "version": token.version}
    if terms.settle == "before":
        extra["paymentFlow"] = "upfront"
    if not network.is_solana and (payee.transfer == "permit2" or terms.scheme == SCHEME_UPTO):
        extra["assetTransferMethod"] = "permit2"
    requirements = PaymentRequirements(
        scheme=terms.scheme,
        network=network.id,
        asset=_spell(network, token.address),
        amount=str(read_price(terms.price, token.decimals)),
        pay_to=_spell(network, payee.address),
        max_timeout_seconds=terms.timeout_seconds_max,
        extra=extra,
    )
    return Option(network, token, requirements)


def _spell(network: Network, address: str) -> str:
    """On the wire EVM addresses wear their checksum (EIP-55), which some facilitators insist on."""
    address = normalize_address_on(network.id, address)
    return address if network.is_solana else to_checksum_address(address)


def _check_terms(key: str, toll: Toll) -> None:
    terms = toll.terms
    if not toll.options:
        raise WrongPaywall(f"{key}: Solana knows the scheme exact alone. Add a payee on another network.")
    if terms.settle == "before" and terms.scheme != SCHEME_EXACT:
        raise WrongPaywall(
            f"{key}: by the scheme {terms.scheme} one pays after the handler, by what was used."
        )
    if terms.requests != 1 and terms.scheme != SCHEME_EXACT:
        raise WrongPaywall(
            f"{key}: by the scheme {terms.scheme} each request is charged by itself: leave `requests` at 1."
        )
    if not 1 <= terms.requests <= REQUESTS_MAX:
        raise WrongPaywall(f"{key}: a payment buys 1 to {REQUESTS_MAX} requests, not {terms.requests}.")
    if not timedelta(0) < terms.lifetime <= LIFETIME_MAX:
        raise WrongPaywall(f"{key}: what a payment buys lives from one moment to {LIFETIME_MAX.days} days.")
