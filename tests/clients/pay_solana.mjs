// Pays for one URL on Solana with the official TypeScript client, unmodified, and prints the answer as JSON.
//
// PAY_URL      what to fetch
// PAY_KEY      the payer's key, base 58 of its 64 bytes
// PAY_NETWORK  the token's network, solana:…
// PAY_ASSET    the mint it may spend
// PAY_RPC_URL  the node
//
// Prints {"status", "headers", "body", "settled"}; "settled" is the decoded PAYMENT-RESPONSE or null.
import { decodePaymentResponseHeader, wrapFetchWithPayment, x402Client } from "@x402/fetch";
import { ExactSvmScheme } from "@x402/svm/exact/client";
import { createKeyPairSignerFromBytes, getBase58Encoder } from "@solana/kit";

const { PAY_URL, PAY_KEY, PAY_NETWORK, PAY_ASSET, PAY_RPC_URL } = process.env;
const signer = await createKeyPairSignerFromBytes(getBase58Encoder().encode(PAY_KEY));
const client = new x402Client()
  .register(PAY_NETWORK, new ExactSvmScheme(signer, { rpcUrl: PAY_RPC_URL }))
  .setSpendControls({ allowedAssets: [{ network: PAY_NETWORK, asset: PAY_ASSET }] });

const answer = await wrapFetchWithPayment(fetch, client)(PAY_URL);
const receipt = answer.headers.get("payment-response");
console.log(
  JSON.stringify({
    status: answer.status,
    headers: Object.fromEntries(answer.headers),
    body: await answer.text(),
    settled: receipt ? decodePaymentResponseHeader(receipt) : null,
  }),
);
