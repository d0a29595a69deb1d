"""The same in FastAPI: a dict, orjson, one worker."""

from fastapi import FastAPI
from fastapi.responses import Response
import orjson

USERS = {f"user-{i}": {"name": f"User {i}", "visits": i, "tags": ["a", "b"]} for i in range(10_000)}
app = FastAPI()


@app.get("/users/{key}")
async def user(key: str):
    return Response(orjson.dumps(USERS.get(key)), media_type="application/json")
