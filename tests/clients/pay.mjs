// Pays for one URL with the official TypeScript client, unmodified, and prints what came back as JSON.
//
// PAY_URL      what to fetch
// PAY_KEY      the payer's private key, 0x…
// PAY_ASSET    the token it may spend, 0x…
// PAY_NETWORK  the token's network, eip155:31337 by default
// PAY_TIMES    how often to fetch, 1 by default
// PAY_TOKEN_HEADER  the response header whose value later fetches send as `Authorization: Bearer`
// PAY_METHOD, PAY_BODY  the request's, GET and nothing by default
//
// Prints {"answers": [{"status", "headers", "body", "settled"}]}; "settled" is the decoded PAYMENT-RESPONSE
// or null. A fetch that throws ends the list with {"error"}.
import { decodePaymentResponseHeader, wrapFetchWithPayment, x402Client } from "@x402/fetch";
import { ExactEvmScheme } from "@x402/evm/exact/client";
import { privateKeyToAccount } from "viem/accounts";

const { PAY_URL, PAY_KEY, PAY_ASSET, PAY_NETWORK = "eip155:31337", PAY_TIMES = "1" } = process.env;
const { PAY_METHOD: method = "GET", PAY_BODY: body, PAY_TOKEN_HEADER } = process.env;

const client = new x402Client()
  .register(PAY_NETWORK, new ExactEvmScheme(privateKeyToAccount(PAY_KEY)))
  .setSpendControls({ allowedAssets: [{ network: PAY_NETWORK, asset: PAY_ASSET }] });
const fetchWithPayment = wrapFetchWithPayment(fetch, client);

const answers = [];
const headers = {};
for (let time = 0; time < Number(PAY_TIMES); time++) {
  try {
    const answer = await fetchWithPayment(PAY_URL, { method, body, headers });
    const receipt = answer.headers.get("payment-response");
    const token = PAY_TOKEN_HEADER && answer.headers.get(PAY_TOKEN_HEADER);
    if (token) headers.authorization = `Bearer ${token}`;
    answers.push({
      status: answer.status,
      headers: Object.fromEntries(answer.headers),
      body: await answer.text(),
      settled: receipt ? decodePaymentResponseHeader(receipt) : null,
    });
  } catch (error) {
    answers.push({ error: String(error) });
    break;
  }
}
console.log(JSON.stringify({ answers }));
