"""A paid FastAPI app: one cent buys a hundred forecasts. Run: uvicorn paid_api:app --port 8403."""

import os

from fastapi import FastAPI

from tollbook.books.payments.paywall import PaidRoute, Payee, Paywall

app = FastAPI()
app.add_middleware(
    Paywall,
    payees=[Payee("base-sepolia", os.environ["PAY_TO"])],
    routes={"GET /weather/{city}": PaidRoute(price="$0.01", requests=100)},
    facilitator=os.environ.get("FACILITATOR_URL", "http://127.0.0.1:8404"),
)


@app.get("/weather/{city}")
async def read_weather(city: str) -> dict[str, str]:
    return {"city": city, "sky": "clear"}
