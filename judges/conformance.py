"""The judge x402-conformance: its checks of /supported, of a 402, and its safety checks, on money that moves.

The safety checks (F1-F14, S5) were written for doubles and invented payments. Here each invented payment
becomes an EIP-3009 authorization of a payer with test dollars, the facilitator is our server over HTTP, the
chain that the judge advances and fails is anvil, and the resource server that it feeds with broken answers
is a paywalled app.
"""

import json
import time
from pathlib import Path
from typing import Any

import httpx
from eth_abi.abi import encode
from eth_account.signers.local import LocalAccount
from eth_utils.abi import function_signature_to_4byte_selector
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from x402.http.utils import safe_base64_decode, safe_base64_encode
from x402conf import harness
from x402conf.mock import Chain, vectors

import broken
import payments
import stage
from findings import FAIL, PASS, Finding, run_selftest
from stage import Stage
from tollbook.core.chains import TRANSFER_TOPIC
from tollbook.core.local_chain import NETWORK

JUDGE = "x402-conformance"
ANSWER_SECONDS_MAX = 60.0
REPEATS_MAX = 5
WAIT_SECONDS_MAX = 5.0
BUSY = (409, 503)
OK = 200
GAS_WEI = 10**18
TIP_WEI = 10**11  # above what a facilitator bids
OTHER_CHAIN_ID = 84532


def judge(scene: Stage, room: Path) -> list[Finding]:
    """Return what the judge in `room` finds."""
    facilitator = RealFacilitator(scene)
    with broken.play_line(scene.facilitator_url, stage.SETTLE_SECONDS_MAX + 2) as line:
        shop = stage.make_shop(scene.database_url, line.url, NETWORK, scene.seller.address)
        with stage.serve(shop) as shop_url:
            checks = harness.run_live(scene.facilitator_url)["checks"]
            checks += harness.run_resource(shop_url + stage.PATH)["checks"]
            checks += harness.check_safety(
                facilitator, vectors(), lambda _: ShopGuard(facilitator, line, shop_url + stage.PATH)
            )
            bound = _check_binding(scene, shop_url)
    selftest = run_selftest(JUDGE, [room / "bin" / "x402conf", "offline"])
    return [selftest, *(_read(check) for check in checks), facilitator.count_transfers(), bound]


def _check_binding(scene: Stage, shop_url: str) -> Finding:
    """Return whether a payment buys its own request, and again, and no other: F4 and F10 at the seller."""
    payer, terms, url = scene.make_payer(), payments.make_terms(scene), shop_url + stage.PATH
    challenge = _read_challenge(url)
    signed = payments.sign(payer, terms)
    nonce = signed["payload"]["authorization"]["nonce"]
    anew = payments.sign(
        payer, terms, nonce=nonce, valid_before=int(time.time()) + payments.VALID_SECONDS // 2
    )
    asked = [(url, signed), (shop_url + stage.OTHER_PATH, signed), (url, anew), (url, signed)]
    answers = [_present(where, _make_headers(payment, challenge)) for where, payment in asked]
    first, *others, again = ((answer.status_code, answer.text) for answer in answers)
    good = first[0] == OK and again == first and all(status != OK for status, _ in others)
    detail = json.dumps([first, *others, again])
    return Finding(JUDGE, "bound-to-its-request", PASS if good else FAIL, detail)


def _present(url: str, headers: dict[str, str]) -> httpx.Response:
    return httpx.get(url, headers=headers, timeout=ANSWER_SECONDS_MAX)


def _read_challenge(url: str) -> dict[str, Any]:
    """Return what a 402 says beside the terms, which clients send back with their payment."""
    header = _present(url, {}).headers["PAYMENT-REQUIRED"]
    required = json.loads(safe_base64_decode(header))
    return {name: required[name] for name in ("resource", "extensions") if name in required}


def _make_headers(payload: dict[str, Any], challenge: dict[str, Any]) -> dict[str, str]:
    return {"PAYMENT-SIGNATURE": safe_base64_encode(json.dumps(payload | challenge))}


def _read(check: dict[str, Any]) -> Finding:
    number, _, name = check["check"].partition(" ")
    return Finding(JUDGE, number, PASS if check["pass"] else FAIL, f"{name}: {json.dumps(check['detail'])}")


class Mint:
    """Makes the judge's invented payments real. Equal ones become equal payloads, byte for byte.

    The memo becomes the nonce (and names the payer), the transaction the time of expiry, the mint the token
    whose domain is signed, the network its chain id. What the payer says to have accepted is the offer.
    """

    def __init__(self, scene: Stage) -> None:
        self._scene = scene
        self._offer: dict[str, Any] = vectors()("req")
        self._terms = payments.make_terms(scene)
        self._until = int(time.time()) + payments.VALID_SECONDS
        self._transactions: list[str] = []
        self.payers: dict[str, LocalAccount] = {}  # by memo

    def make_terms(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the judge's requirements as real ones; what it names beside the offer stays as it is."""
        known = {name: self._terms[name] for name in self._terms if asked.get(name) == self._offer.get(name)}
        changed = {name: value for name, value in asked.items() if value != self._offer.get(name)}
        if "asset" in changed:
            changed["asset"] = _invent_address(changed["asset"])
        return self._terms | known | changed

    def make_payload(self, invented: Any, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the payment payload."""
        if not isinstance(invented, dict) or not invented.get("tx"):
            return {"x402Version": 2, "accepted": self._terms, "payload": invented}
        changes: dict[str, Any] = {
            "value": invented["amount"],
            "nonce": "0x" + keccak(text=invented["memo"]).hex(),
            "valid_before": self._until + self._number(invented["tx"]),
        }
        if invented["mint"] != self._offer["asset"]:
            changes["asset"] = _invent_address(invented["mint"])
        if invented["net"] != self._offer["network"]:
            changes["chain_id"] = OTHER_CHAIN_ID
        payload = payments.sign(self.find_payer(invented), self._terms, **changes)
        return payload | ({"resource": {"url": asked["resource"]}} if "resource" in asked else {})

    def find_payer(self, invented: dict[str, Any]) -> LocalAccount:
        """Return who pays, made at the first time."""
        memo = invented["memo"]
        if memo not in self.payers:
            self.payers[memo] = self._scene.make_payer()
        return self.payers[memo]

    def _number(self, transaction: str) -> int:
        if transaction not in self._transactions:
            self._transactions.append(transaction)
        return self._transactions.index(transaction)


def _invent_address(text: str) -> str:
    """Return the address of nothing."""
    return to_checksum_address(keccak(text=text)[-20:])


class RealChain(Chain):
    """The judge's simulated ledger, played by anvil: pending is a chain that does not mine."""

    def __init__(self, scene: Stage, mint: Mint) -> None:
        super().__init__()
        self._chain = scene.chain
        self._mint = mint
        self._payers: dict[str, LocalAccount] = {}  # by the judge's name of the transaction

    def prepare(self, invented: Any) -> None:
        """Mine, or do not, as the judge wants it for this payment."""
        if isinstance(invented, dict) and invented.get("tx"):
            if invented["memo"] not in self._mint.payers:
                self._chain.call("evm_setAutomine", True)  # noqa: FBT003 - JSON-RPC has no names
            self._payers[invented["tx"]] = self._mint.find_payer(invented)
            self._chain.call("evm_setAutomine", self.status(invented) != Chain.PENDING)

    def set(self, tx: str, status: str) -> None:
        """Let the transaction be mined, or fail as it is mined because its payer's money is gone."""
        super().set(tx, status)
        if status == Chain.FAILED:
            self._drain(self._payers[tx].address)
        self._chain.call("evm_mine")
        self._chain.call("evm_setAutomine", True)  # noqa: FBT003 - JSON-RPC has no names

    def _drain(self, payer: str) -> None:
        balance = self._chain.read_balance(payer)
        data = function_signature_to_4byte_selector("transfer(address,uint256)")
        data += encode(["address", "uint256"], [_invent_address("elsewhere"), balance])
        self._chain.set_gas_money(payer, GAS_WEI)
        self._chain.call("anvil_impersonateAccount", payer)
        fees = {"maxFeePerGas": hex(TIP_WEI * 2), "maxPriorityFeePerGas": hex(TIP_WEI), "gas": hex(200_000)}
        token = self._chain.ensure_token()
        call = {"from": payer, "to": token, "data": "0x" + data.hex()}
        self._chain.call("eth_sendTransaction", call | fees)


class RealFacilitator:
    """Our facilitator's server as the judge's object. Transactions go by the judge's names for them."""

    def __init__(self, scene: Stage) -> None:
        self._scene = scene
        self.mint = Mint(scene)
        self.chain = RealChain(scene, self.mint)
        self._client = httpx.Client(base_url=scene.facilitator_url, timeout=ANSWER_SECONDS_MAX)
        self._hashes: dict[str, str] = {}

    def verify(self, payload: Any, requirements: dict[str, Any]) -> Any:
        """POST /verify."""
        return self._ask("/verify", payload, requirements)

    def settle(self, payload: Any, requirements: dict[str, Any]) -> Any:
        """POST /settle."""
        self.chain.prepare(payload)
        answer = self._ask("/settle", payload, requirements)
        if isinstance(payload, dict) and answer.get("transaction"):
            name = payload.get("tx") or ""
            if self._hashes.setdefault(name, answer["transaction"]) == answer["transaction"]:
                answer["transaction"] = name
        return answer

    def supported(self) -> Any:
        """GET /supported."""
        return self._client.get("/supported").json()

    def count_transfers(self) -> Finding:
        """Return whether each payer's money moved at most once, as the chain's logs say."""
        seller = "0x" + self._scene.seller.address[2:].lower().rjust(64, "0")
        found = {"fromBlock": "0x0", "address": self._scene.token, "topics": [TRANSFER_TOPIC, None, seller]}
        senders = [log["topics"][1][-40:] for log in self._scene.chain.call("eth_getLogs", found)]
        times = {memo: senders.count(payer.address[2:].lower()) for memo, payer in self.mint.payers.items()}
        good = all(count <= 1 for count in times.values()) and times["m-1"] == 1
        return Finding(JUDGE, "transfers-on-chain", PASS if good else FAIL, json.dumps(times))

    def _ask(self, path: str, payload: Any, requirements: dict[str, Any]) -> Any:
        body = {
            "x402Version": 2,
            "paymentPayload": self.mint.make_payload(payload, requirements),
            "paymentRequirements": self.mint.make_terms(requirements),
        }
        answer = self._client.post(path, json=body)
        try:
            return answer.json()
        except ValueError:
            return {"status": answer.status_code, "text": answer.text}  # which no check takes for an answer


class ShopGuard(harness.ResourceServerGuard):
    """The paywalled app as the judge's resource server: credited is what its handler delivered anew."""

    def __init__(self, facilitator: RealFacilitator, line: broken.Line, url: str) -> None:
        super().__init__(facilitator)
        self._facilitator = facilitator
        self._line = line
        self._url = url
        self._challenge = _read_challenge(url)
        self._deliveries: set[int] = set()

    def settle_and_credit(self, payload: Any, req: dict[str, Any], simulate: str | None = None) -> bool:
        """Present the payment to the shop, with this fault on the line to its facilitator.

        Without a fault the client does what the shop tells it: it comes back after Retry-After.
        """
        self._facilitator.chain.prepare(payload)
        headers = _make_headers(self._facilitator.mint.make_payload(payload, req), self._challenge)
        self._line.fault = simulate
        answer = _present(self._url, headers)
        self._line.fault = None
        for _ in range(0 if simulate else REPEATS_MAX):
            if answer.status_code not in BUSY or "Retry-After" not in answer.headers:
                break
            time.sleep(min(float(answer.headers["Retry-After"]), WAIT_SECONDS_MAX))
            answer = _present(self._url, headers)
        if answer.status_code != OK:
            return False
        delivery = answer.json()["delivery"]
        fresh = delivery not in self._deliveries
        self._deliveries.add(delivery)
        return fresh
