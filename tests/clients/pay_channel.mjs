// Pays for one URL by a payment channel with the official TypeScript client, unmodified: once to open the
// channel, then PAY_TIMES times at once. Prints the statuses as JSON.
//
// PAY_URL, PAY_KEY, PAY_ASSET, PAY_TIMES  as for pay.mjs;  PAY_RPC  the chain's node
import { wrapFetchWithPayment, x402Client } from "@x402/fetch";
import { BatchSettlementEvmScheme } from "@x402/evm/batch-settlement/client";
import { createPublicClient, http } from "viem";
import { privateKeyToAccount } from "viem/accounts";

const { PAY_URL, PAY_KEY, PAY_ASSET, PAY_RPC, PAY_TIMES } = process.env;
const NETWORK = "eip155:31337";

const account = privateKeyToAccount(PAY_KEY);
const chain = createPublicClient({ transport: http(PAY_RPC) });
const signer = {
  address: account.address,
  signTypedData: (data) => account.signTypedData(data),
  readContract: (call) => chain.readContract(call),
};
const client = new x402Client()
  .register(NETWORK, new BatchSettlementEvmScheme(signer))
  .setSpendControls({ allowedAssets: [{ network: NETWORK, asset: PAY_ASSET }] });
const fetchWithPayment = wrapFetchWithPayment(fetch, client);

const buy = async () => (await fetchWithPayment(PAY_URL)).status;
const first = await buy();
const rest = await Promise.all(Array.from({ length: Number(PAY_TIMES) }, buy));
console.log(JSON.stringify({ answers: [first, ...rest] }));
