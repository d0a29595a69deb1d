"""What user code can import of the engine: its exceptions, what web views answer with, and what joins give."""


class DeadlineExceeded(BaseException):
    """The record runs longer than its deadline.

    It is raised once, at the line that runs. Code that catches it has half of the deadline left to finish; after that
    the instance is ended.
    """

    __module__ = "kaspr"

    def __str__(self):
        return super().__str__() or "the record runs longer than its deadline"


class Joined(tuple):
    """A join's result: (left, right), also as members and as items "left" and "right"."""

    __module__ = "kaspr"

    def __new__(cls, left, right, right_key=None, change=None):
        self = super().__new__(cls, (left, right))
        self.right_key = right_key  # key of the right table that the left row refers to
        self.change = change  # "left" or "right": whose row was written or deleted
        return self

    left = property(lambda self: tuple.__getitem__(self, 0))
    right = property(lambda self: tuple.__getitem__(self, 1))

    def __getitem__(self, at):
        if isinstance(at, str):
            if at not in ("left", "right"):
                raise KeyError(at)
            at = int(at == "right")
        return tuple.__getitem__(self, at)

    def __reduce__(self):
        return Joined, (self.left, self.right, self.right_key, self.change)

    def __repr__(self):
        return f"Joined(left={self.left!r}, right={self.right!r})"


class NotReady(RuntimeError):
    """A web view read a table of which a part cannot be read now: it is being restored, or moves to another process.

    A request that ends with it is answered with 503, whatever the view says about errors.
    """

    __module__ = "kaspr"


class Response(tuple):
    """What a web view answers with: the body, and if given the status and headers, which count before the view's own."""

    __module__ = "kaspr"
    __slots__ = ()

    def __new__(cls, body=None, status=None, headers=None):
        return super().__new__(cls, (body, status, headers))

    body = property(lambda self: self[0])
    status = property(lambda self: self[1])
    headers = property(lambda self: self[2])

    def __reduce__(self):
        return Response, tuple(self)

    def __repr__(self):
        return f"Response({self.body!r}, status={self.status!r}, headers={self.headers!r})"


class HTTPError(Exception):
    """Ends a request of a web view with this status: nothing the request was to write is written.

    What is not given of body and headers is what the view says of errors.
    """

    __module__ = "kaspr"

    def __init__(self, status, body=..., headers=None):
        if not isinstance(status, int) or isinstance(status, bool) or not 300 <= status <= 599:
            raise ValueError(f"the status of an HTTPError is an int from 300 to 599, not {status!r}")
        super().__init__(status, body, headers)
        self.status, self.body, self.headers = status, body, headers

    def __str__(self):
        return self.body if isinstance(self.body, str) else str(self.status)


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(
        f"the engine's module kaspr has no {name}: it has DeadlineExceeded, NotReady, HTTPError, Response and Joined; everything else is in context[\"app\"]"
    )
