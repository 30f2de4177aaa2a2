"""`tollbook facilitator`: the self-hosted facilitator alone, for x402 servers in any language."""

import asyncio
import os
from pathlib import Path

from tollbook.books.payments.facilitator import InProcessFacilitator
from tollbook.books.payments.facilitator_server import facilitator_app
from tollbook.books.payments.facilitator_signer import read_operator_key
from tollbook.entrypoints import serving
from tollbook.entrypoints.serving import Site, Teller, listening, terminable


def run_facilitator(
    rpc_urls: dict[str, str], key_file: Path | None, host: str, port: int, *, as_json: bool
) -> None:
    """Serve a facilitator until asked to stop. Raises OperatorKeyUnusable, PortTaken."""

    serving.log_warnings()
    teller = Teller(as_json)
    key = read_operator_key(key_file, os.environ)
    with terminable(), listening(host, port) as listener:

        async def run() -> None:
            facilitator = InProcessFacilitator(rpc_urls, key)
            try:
                await serving.run([Site(facilitator_app(facilitator), listener)], {})
            finally:
                await facilitator.aclose()

        networks = ", ".join(rpc_urls)
        teller.say("serving", f"Facilitator of {networks} on http://{host}:{port}; Ctrl-C stops.")
        asyncio.run(run())
    teller.say("stopped", "Stopped.")
