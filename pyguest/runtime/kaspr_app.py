"""context["app"] and what events do with it: the application as user code sees it.

Messages sent with app.send, topic.send, event.send and event.forward are outputs of the record in progress: they are
produced together with its other outputs, and not at all if the record fails.
"""

import inspect
import logging
from datetime import datetime, timedelta, timezone
from json import dumps as _dumps, loads as _loads
from types import CodeType, FunctionType

import _kaspr
import kaspr_tables

_produce = _kaspr.produce
_codecs = {name: _kaspr.codec(name) for name in ("raw", "str", "json", "pickle", "binary", "avro", "protobuf", "jsonschema")}
_RAW = _codecs["raw"]
_existing = object()


class SendError(RuntimeError):
    """The broker, or the engine on its behalf, refused a message or a topic."""

    __module__ = "kaspr"


class Metadata:
    """Of a message that is still to be sent: what is known of it. Its offset is not."""

    __slots__ = ("topic", "partition", "timestamp")
    timestamp_type = 0

    def __init__(self, topic, partition, timestamp):
        self.topic, self.partition, self.timestamp = topic, partition, timestamp

    @property
    def topic_partition(self):
        return (self.topic, self.partition)

    def __getattr__(self, name):
        if name in ("offset", "log_start_offset"):
            raise RuntimeError(
                f"{name} is not known: the message is stored together with the record's other outputs, after its code "
                "ended; an operation topicSend with ack: true gets it"
            )
        raise AttributeError(f"metadata has no member {name!r}; it has topic, partition, topic_partition, timestamp and timestamp_type")

    def __repr__(self):
        return f"<message to {self.topic}>"


class Sent:
    """What awaiting a send gives. Awaiting it again gives the metadata; its members are there, too."""

    __slots__ = ("_topic", "_partition", "_timestamp")

    def __init__(self, topic, partition, timestamp):
        self._topic, self._partition, self._timestamp = topic, partition, timestamp

    def result(self):
        return Metadata(self._topic, self._partition, self._timestamp)

    def __await__(self):
        return self.result()
        yield  # a generator, but one that does not wait

    def done(self):
        return True

    def __getattr__(self, name):
        return getattr(self.result(), name)


def _codec(name, default):
    if name is None:
        return default
    codec = _codecs.get(name) if isinstance(name, str) else None
    if codec is None:
        raise ValueError(f"there is no serializer {name!r}; there are {', '.join(_codecs)}")
    return codec


def _send(topic, key, value, partition, timestamp, headers, key_codec, value_codec):
    _produce(topic, key, value, partition, None if timestamp is None else round(timestamp * 1000), headers, key_codec, value_codec)
    return Sent(topic, partition, timestamp)


def _instant(at):
    """A time as the scheduler reads it: of a datetime (naive: UTC), seconds since 1970, or text in ISO 8601, which is passed on."""
    if isinstance(at, str):
        return at
    if isinstance(at, (int, float)) and not isinstance(at, bool):
        at = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=at)
    if not isinstance(at, datetime):
        raise TypeError(f"a time is a datetime, seconds since 1970 or text in ISO 8601, not {type(at).__name__}")
    return (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).astimezone(timezone.utc).isoformat()


def _due(deliver_at, delay):
    if (deliver_at is None) == (delay is None):
        raise TypeError("exactly one of deliver_at and delay is needed")
    if delay is None:
        return _instant(deliver_at)
    if isinstance(delay, (int, float)) and not isinstance(delay, bool):
        delay = timedelta(seconds=delay)
    if not isinstance(delay, timedelta):
        raise TypeError(f"a delay is a timedelta or seconds, not {type(delay).__name__}")
    return (datetime.now(timezone.utc) + delay).isoformat()


def _control(action, request_id, **others):
    """Headers of a request to the scheduler."""
    if request_id is not None:
        if not isinstance(request_id, str) or not request_id:
            raise TypeError("a request id is a str that is not empty")
        others["request-id"] = request_id
    return [("x-scheduler-action", action), *(("x-scheduler-" + name, text) for name, text in others.items())]


def _raise(error): raise error  # in one line, since it stands for one


def _at(function, file, line):
    """A function that raises an error in the place of a user's function, whose result is wrong: tracebacks have the user's lines only."""
    code, name = getattr(function, "__code__", None), "result"
    if type(code) is CodeType and code.co_filename == file:
        line, name = code.co_firstlineno, code.co_name
    return FunctionType(_raise.__code__.replace(co_filename=file, co_firstlineno=line, co_name=name, co_qualname=name), {})


def scheduled(topic, replace, selectors):
    """The headersSelector of an output with a schedule: the request's headers, behind those that the output's own selector gives.

    selectors has headersSelector, nameSelector, deliverAt, delay and requestId: each with the file and line of its block, or None.
    """
    action = "REPLACE" if replace else "ADD"
    own, name, at, delay, request_id = (
        selectors[key] and selectors[key][0] for key in ("headersSelector", "nameSelector", "deliverAt", "delay", "requestId"))
    blame = {key: _at(*selector) for key, selector in selectors.items() if selector}
    when = "delay" if at is None else "deliverAt"

    def request(headers, topic, due, id):
        which = when
        try:
            if due is None:
                raise TypeError(f"{when} returned None")
            due = _due(None, due) if at is None else _due(due, None)
            which = "requestId"
            if id is None and request_id is not None:
                raise TypeError("requestId returned None")
            control = _control(action, id, **{"deliver-to": topic, "deliver-at": due})
            which = "nameSelector"
            if not isinstance(topic, str):
                raise TypeError(f"a topic's name is a str, not {type(topic).__name__}")
            which = "headersSelector"
            return [*(() if headers is None else headers.items() if hasattr(headers, "items") else headers), *control]
        except Exception as exc:
            blame[which](exc)

    def headers(value):
        given = [None if f is None else f(value) for f in (own, name, at or delay, request_id)]
        if any(inspect.isawaitable(g) for g in given):
            return finish(given)
        return request(given[0], topic if name is None else given[1], *given[2:])

    async def finish(given):
        given = [await g if inspect.isawaitable(g) else g for g in given]
        return request(given[0], topic if name is None else given[1], *given[2:])

    return headers


def _target(topic, key_serializer, value_serializer):
    """Name and codecs of a topic given as a name or as app.topic(...)."""
    if isinstance(topic, Topic):
        return topic.name, _codec(key_serializer, topic._key_codec), _codec(value_serializer, topic._value_codec)
    if not isinstance(topic, str):
        raise TypeError(f"a topic is a name or what app.topic gave, not {type(topic).__name__}")
    return topic, _codec(key_serializer, app._key_codec), _codec(value_serializer, app._value_codec)


def _unknown(what, name, supported, why=""):
    return AttributeError(f"{what} has no member {name!r}{why}; it has {', '.join(supported)}")


class Topic:
    """A topic to send to, from app.topic(name, ...)."""

    _supported = ("name", "send", "maybe_declare", "declare", "get_topic_name")

    def __init__(self, name, key_codec, value_codec, options):
        self.name = name
        self._key_codec, self._value_codec = key_codec, value_codec
        self._options = options
        self._declared = False

    def get_topic_name(self):
        return self.name

    async def send(self, *, key=None, value=None, partition=None, timestamp=None, headers=None,
                   key_serializer=None, value_serializer=None):
        return _send(self.name, key, value, partition, timestamp, headers,
                     _codec(key_serializer, self._key_codec), _codec(value_serializer, self._value_codec))

    async def maybe_declare(self):
        """Creates the topic unless it exists. Asked for once in the life of an instance."""
        if not self._declared:
            acked(_kaspr.ensure_topic(_dumps({"name": self.name, **self._options})))
            self._declared = True

    declare = maybe_declare

    def __repr__(self):
        return f"<Topic {self.name}>"

    def __getattr__(self, name):
        raise _unknown("a topic", name, self._supported)


class Conf:
    """The app's settings by their snake_case name, as members or items. They cannot be changed."""

    def __init__(self, settings):
        object.__setattr__(self, "_settings", settings)

    def __getattr__(self, name):
        try:
            return self._settings[name]
        except KeyError:
            if name.startswith("__"):
                raise AttributeError(name) from None
            raise _unknown("app.conf", name, sorted(self._settings)) from None

    def __getitem__(self, name):
        return self._settings[name]

    def __setattr__(self, name, value):
        raise AttributeError("settings cannot be changed by user code")

    def get(self, name, default=None):
        return self._settings.get(name, default)

    def __contains__(self, name):
        return name in self._settings

    def __iter__(self):
        return iter(self._settings)

    def __len__(self):
        return len(self._settings)

    def keys(self):
        return self._settings.keys()

    def items(self):
        return self._settings.items()

    def __repr__(self):
        return f"<conf {self._settings!r}>"


class App:
    """The application. Members that are not listed in the documentation raise AttributeError."""

    _supported = ("send", "schedule", "cancel", "topic", "log", "conf", "name", "id", "is_leader", "loop", "rebalancing", "tables")
    _reasons = {
        "http_client": ": user code has no network",
        "monitor": ": metrics are kept by the engine, outside of user code",
    }
    rebalancing = False  # a record is never processed during a rebalance

    def __init__(self, loop):
        self.loop = loop
        self.log = logging.getLogger("app")
        self.tables = kaspr_tables.Tables()
        self._configure("", "", {})

    def _configure(self, name, id, conf):
        self.name, self.id = name, id
        self.conf = Conf({**conf, "name": name, "id": id})
        self._key_codec = _codec(conf.get("key_serializer"), _RAW)
        self._value_codec = _codec(conf.get("value_serializer"), _codecs["json"])

    async def send(self, topic, key=None, value=None, partition=None, timestamp=None, headers=None,
                   key_serializer=None, value_serializer=None):
        if type(topic) is str and key_serializer is None is value_serializer:
            key_codec, value_codec = self._key_codec, self._value_codec
        else:
            topic, key_codec, value_codec = _target(topic, key_serializer, value_serializer)
        return _send(topic, key, value, partition, timestamp, headers, key_codec, value_codec)

    def schedule(self, topic, key=None, value=None, *, deliver_at=None, delay=None, request_id=None, replace=False, expire_at=None,
                 headers=None, key_serializer=None, value_serializer=None):
        """Has a message delivered later. It may be awaited, as app.send; what it gives is known of the request, not of the message."""
        requests = self._requests()
        if replace and request_id is None:
            raise TypeError("replace needs the request_id of the message to replace")
        topic, key_codec, value_codec = _target(topic, key_serializer, value_serializer)
        others = {"deliver-to": topic, "deliver-at": _due(deliver_at, delay)}
        if expire_at is not None:
            others["expire-at"] = _instant(expire_at)
        own = [] if headers is None else headers.items() if hasattr(headers, "items") else headers
        headers = [*own, *_control("REPLACE" if replace else "ADD", request_id, **others)]
        return _send(requests, key, value, None, None, headers, key_codec, value_codec)

    def cancel(self, request_id):
        """Takes back what was scheduled with this id, if it has not left."""
        if request_id is None:
            raise TypeError("a request id is a str that is not empty")
        return _send(self._requests(), None, None, None, None, _control("CANCEL", request_id), _RAW, _RAW)

    def _requests(self):
        if not self.conf.get("scheduler_enabled"):
            raise RuntimeError("the message scheduler is off: set schedulerEnabled: true in the app's settings")
        return self.id + "-schedule-requests"

    def topic(self, *names, key_serializer=None, value_serializer=None, partitions=None, replicas=None, retention=None,
              compacting=None, deleting=None, config=None):
        if len(names) != 1 or not isinstance(names[0], str):
            raise TypeError("app.topic takes the name of one topic")
        policy = ",".join(word for word, on in (("compact", compacting), ("delete", deleting)) if on)
        settings = {}
        if policy:
            settings["cleanup.policy"] = policy
        if retention:
            seconds = retention.total_seconds() if hasattr(retention, "total_seconds") else retention
            settings["retention.ms"] = str(round(seconds * 1000))
        settings.update({key: str(value) for key, value in (config or {}).items()})
        options = {"partitions": partitions, "replicas": replicas, "config": settings}
        return Topic(names[0], _codec(key_serializer, self._key_codec), _codec(value_serializer, self._value_codec),
                     {key: value for key, value in options.items() if value})

    def is_leader(self):
        return _kaspr.is_leader()

    def __repr__(self):
        return f"<app {self.name}>"

    def __getattr__(self, name):
        raise _unknown("app", name, self._supported, self._reasons.get(name, ""))


app = None  # made by kaspr_runtime, when there is a loop


async def forward(event, topic, key=_existing, value=_existing, partition=None, timestamp=None, headers=_existing,
                  key_serializer=None, value_serializer=None):
    """event.forward: the record's own bytes, unless others are given."""
    message = event.message
    if message.topic is None:  # a channel's bytes mean nothing outside of it
        return await send(event, topic, key, value, partition, timestamp, headers, key_serializer, value_serializer)
    name, key_codec, value_codec = _target(topic, key_serializer, value_serializer)
    if key is _existing:
        key, key_codec = message.key, _RAW
    if value is _existing:
        value, value_codec = message.value, _RAW
    if headers is _existing:
        headers = message.headers
    return _send(name, key, value, partition, timestamp, headers, key_codec, value_codec)


async def send(event, topic, key=_existing, value=_existing, partition=None, timestamp=None, headers=_existing,
               key_serializer=None, value_serializer=None):
    """event.send: the decoded key and value, encoded again."""
    name, key_codec, value_codec = _target(topic, key_serializer, value_serializer)
    return _send(name, event.key if key is _existing else key, event.value if value is _existing else value, partition,
                 timestamp, event.message.headers if headers is _existing else headers, key_codec, value_codec)


def acked(answer):
    """The engine's answer to a send that waited, or to a topic's declaration."""
    data = _loads(answer) if answer else {}
    if "error" in data:
        raise SendError(data["error"])
    if "topic" in data and "partition" in data:
        data["topic_partition"] = (data["topic"], data["partition"])
    return data
