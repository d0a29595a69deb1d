"""What user code can import of the engine: the exception that ends a record that ran too long."""


class DeadlineExceeded(BaseException):
    """The record runs longer than its deadline.

    It is raised once, at the line that runs. Code that catches it has half of the deadline left to finish; after that
    the instance is ended.
    """

    __module__ = "kaspr"

    def __str__(self):
        return super().__str__() or "the record runs longer than its deadline"


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(
        f"the engine's module kaspr has no {name}: it has DeadlineExceeded; everything else is in context[\"app\"]"
    )
