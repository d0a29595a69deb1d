"""Small programs, each about one thing that Python code does all the time."""

import pyperf

N = 1000


class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y

    def length(self):
        return self.x + self.y


class Slots:
    __slots__ = ("x", "y")

    def __init__(self, x, y):
        self.x = x
        self.y = y


def objects():
    for i in range(N):
        Point(i, i)


def objects_slots():
    for i in range(N):
        Slots(i, i)


def method_calls():
    p = Point(1, 2)
    for _ in range(N):
        p.length()


def add(a, b, c=0):
    return a + b + c


def calls():
    for i in range(N):
        add(i, i)


def calls_keywords():
    for i in range(N):
        add(i, b=i, c=1)


def calls_builtin():
    text = "abc"
    for _ in range(N):
        len(text)
        isinstance(text, str)


def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def recursion():
    fib(14)


def attributes():
    p = Point(1, 2)
    for i in range(N):
        p.x = i
        p.y = p.x


def dict_literal():
    for i in range(N):
        {"id": i, "name": "x", "total": 1.5, "tags": None}


def dict_merge():
    value = {"id": 1, "name": "x", "total": 1.5, "tags": None}
    for i in range(N):
        {**value, "big": True}


def dict_access():
    d = {"id": 1, "name": "x", "total": 1.5}
    for i in range(N):
        d["id"] = d["id"] + 1
        d.get("name")


def dict_count():
    d = {}
    for i in range(N):
        k = i % 50
        d[k] = d.get(k, 0) + 1


def list_build():
    a = []
    for i in range(N):
        a.append(i)
    return [x + 1 for x in a]


def list_sort_key():
    a = [(i * 7919) % N for i in range(N)]
    a.sort(key=lambda x: -x)


def integers():
    x = 0
    for i in range(N):
        x = (x * 31 + i) & 0xFFFF


def floats():
    x = 0.5
    for i in range(N):
        x = x * 1.01 - i * 0.5 + 1.0


def strings():
    for i in range(N):
        "user-" + str(i)


def string_format():
    for i in range(N):
        f"{i}:{'abc'}:{i * 0.5:.2f}"


def string_methods():
    text = "alpha,beta,gamma"
    for _ in range(N):
        ",".join(text.upper().split(",")).startswith("ALPHA")


def exceptions():
    for i in range(N):
        try:
            raise ValueError(i)
        except ValueError:
            pass


def generator():
    def numbers(n):
        for i in range(n):
            yield i

    return sum(numbers(N))


def closure():
    def outer(x):
        return lambda: x

    for i in range(N):
        outer(i)()


def tuples():
    for i in range(N):
        a, b = i, i
        c = (a, b)
        a, b = c


if __name__ == "__main__":
    runner = pyperf.Runner()
    for f in (objects, objects_slots, method_calls, calls, calls_keywords, calls_builtin, recursion, attributes, dict_literal, dict_merge, dict_access,
              dict_count, list_build, list_sort_key, integers, floats, strings, string_format, string_methods, exceptions, generator, closure, tuples):
        runner.bench_func(f.__name__, f)
