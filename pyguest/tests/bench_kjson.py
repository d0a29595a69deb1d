"""What the JSON codec costs per document, beside stock json and, when they can be imported, msgspec and orjson.

    PYTHON=<native python 3.13> tests/run_kjson_native.sh --bench [-r REPEATS] [WORKLOAD...]

Prints the best of REPEATS runs in nanoseconds a document, and the median; the codecs take turns. The decoded objects are dropped at once, as a
batch of the guest does. Each workload is a list of different documents, made from a fixed seed.
"""

import argparse
import gc
import random
import sys
import time


def record(r, i):
    return {
        "user_id": f"u{r.randrange(100000)}",
        "event": r.choice(["click", "view", "purchase", "scroll"]),
        "ts": 1700000000 + i,
        "amount": round(r.random() * 1000, 2),
        "tags": [r.choice(["alpha", "beta3", "gamma", "delta42"]) for _ in range(2)],
        "page": {"url": f"/products/{r.randrange(10000)}/details", "ref": f"https://ref.example/{r.randrange(1000)}"},
        "session": f"s{r.randrange(10**12):012d}",
        "seq": i,
    }


def order(r, i):
    return {
        "id": f"{r.getrandbits(128):032x}",
        "customer": {"id": r.randrange(10**9), "name": r.choice(["Zoë Müller", "Jan Novák", "Li Wei", "Ana Silva"]), "vip": r.random() < 0.1,
                     "address": {"street": "Main street 5", "city": "Kraków", "zip": f"{r.randrange(10**5):05d}", "lines": None}},
        "items": [{"sku": f"SKU-{r.randrange(10**6)}", "qty": r.randrange(1, 9), "price": r.randrange(10**5) / 100, "options": {"color": "red", "size": "XL"}}
                  for _ in range(r.randrange(2, 8))],
        "note": 'He said: "ring twice"\nthen left' if r.random() < 0.5 else "",
        "created": "2026-05-01T12:00:00Z",
    }


def workloads(json):
    r = random.Random(7)
    text = lambda v: json.dumps(v).encode()
    n = 1000
    return {
        "record": [text(record(r, i)) for i in range(n)],
        "compact": [json.dumps(record(r, i), separators=(",", ":")).encode() for i in range(n)],
        "order": [text(order(r, i)) for i in range(n // 4)],
        "utf8": [json.dumps(order(r, i), ensure_ascii=False).encode() for i in range(n // 4)],
        "floats": [text([r.random() * 100 for _ in range(16)]) for _ in range(n // 4)],
        "decimals": [text([round(r.random() * 1000, r.randrange(1, 5)) for _ in range(16)]) for _ in range(n // 4)],
        "ints": [text([r.randrange(10 ** r.randrange(1, 18)) for _ in range(16)]) for _ in range(n // 4)],
        "idmap": [text({f"id{r.randrange(10**6)}": r.randrange(100) for _ in range(16)}) for _ in range(n // 4)],
        "mixed": [text({k: i for k in r.sample(["a", "bb", "ccc", "dddd", "eeeee", "ffffff"], 4)}) for i in range(n)],
        "small": [text({"id": i, "ok": True}) for i in range(n)],
        "text": [text({"body": "lorem ipsum dolor sit amet " * 40}) for i in range(n // 10)],
        "scalar": [text(f"key-{i}") for i in range(n)],
    }


def codecs():
    import json
    import _kjson
    import _kjson

    found = {"kjson": (_kjson.loads, _kjson.dumps), "json": (json.loads, lambda v: json.dumps(v).encode())}
    try:
        import msgspec.json

        found["msgspec"] = (msgspec.json.Decoder().decode, msgspec.json.Encoder().encode)
    except ImportError:
        pass
    try:
        import orjson

        found["orjson"] = (orjson.loads, orjson.dumps)
    except ImportError:
        pass
    return found


# Processor time: other processes disturb it less. WASI has none.
clock = time.thread_time if hasattr(time, "thread_time") and sys.platform != "wasi" else time.perf_counter


def run(f, args, rounds):
    start = clock()
    for _ in range(rounds):
        for a in args:
            f(a)
    return (clock() - start) / rounds / len(args)


def main():
    import json
    import _kjson

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-r", "--repeats", type=int, default=40)
    parser.add_argument("-s", "--seconds", type=float, default=0.003, help="about how long a run lasts")
    parser.add_argument("workload", nargs="*")
    options = parser.parse_args()
    found = codecs()
    print(f"{'ns a document':<22}" + "".join(f"{name + ' (median)':>20}" for name in found))
    for name, documents in workloads(json).items():
        if options.workload and name not in options.workload:
            continue
        values = [_kjson.loads(d) for d in documents]  # keys as the guest has them: interned
        for what, side, args in (("decode", 0, documents), ("encode", 1, values)):
            times = {codec: [] for codec in found}
            rounds = {codec: max(1, int(options.seconds / (run(f[side], args, 1) * len(args)))) for codec, f in found.items()}
            gc.collect()
            for _ in range(options.repeats):
                for codec, f in found.items():
                    times[codec].append(run(f[side], args, rounds[codec]) * 1e9)
            print(f"{name + ' ' + what:<22}" + "".join(f"{min(t):>11.0f} ({sorted(t)[len(t) // 2]:>6.0f})" for t in times.values()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
