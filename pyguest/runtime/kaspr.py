"""What user code can import of the engine: its exceptions, and what joins give."""


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


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(
        f"the engine's module kaspr has no {name}: it has DeadlineExceeded, NotReady and Joined; everything else is in context[\"app\"]"
    )
