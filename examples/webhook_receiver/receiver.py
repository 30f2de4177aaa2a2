"""Takes Tollbook's webhooks: verifies each by the public library, drops what came twice, keeps the rest.

Run: WEBHOOK_SECRET=whsec_... uvicorn --app-dir examples/webhook_receiver receiver:app --port 8500
"""

import os
from collections import OrderedDict
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from standardwebhooks import Webhook, WebhookVerificationError

REMEMBERED_MAX = 10_000

app = FastAPI()
webhook = Webhook(os.environ["WEBHOOK_SECRET"])
seen: OrderedDict[str, dict[str, Any]] = OrderedDict()  # a real receiver keeps the ids in its database


@app.post("/hooks", status_code=204)
async def take(request: Request) -> None:
    """Verify the bytes as they came, before anything reads them; answer at once, and work afterwards."""
    try:
        event = webhook.verify(await request.body(), dict(request.headers))
    except WebhookVerificationError as error:
        raise HTTPException(401, "not from Tollbook") from error
    message_id = request.headers["webhook-id"]
    if message_id in seen:  # at least once means: now and then twice
        return
    seen[message_id] = event
    if len(seen) > REMEMBERED_MAX:
        seen.popitem(last=False)
    data = event["data"]
    print(f"{event['timestamp']} {event['type']} {data['id']} {data.get('amount') or ''}", flush=True)


@app.get("/")
async def show() -> list[dict[str, Any]]:
    """What was told, the newest first."""
    return list(reversed(seen.values()))
