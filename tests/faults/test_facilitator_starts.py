"""A seller's process that starts again: its facilitator goes on with what was sent before anybody pays."""

from eth_account.signers.local import LocalAccount
from starlette.applications import Starlette

from fixtures.lanes import find, key_of, make_call, mine
from fixtures.rpc_proxy import Proxy
from fixtures.serve import serve
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator
from tollbook.books.payments.paywall import PaidRoute, Payee, Paywall
from tollbook.core.database import Database
from tollbook.core.lanes import Lanes
from tollbook.core.local_chain import NETWORK, LocalChain

SEND = "eth_sendRawTransaction"


async def test_a_facilitator_in_the_shop_mends_from_the_shops_start_on(
    database: Database, own_chain: LocalChain, proxy: Proxy, operator: LocalAccount, seller: LocalAccount
) -> None:
    call = make_call()
    proxy.refusals = {SEND: ["the node is confused"]}
    async with Lanes(database, {NETWORK: proxy.url}, [key_of(operator)], lost_seconds=0) as lanes:
        await lanes.submit(call)
        facilitator = InProcessFacilitator({NETWORK: proxy.url}, key_of(operator), database)
        shop = Paywall(
            Starlette(),
            routes={"GET /weather": PaidRoute("$0.01")},
            payees=[Payee(NETWORK, seller.address)],
            facilitator=facilitator,
            database_url=database.url,
        )
        async with serve(shop):
            await mine(lanes, await find(lanes, call.purpose))
        await facilitator.aclose()
