#!/usr/bin/env python3
"""Computes what each example must give, from its input alone: plain Python without an engine, written from the README of the
example and not from its manifests. The tests hold it against expected.jsonl and responses.jsonl.

    python3 examples/expected.py NAME    one record or response a line
"""
import base64
import json
import sys
from collections import defaultdict
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path

HERE = Path(__file__).parent


# ---- what all examples need ----

class Record:
    def __init__(self, line):
        r = json.loads(line)
        if not (isinstance(r, dict) and "value" in r):
            r = {"value": r}  # a bare value
        self.key, self.value, self.headers = r.get("key"), r["value"], r.get("headers", {})
        self.at = r.get("timestamp", 0) // 1000
        self.broken = None  # text that is no JSON, as it is shown
        if isinstance(self.value, dict) and list(self.value) == ["base64"]:
            raw = base64.b64decode(self.value["base64"])
            try:
                self.broken = raw.decode()
            except UnicodeDecodeError:
                self.broken = self.value


def records(name, file):
    return [Record(line) for line in (HERE / name / file).read_text().splitlines()]


def out(topic, key, value, headers=None, **more):
    print(json.dumps({"topic": topic, "key": key, "value": value, "headers": headers or {}, **more}))


def failed(topic, r, type, message, **headers):
    """A dead letter. Only the headers that examples look at."""
    value = r.value if r.broken is None else r.broken
    out(topic, r.key, value, {**r.headers, "kaspr-error-kind": "code", "kaspr-error-type": type, "kaspr-error-message": message, **headers})


def unreadable(topic, r):
    error = "UnicodeDecodeError" if isinstance(r.broken, dict) else "JSONDecodeError"
    out(topic, r.key, r.broken, {**r.headers, "kaspr-error-kind": "decode-value", "kaspr-error-type": error})


def text(at):
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def partition(key, count=2):
    """Where Kafka's clients put a key: murmur2 of its bytes."""
    data, m = key.encode(), 0x5BD1E995
    h, full = 0x9747B28C ^ len(data), len(data) // 4 * 4
    for i in range(0, full, 4):
        k = int.from_bytes(data[i:i + 4], "little") * m & 0xFFFFFFFF
        h = h * m & 0xFFFFFFFF ^ (k ^ k >> 24) * m & 0xFFFFFFFF
    if data[full:]:
        h = (h ^ int.from_bytes(data[full:], "little")) * m & 0xFFFFFFFF
    h = (h ^ h >> 13) * m & 0xFFFFFFFF
    return ((h ^ h >> 15) & 0x7FFFFFFF) % count


# ---- the examples ----

def hello():
    for r in records("hello", "names.jsonl"):
        out("greetings", None, "Hello, " + r.value + "!")


def quickstart():
    percent = {"eu": 21, "us": 7}

    def send(topic, key, value, headers=None):
        out(topic, key, value, headers, partition=partition(json.dumps(key)))

    for r in records("quickstart", "orders.jsonl"):
        order = r.value
        for n, line in enumerate(order["lines"] if order["status"] == "paid" else [], 1):
            tax = percent[order["region"]]
            cents = (int(line["price"].replace(".", "")) * line["quantity"] * (100 + tax) + 50) // 100  # half a cent is one
            total = f"{cents // 100}.{cents % 100:02}"
            send("order-lines", line["sku"], {"order": order["id"], "line": n, "region": order["region"], "customer": r.key, **line, "total": total},
                 {"order": str(order["id"]), "tax": f"0.{tax:02}"})
            send("pick-" + order["region"], order["id"], {"sku": line["sku"], "quantity": line["quantity"]})
            if cents >= 100_00:
                send("large-lines", r.key, f"{r.key} spent {total} on {line['sku']}")


def cache():
    rates, wanted = {}, []
    for r in records("cache", "fx-rates.jsonl"):
        if r.value is None:
            rates.pop(r.key, None)
        elif "bid" not in r.value:
            failed("fx-rates-failed", r, "KeyError", "'bid'")
        elif Decimal(r.value["ask"]) < Decimal(r.value["bid"]):
            failed("fx-rates-failed", r, "ValueError", f"ask {r.value['ask']} is below bid {r.value['bid']}")
        elif r.key not in rates or r.value["at"] > rates[r.key]["at"]:  # all are in UTC
            rates[r.key] = r.value
    for i, line in enumerate((HERE / "cache/requests.jsonl").read_text().splitlines()):
        ask = json.loads(line)
        method, path = ask.get("method", "GET"), ask["path"]
        pair = path.removeprefix("/rates/")
        answer = {"status": 200, "headers": {}}
        if method == "POST":
            answer = {"status": 405, "headers": {"Allow": "DELETE, GET, HEAD"}}
        elif method == "DELETE":
            del rates[pair]
            answer = {"status": 204, "body": ""}
        elif path == "/rates":
            answer = {"status": 400, "body": {"error": "base is missing, such as ?base=EUR"}}
        elif path.startswith("/rates?base="):
            answer["body"] = {p: r["bid"] for p, r in sorted(rates.items()) if p.startswith(path[-3:])}
        elif pair != pair.upper():
            answer = {"status": 400, "body": {"error": "a pair is six letters, such as EURUSD"}}
        elif pair not in rates:
            out("rates-wanted", pair, {"pair": pair})
            answer = {"status": 202, "headers": {"Retry-After": "1"}, "body": {"pair": pair, "state": "asked for"}}
        else:
            rate = rates[pair]
            tag = f'"{datetime.fromisoformat(rate["at"]).timestamp():.3f}"'
            answer = {"status": 200, "headers": {"Etag": tag, "Cache-Control": "max-age=1"}, "body": {"pair": pair, "bid": rate["bid"], "ask": rate["ask"]}}
            if ask.get("headers", {}).get("If-None-Match") == tag:
                answer.update(status=304, body="")
        print(json.dumps({"request": i + 1, **answer}))


def cdc():
    rows, drops = {}, []  # id: position, and row or None
    for r in records("cdc", "products.jsonl"):
        if r.value is None:
            continue
        change = r.value.get("payload") or r.value
        r.key = r.key and json.loads(r.key)  # as it is shown
        if change["op"] not in "rcud":
            failed("products-failed", r, "ValueError", f"operation '{change['op']}' is not handled: take a new snapshot")
            continue
        id, lsn = r.key["id"], change["source"]["lsn"]
        before_lsn, before = rows.get(id, (0, None))
        if lsn <= before_lsn:
            continue
        row = change["after"]
        if row and row["description"] == "__debezium_unavailable_value":
            if before is None:
                failed("products-failed", r, "LookupError", f"row {id} is not known, so column 'description' is not either: take a new snapshot")
                continue
            row["description"] = before["description"]
        rows[id] = lsn, row
        out("products", r.key, row)
        if row and before and row["price"] != before["price"]:
            out("price-changes", r.key, {"id": id, "from": before["price"], "to": row["price"]})
            drops.append((r.key, before["price"], row["price"]))
    for key, old, new in drops:
        row = rows[key["id"]][1]
        if row and row["stock"] and int(new.replace(".", "")) * 10 <= int(old.replace(".", "")) * 9:
            out("deals", key, f"{row['name']}: {new} instead of {old}")


def counters():
    counted, over, latest = defaultdict(list), {}, defaultdict(int)
    for r in records("counters", "api-requests.jsonl"):
        if r.broken is not None:
            unreadable("api-requests-failed", r)
            continue
        if r.value is None:
            continue
        at, p, customer = r.at, partition(r.key), r.value["customer"]
        if at < latest[p] - 600:
            out("api-requests-late", customer, {"latest": text(latest[p]), "at": text(at), **r.value})
            continue
        if "status" not in r.value:
            failed("api-requests-failed", r, "KeyError", "'status'")
            continue
        now = at >= latest[p]
        latest[p] = max(latest[p], at)
        counted[customer].append(r)
        same_minute = [o.value for o in counted[customer] if o.at // 60 == at // 60]
        last_5m = sum(at // 60 - 4 <= o.at // 60 <= at // 60 for o in counted[customer])
        minute = text(at // 60 * 60)
        out("usage-by-minute", f"{customer} {minute}", {
            "customer": customer, "minute": minute, "requests": len(same_minute), "errors": sum(v["status"] >= 500 for v in same_minute),
            "slowest_ms": max(v["ms"] for v in same_minute), "last_5m": last_5m})
        if now and last_5m >= 5 and customer not in over:
            over[customer] = at
            out("usage-alerts", customer, {"customer": customer, "state": "over", "at": text(at), "last_5m": last_5m})
        if now and last_5m < 5 and customer in over:
            out("usage-alerts", customer, {"customer": customer, "state": "within", "at": text(at), "seconds": at - over.pop(customer)})


def dead_letters():
    balances, queue = {}, [r for r in records("dead-letters", "ledger-entries.jsonl") if r.value is not None]
    while queue:  # what gets another try stands behind what has come since
        r = queue.pop(0)
        entry, error, curable = r.value, None, False
        account = entry.get("account")
        if r.broken is not None:
            error = "UnicodeDecodeError", ""
        elif entry["type"] == "open":
            balances.setdefault(account, 0)
        elif account not in balances:
            error, curable = ("AccountNotOpen", f"account {account} is not open"), True
        elif entry["type"] == "deposit":
            balances[account] += entry["cents"]
        elif entry["type"] != "withdraw":
            error = "ValueError", f"an entry of type '{entry['type']}'"
        elif entry["cents"] > balances[account]:
            error, curable = ("InsufficientFunds", f"{entry['cents']} of {balances[account]}"), True
        else:
            balances[account] -= entry["cents"]
        if error is None:
            out("ledger-postings", account, {"entry": entry["id"], "account": account, "balance": balances[account]})
            continue
        if r.broken is not None:
            unreadable("ledger-failed", r)
        else:
            failed("ledger-failed", r, *error)
        tries = {None: 0, "0": 0, "1": 1, "2": 2}.get(r.headers.get("redrive-round"), 3)
        if curable and tries < 3:
            r.headers = {"redrive-round": str(tries + 1)}
            out("ledger-entries", r.key, r.value, r.headers)
            queue.append(r)
        else:
            out("ledger-parked", r.key, r.value, {"parked-because": f"{error[0]}: {error[1]}", "parked-from": "ledger-entries/?", "parked-after": f"{tries if curable else 0} rounds"})


def dedup():
    first = {}
    for r in records("dedup", "payment-notifications.jsonl"):
        if r.broken is not None:
            unreadable("payment-notifications-failed", r)
        elif r.value is None:
            pass
        elif "id" not in r.value:
            failed("payment-notifications-failed", r, "KeyError", "'id'", **{"kaspr-operation": "judged"})
        else:
            said = {k: v for k, v in r.value.items() if k != "attempt"}
            at, before = first.get(said["id"], (0, None))
            if before is None or r.at > at + 86_400:
                first[said["id"]] = r.at, said
                out("payments", said["account"], said)
            elif said != before:
                out("payment-conflicts", said["account"], {"verdict": "conflicting", **r.value})


def joins():
    drivers = {repr(r.value["number"]): r.value for r in records("joins", "drivers.jsonl")}  # 7 and "7" are two
    for r in records("joins", "trips.jsonl"):
        driver = drivers.get(repr(r.value.get("driver")))
        if driver:
            out("ride-named-trips", r.key, {"trip": r.key, "to": r.value["to"], "driver": driver["name"], "stars": driver["stars"]})


def notifications():
    texts = {"order-shipped": ("Your order ", "order", " is on its way."), "new-login": ("New login from ", "place", ". Was it you?")}
    sent = defaultdict(list)
    for r in records("notifications", "user-events.jsonl"):
        if r.value is None:
            continue
        id, user, kind, data, contacts = (r.value[k] for k in ("id", "user", "type", "data", "contacts"))
        if kind not in texts and kind != "price-drop":
            failed("user-events-failed", r, "KeyError", repr(kind), **{"kaspr-operation": "decided"})
            continue
        if kind in texts and texts[kind][1] not in data:
            failed("user-events-failed", r, "KeyError", repr(texts[kind][1]), **{"kaspr-operation": "decided"})
            continue
        if kind == "price-drop":
            body = f"{data['article']} now costs {data['price']}."
        else:
            before, name, after = texts[kind]
            body = f"{before}{data[name]}{after}"
        urgent = kind == "new-login"
        decision = "sent"
        if not urgent and sum(r.at - 3600 < t <= r.at for t in sent[user]) >= 3:
            decision = "suppressed"
        elif not urgent:
            sent[user].append(r.at)
        channels = [c for c in ("email", "sms", "push", "webhook") if contacts.get(c)]
        if decision == "sent" and not channels:
            decision = "unreachable"
        out("notify-audit", user, {"id": id, "type": kind, "decision": decision, "channels": channels})
        if decision == "suppressed":
            out("notify-suppressed", user, {"id": id, "text": body})
        for c in channels if decision == "sent" else []:
            to = contacts[c]
            out("notify-" + c, to, {
                "email": {"to": to, "subject": {"order-shipped": "Order shipped", "price-drop": "Price drop", "new-login": "New login"}[kind], "body": body},
                "sms": body, "push": {"device": to, "alert": body, "sound": urgent}, "webhook": {"url": to, "body": {"type": kind, "text": body}},
            }[c], {"id": id, "priority": "high" if urgent else "normal"})


def orders():
    customers = {r.key: r.value for r in records("orders", "shop-customers.jsonl")}
    newest = {}
    for r in records("orders", "shop-orders.jsonl"):
        if "version" not in r.value:
            failed("shop-orders-failed", r, "KeyError", "'version'")
        elif "customer" not in r.value:
            failed("enrichment-app-orders-customers-dead-letter", r, "KeyError", "'customer'", **{"kaspr-component": "KasprJoin/orders-customers"})
        elif r.key not in newest or r.value["version"] > newest[r.key]["version"]:
            newest[r.key] = r.value
    for id, order in newest.items():
        customer = customers.get(order["customer"])
        who = {"state": "guest"} if order["customer"] is None else {"state": "known", **customer} if customer else {"state": "unknown"}
        out("shop-orders-enriched", id, {"order": id, "total": order["total"], "customer": who})


def reminders():
    tasks, asked, refused = {}, {}, []
    for r in records("reminders", "tasks.jsonl"):
        t = r.value
        if t and "user" not in t:
            failed("tasks-failed", r, "KeyError", "'user'")
            continue
        tasks[r.key] = t if t and not t["done"] else None
        asked.pop(r.key, None)
        headers = {"x-scheduler-action": "CANCEL", "x-scheduler-request-id": r.key}
        if tasks[r.key]:
            headers.update({"x-scheduler-action": "REPLACE", "x-scheduler-deliver-to": "task-reminders", "x-scheduler-deliver-at": t["remind_at"],
                            "x-scheduler-expire-at": t["due"]})
            if t["remind_at"][0].isdigit() and t["due"] > datetime.now(timezone.utc).isoformat():
                asked[r.key] = t
            else:  # no time, or over before it begins
                refused.append(r.key)
        out("todo-app-schedule-requests", r.key, {"task": r.key}, headers)
    for key in refused:
        out("todo-app-schedule-rejections", key, None)
    for key, t in asked.items():
        if datetime.fromisoformat(t["remind_at"].replace("Z", "+00:00")) <= datetime.now(timezone.utc):
            out("task-reminders", key, {"task": key})
            out("task-notices", t["user"], {"user": t["user"], "text": f"{t['title']}, due {t['due'][:10]}"})


def report():
    sales, closed = defaultdict(list), set()
    for r in records("report", "till-records.jsonl"):
        t = r.value
        if t is None:
            continue
        if (t["day"], t["store"]) in closed:
            failed("till-records-failed", r, "ValueError", f"{t['store']} has closed its till of {t['day']}")
        elif t["type"] == "close":
            closed.add((t["day"], t["store"]))
        elif not t["amount"].lstrip("-").replace(".", "").isdigit():
            failed("till-records-failed", r, "decimal.InvalidOperation", "")
        else:
            sales[t["day"]].append((t["store"], int(t["amount"].replace(".", ""))))
    reports = {}
    for day, sold in sales.items():
        if all((day, store) in closed for store in ("lund", "malmo", "oslo")):
            by_store = defaultdict(int)
            for store, cents in sold:
                by_store[store] += cents
            total = sum(by_store.values())
            reports[day] = {"day": day, "sales": len(sold), "total": f"{total // 100}.{total % 100:02}", "best": max(by_store, key=by_store.get)}
            out("daily-reports", day, reports[day])
    for i, line in enumerate((HERE / "report/requests.jsonl").read_text().splitlines()):
        body = reports.get(json.loads(line)["path"].removeprefix("/reports/"))
        print(json.dumps({"request": i + 1, "status": 200 if body else 404, "body": body}))


def sessions():
    gap = 30 * 60
    open_, latest, swept = defaultdict(dict), defaultdict(int), defaultdict(int)  # by partition

    def close(visitor, clicks):
        clicks.sort(key=lambda c: c[0])  # stable: of two at one time the later one is the last
        start, end = clicks[0], clicks[-1]
        out("sessions", visitor, {"visitor": visitor, "start": text(start[0]), "end": text(end[0]), "seconds": end[0] - start[0],
                                  "clicks": len(clicks), "entry": start[1], "exit": end[1]})

    for r in records("sessions", "clicks.jsonl"):
        if r.value is None:
            continue
        if "page" not in r.value:
            failed("clicks-failed", r, "KeyError", "'page'")
            continue
        p, visitor, at = partition(r.key), r.value["visitor"], r.at
        latest[p] = max(latest[p], at)
        clicks = open_[p].get(visitor)
        if clicks and at > max(c[0] for c in clicks) + gap:
            close(visitor, open_[p].pop(visitor))
            clicks = None
        if clicks and at >= min(c[0] for c in clicks) - gap:
            clicks.append((at, r.value["page"]))
        elif clicks or at < latest[p] - gap:
            out("clicks-late", visitor, {"at": text(at), **r.value})
        else:
            open_[p][visitor] = [(at, r.value["page"])]
        if latest[p] // 60 > swept[p]:  # once a minute of the stream, those whose last minute has gone by
            swept[p] = latest[p] // 60
            for v, clicks in list(open_[p].items()):
                if (max(c[0] for c in clicks) + gap) // 60 < latest[p] // 60:
                    close(v, open_[p].pop(v))


if __name__ == "__main__":
    name = sys.argv[1]
    if not (HERE / name / "expected.jsonl").exists():
        sys.exit(f"there is no example {name}")
    globals()[name.replace("-", "_")]()
