"""The request of a web view, as its first operation gets it, and what becomes of an error (docs/webviews.md).

The engine hands over the head as lines: method, scheme, address of the client, path and query as they were sent, "1" or "0" for a
connection that stays open, then the headers, each as name, colon, value. Nothing of it is looked at before somebody asks.
"""

import html
from collections.abc import Mapping
from io import BytesIO
from json import loads as _loads
from urllib.parse import parse_qsl, unquote

params = ()  # names of the path's parameters, in its order


class MultiMap(Mapping):
    """Names with values, in order; a name may have several, of which get and [] give the first."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs=()):
        self._pairs = tuple(pairs)

    @staticmethod
    def _same(name):
        return name

    def getall(self, name, *default):
        same = self._same(name)
        found = [value for key, value in self._pairs if self._same(key) == same]
        if not found:
            if default:
                return default[0]
            raise KeyError(name)
        return found

    def __getitem__(self, name):
        same = self._same(name)
        for key, value in self._pairs:
            if self._same(key) == same:
                return value
        raise KeyError(name)

    def getone(self, name, *default):
        return self.get(name, *default) if default else self[name]

    def __contains__(self, name):
        same = self._same(name)
        return any(self._same(key) == same for key, _value in self._pairs)

    def __iter__(self):
        return iter([key for key, _value in self._pairs])

    def __len__(self):
        return len(self._pairs)

    def keys(self):
        return list(self)

    def values(self):
        return [value for _key, value in self._pairs]

    def items(self):
        return list(self._pairs)

    def __repr__(self):
        return f"<{type(self).__name__} {dict(self._pairs)!r}>"


class Headers(MultiMap):
    """The same, with names in any case."""

    __slots__ = ()

    @staticmethod
    def _same(name):
        return name.lower() if isinstance(name, str) else name


class URL(str):
    """An address: its text, with its parts as members."""

    __slots__ = ("scheme", "host", "port", "raw_path", "raw_query_string")

    @classmethod
    def _of(cls, scheme, authority, raw_path, raw_query):
        text = raw_path + ("?" + raw_query if raw_query else "")
        url = cls(f"{scheme}://{authority}{text}" if scheme else text)
        host, port = _host_and_port(authority)
        url.scheme, url.host, url.port = scheme, host, port if port or not scheme else {"http": 80, "https": 443}.get(scheme)
        url.raw_path, url.raw_query_string = raw_path, raw_query
        return url

    @property
    def path(self):
        return unquote(self.raw_path)

    @property
    def query_string(self):
        return unquote(self.raw_query_string.replace("+", " "))

    @property
    def query(self):
        return MultiMap(parse_qsl(self.raw_query_string, keep_blank_values=True))

    @property
    def path_qs(self):
        return self.raw_path + ("?" + self.raw_query_string if self.raw_query_string else "")


def _host_and_port(authority):
    host, colon, port = authority.rpartition(":")
    if not colon or not port.isdecimal():
        return authority.strip("[]") or None, None
    return host.strip("[]") or None, int(port)


def _content_type(value):
    """(media type, its parameters)."""
    parts = _split_quoted(value)
    options = {}
    for part in parts[1:]:
        name, equals, text = part.partition("=")
        if equals:
            options[name.strip().lower()] = _unquoted(text.strip())
    return parts[0].strip().lower(), options


def _unquoted(text):
    if text[:1] == text[-1:] == '"' and len(text) > 1:
        return text[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return text


def _split_quoted(value):
    """The parts between semicolons that stand in no quotes."""
    parts, begin, quoted, escaped = [], 0, False, False
    for at, char in enumerate(value):
        if escaped:
            escaped = False
        elif quoted and char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif char == ";" and not quoted:
            parts.append(value[begin:at])
            begin = at + 1
    return [*parts, value[begin:]]


class Request:
    """One HTTP request. Its body is here already, so awaiting it does not wait."""

    __slots__ = ("_head", "_body", "_params", "_parts", "_headers", "_url", "_post")

    def __init__(self, head, body, values):
        self._head, self._body, self._params = head, body, values
        self._parts = self._headers = self._url = self._post = None

    def _line(self, index):
        if self._parts is None:
            self._parts = self._head.decode("utf-8", "surrogateescape").split("\n", 6)
        return self._parts[index]

    @property
    def method(self):
        return self._line(0)

    @property
    def scheme(self):
        return self._line(1)

    @property
    def remote(self):
        """Address of whoever is connected."""
        return self._line(2) or None

    @property
    def raw_path(self):
        return self._line(3)

    @property
    def path(self):
        return unquote(self._line(3))

    @property
    def query_string(self):
        return unquote(self._line(4).replace("+", " "))

    @property
    def query(self):
        return MultiMap(parse_qsl(self._line(4), keep_blank_values=True))

    @property
    def path_qs(self):
        return self.rel_url.path_qs

    @property
    def keep_alive(self):
        return self._line(5) == "1"

    @property
    def headers(self):
        if self._headers is None:
            lines = self._line(6)
            self._headers = Headers(_header(line) for line in lines.split("\n") if line)
        return self._headers

    @property
    def host(self):
        return self.headers.get("Host", "")

    @property
    def url(self):
        if self._url is None:
            self._url = URL._of(self.scheme, self.host, self._line(3), self._line(4))
        return self._url

    @property
    def rel_url(self):
        return URL._of("", "", self._line(3), self._line(4))

    @property
    def match_info(self):
        """The parameters of the path."""
        return dict(zip(params, self._params))

    @property
    def cookies(self):
        cookies = {}
        for text in self.headers.getall("Cookie", ()):
            for part in _split_quoted(text):
                name, equals, value = part.partition("=")
                if equals:
                    cookies[name.strip()] = _unquoted(value.strip())
        return cookies

    @property
    def content_type(self):
        return _content_type(self.headers.get("Content-Type", ""))[0] or "application/octet-stream"

    @property
    def charset(self):
        return _content_type(self.headers.get("Content-Type", ""))[1].get("charset")

    @property
    def content_length(self):
        text = self.headers.get("Content-Length", "")
        return int(text) if text.isascii() and text.isdecimal() else None

    @property
    def body_exists(self):
        return self._body is not None

    can_read_body = body_exists

    async def read(self):
        return self._body or b""

    async def text(self):
        return (self._body or b"").decode(self.charset or "utf-8")

    async def json(self, *, loads=_loads):
        charset = self.charset
        if charset is None or charset.lower() in ("utf-8", "utf8"):
            return loads(self._body or b"")
        return loads((self._body or b"").decode(charset))

    async def post(self):
        """The fields of a form; a file among them has name, filename, content_type, headers and file, which is open."""
        if self._post is None:
            kind = self.content_type
            if kind == "multipart/form-data":
                self._post = MultiMap([(part.name, part._field()) for part in self._multipart() if part.name is not None])
            elif kind == "application/x-www-form-urlencoded":
                text = (self._body or b"").decode(self.charset or "utf-8")
                self._post = MultiMap(parse_qsl(text, keep_blank_values=True, encoding=self.charset or "utf-8"))
            else:
                self._post = MultiMap()
        return self._post

    async def multipart(self):
        """The parts, for async for or one by one with await next()."""
        return _Parts(self._multipart())

    def _multipart(self):
        kind, options = _content_type(self.headers.get("Content-Type", ""))
        if not kind.startswith("multipart/"):
            raise ValueError(f"the body is {kind or 'of no type'}, not multipart")
        if not options.get("boundary"):
            raise ValueError("the boundary of the parts is missing in Content-Type")
        return _parts_of(self._body or b"", b"--" + options["boundary"].encode())

    def __repr__(self):
        return f"<Request {self.method} {self._line(3)}>"

    def __getattr__(self, name):
        raise AttributeError(
            f"a request has no member {name!r}; it has method, path, query, query_string, url, rel_url, host, remote, scheme, headers, "
            "cookies, content_type, charset, content_length, keep_alive, body_exists, match_info, read, text, json, post and multipart"
        )


def _header(line):
    name, _colon, value = line.partition(":")
    return name.strip(), value.strip()


def _parts_of(body, mark):
    """The parts of a multipart body (RFC 2046)."""
    pieces = (b"\r\n" + body).split(b"\r\n" + mark)
    if len(pieces) < 2:
        raise ValueError("the body has no part: its boundary does not occur")
    parts = []
    for piece in pieces[1:]:
        if piece.startswith(b"--"):
            return parts
        _blanks, line, rest = piece.partition(b"\r\n")
        if not line or _blanks.strip():
            raise ValueError("a boundary of the body is followed by other text")
        if rest.startswith(b"\r\n"):
            head, content = b"", rest[2:]
        else:
            head, blank, content = rest.partition(b"\r\n\r\n")
            if not blank:
                raise ValueError("the headers of a part do not end")
        parts.append(Part(head, content))
    raise ValueError("the body ends without its last boundary")


class _Parts:
    __slots__ = ("_parts",)

    def __init__(self, parts):
        self._parts = iter(parts)

    async def next(self):
        return next(self._parts, None)

    def __aiter__(self):
        return self

    async def __anext__(self):
        for part in self._parts:
            return part
        raise StopAsyncIteration


class Part:
    """One part of a multipart body."""

    __slots__ = ("headers", "name", "filename", "_content")

    def __init__(self, head, content):
        self.headers = Headers(_header(line) for line in head.decode("utf-8", "surrogateescape").split("\r\n") if line)
        options = _content_type(self.headers.get("Content-Disposition", ""))[1]
        self.name, self.filename = options.get("name"), options.get("filename")
        self._content = content

    @property
    def _charset(self):
        return _content_type(self.headers.get("Content-Type", ""))[1].get("charset") or "utf-8"

    async def read(self, *, decode=False):
        return self._content

    async def text(self, *, encoding=None):
        return self._content.decode(encoding or self._charset)

    async def json(self, *, encoding=None):
        return _loads(self._content.decode(encoding or self._charset))

    def _field(self):
        if self.filename is None:
            return self._content.decode(self._charset)
        return FileField(self)


class FileField:
    """A file of a form."""

    __slots__ = ("name", "filename", "content_type", "headers", "file")

    def __init__(self, part):
        self.name, self.filename, self.headers = part.name, part.filename, part.headers
        self.content_type = _content_type(part.headers.get("Content-Type", ""))[0] or "application/octet-stream"
        self.file = BytesIO(part._content)


# ---- errors -----------------------------------------------------------------------------------------------------------

contents = {"text/plain": 0, "text/html": 0, "application/json": 1, "application/octet-stream": 2}  # CONTENT_* of kaspr.h


def failed(content_type, debug):
    """The function that makes of an error what onError gets, and the body that is sent without one."""

    def make(operation, cause, traceback):
        error = {"operation": operation, "cause": cause}
        if content_type == "application/json":
            return error, {**error, "traceback": traceback} if debug else error
        text = f"{operation}: {cause}" if operation is not None else cause
        if debug:
            text += "\n" + traceback
        if content_type == "text/html":
            return error, f"<pre>{html.escape(text)}</pre>"
        return error, text.encode("utf-8", "replace") if content_type == "application/octet-stream" else text

    return make
