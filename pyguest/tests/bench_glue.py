"""ns per record of workload W1: decode, filter, map, key selector, encode. KASPR_GUEST chooses the guest."""

import json
import sys

from guest import Guest, Record, program

RECORD = {
    "user_id": "u123", "event": "click", "ts": 1700000000, "amount": 12.34, "tags": ["alpha", "beta3"],
    "page": {"url": "/products/1/details", "ref": "https://ref.example/1"}, "session": "s000000000012", "seq": 1,
}
CASES = {
    "W1": dict(ops=[("filter", 'def f(v):\n    return v["event"] != "heartbeat"'),
                    ("map", 'def m(v):\n    return {**v, "big": v["amount"] > 500}')],
               outputs=[{"keySelector": 'def k(v):\n    return v["user_id"]'}]),
    "W1 async": dict(ops=[("filter", 'async def f(v):\n    return v["event"] != "heartbeat"'),
                          ("map", 'async def m(v):\n    return {**v, "big": v["amount"] > 500}')],
                     outputs=[{"keySelector": 'async def k(v):\n    return v["user_id"]'}]),
    "W1 event.key, offset": dict(ops=[("map", 'def m(v):\n    e = context["event"]\n    return {**v, "k": e.message.offset}')],
                                 outputs=[{"keySelector": 'def k(v):\n    return v["user_id"]'}]),
    "drop all": dict(ops=[("filter", "def f(v):\n    return False")]),
    "pass through": dict(ops=[("map", "def f(v):\n    return v")]),
    "raw, no operations": dict(ops=[], key="raw", value="raw", outputs=[{"valueSerializer": "raw"}]),
    "generator of 3": dict(ops=[("map", "def f(v):\n    for i in range(3):\n        yield i")]),
    "sleep(0)": dict(ops=[("map", "import asyncio\nasync def f(v):\n    await asyncio.sleep(0)\n    return v")]),
    "app.send": dict(ops=[("map", 'async def f(v):\n    await context["app"].send("other", value=v)\n    return v')], outputs=[]),
    "raise": dict(ops=[("map", 'def f(v):\n    return v["nothing"]')]),
}


def main():
    value = json.dumps(RECORD, separators=(",", ":")).encode()
    records = [Record(value, key=b"u123", offset=i) for i in range(500)]
    only = sys.argv[1:]
    for name, case in CASES.items():
        if only and name not in only:
            continue
        with Guest() as guest:
            problems = guest.load(program(jsonExact=False, **case))
            if problems:
                print(name, problems)
                continue
            guest.bench(records, 4)
            best = min(guest.bench(records, 10)[0] for _ in range(5))
            print(f"{name:24} {best:8.0f} ns/record  {1e9 / best:9.0f} records/s", flush=True)


if __name__ == "__main__":
    main()
