"""A reader of PromQL that knows the metrics: it tells what an expression gives, or why it cannot be right.

It reads the part of the language that alerts and dashboards here use, and refuses the rest. Beyond syntax it holds
every name, label and label value against the registry, wants counters and nothing else under rate(), and buckets
with their `le` under histogram_quantile(). It follows labels through operators, so that a comparison of two vectors
that can never match, or a template that names a label that is gone, shows too.
"""

import re
from dataclasses import dataclass, replace

from engine.metrics.registry import METRICS, OUTCOMES, PIPELINE_STATES, SHARD_STATES

#: Labels that Prometheus itself adds to what it scrapes.
TARGET_LABELS = frozenset({"job", "instance"})

#: What labels with a known set of values may be compared with by = and !=, and be made of in patterns.
VALUES = {
    ("headrace_records_total", "outcome"): OUTCOMES,
    ("headrace_pipeline_state", "state"): PIPELINE_STATES,
    ("headrace_shards", "state"): SHARD_STATES,
}

COUNTER_FUNCTIONS = ("rate", "increase", "irate")
GAUGE_FUNCTIONS = ("deriv", "delta", "changes")
OVER_TIME = tuple(f"{name}_over_time" for name in ("avg", "max", "min", "sum", "count", "last"))
PLAIN_FUNCTIONS = ("abs", "ceil", "floor", "round", "sort", "sort_desc", "clamp_min", "clamp_max")
AGGREGATIONS = ("sum", "avg", "max", "min", "count", "group", "topk", "bottomk", "quantile")
WITH_NUMBER = ("topk", "bottomk", "quantile")

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<duration>\d+(?:ms|[smhdwy])(?:\d+(?:ms|[smhdwy]))*)
    | (?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
    | (?P<word>[a-zA-Z_]\w*)
    | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<sign>=~|!~|!=|==|<=|>=|[-+*/%^<>=(){}\[\],:])
    )""",
    re.VERBOSE,
)
_LEVELS = (("or",), ("and", "unless"), ("==", "!=", "<=", ">=", "<", ">"), ("+", "-"), ("*", "/", "%"), ("^",))
_VARIABLES = {"$__rate_interval": "1m", "$__interval": "1m", "$__range": "1h"}


class PromQLError(Exception):
    """What is wrong with an expression, in a sentence."""


@dataclass(frozen=True)
class Value:
    """What a part of an expression gives. ``sort`` is number, text, vector (of one moment) or range.

    ``labels`` are those that its series have; ``kind`` is the metric's, and "" once it is computed with.
    """

    sort: str
    labels: frozenset[str] = frozenset()
    kind: str = ""
    metrics: frozenset[str] = frozenset()
    is_bucket: bool = False


def check(expression: str) -> Value:
    """What the expression gives; raises `PromQLError` for what cannot be right."""
    for variable, text in _VARIABLES.items():
        expression = expression.replace(variable, text)
    parser = _Parser(_tokens(expression))
    value = parser.binary(0)
    parser.end()
    return value


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise PromQLError(f"cannot read {text[at : at + 20]!r}")
        assert match.lastgroup is not None
        tokens.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return tokens


def _series() -> dict[str, Value]:
    known = {"up": Value("vector", TARGET_LABELS, "gauge", frozenset({"up"}))}
    for metric in METRICS:
        labels = TARGET_LABELS | frozenset(metric.labels)
        kind = "gauge" if metric.kind == "gauge" else "counter"
        for name in metric.series:
            is_bucket = metric.kind == "histogram" and name.endswith("_bucket")
            own = labels | {"le"} if is_bucket else labels
            known[name] = Value("vector", own, kind, frozenset({metric.name}), is_bucket)
    return known


class _Parser:
    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._at = 0
        self._known = _series()

    def end(self) -> None:
        if self._at < len(self._tokens):
            raise PromQLError(f"{self._tokens[self._at][1]!r} is one too many")

    def binary(self, level: int) -> Value:
        if level == len(_LEVELS):
            return self._unary()
        left = self.binary(level + 1)
        while self._peek() in _LEVELS[level]:
            operator = self._next()
            if operator in _LEVELS[2] and self._peek() == "bool":
                self._next()
            matching = self._matching()
            left = _combined(operator, left, self.binary(level + 1), *matching)
        return left

    def _matching(self) -> tuple[str, frozenset[str], str, frozenset[str]]:
        how, labels, group, extra = "", frozenset[str](), "", frozenset[str]()
        if self._peek() in ("on", "ignoring"):
            how, labels = self._next(), self._names()
            if self._peek() in ("group_left", "group_right"):
                group = self._next()
                extra = self._names() if self._peek() == "(" else extra
        return how, labels, group, extra

    def _unary(self) -> Value:
        if self._peek() in ("-", "+"):
            self._next()
            return self._unary()
        value = self._atom()
        if self._peek() == "[":
            value = self._range(value)
        if self._peek() == "offset":
            self._next()
            self._expect("duration")
        return value

    def _range(self, value: Value) -> Value:
        self._next()
        if value.sort != "vector":
            raise PromQLError("only a vector has a range")
        self._expect("duration")
        if self._peek() == ":":
            self._next()
            if self._peek() != "]":
                self._expect("duration")
        elif not value.kind:
            raise PromQLError("a range of what is computed is written [range:step]")
        self._sign("]")
        return replace(value, sort="range")

    def _atom(self) -> Value:
        sort, text = self._take()
        if sort in ("number", "duration"):
            return Value("number")
        if sort == "string":
            return Value("text")
        if text == "(":
            value = self.binary(0)
            self._sign(")")
            return value
        if sort != "word":
            raise PromQLError(f"{text!r} is not expected here")
        if text in AGGREGATIONS and self._peek() in ("(", "by", "without"):
            return self._aggregation(text)
        if self._peek() == "(":
            return _called(text, self._arguments())
        return self._selector(text)

    def _selector(self, name: str) -> Value:
        value = self._known.get(name)
        if value is None:
            raise PromQLError(f"no metric has the series {name!r}")
        if self._peek() == "{":
            self._next()
            while self._peek() != "}":
                self._matcher(name, value)
                if self._peek() == ",":
                    self._next()
            self._next()
        return value

    def _matcher(self, name: str, value: Value) -> None:
        label = self._expect("word")
        if label not in value.labels:
            raise PromQLError(f"{name} has no label {label!r}")
        operator = self._next()
        if operator not in ("=", "!=", "=~", "!~"):
            raise PromQLError(f"{operator!r} compares no label")
        text = self._expect("string")[1:-1]
        valid = VALUES.get((name, label))
        if valid is not None and "$" not in text:
            given = text.split("|") if operator.endswith("~") else [text]
            for each in given:
                if each not in valid:
                    raise PromQLError(f"label {label!r} of {name} is never {each!r}")

    def _aggregation(self, name: str) -> Value:
        grouping = self._grouping()
        arguments = self._arguments()
        grouping = grouping or self._grouping()
        if name in WITH_NUMBER:
            if len(arguments) != 2 or arguments[0].sort != "number":
                raise PromQLError(f"{name}() takes a number and a vector")
            arguments = arguments[1:]
        if len(arguments) != 1 or arguments[0].sort != "vector":
            raise PromQLError(f"{name}() takes a vector")
        value = arguments[0]
        how, labels = grouping or ("by", frozenset())
        if strangers := labels - value.labels:
            raise PromQLError(f"{name} {how}: there is no label {sorted(strangers)[0]!r}")
        kept = labels if how == "by" else value.labels - labels
        if name in ("topk", "bottomk"):
            return replace(value, kind="")
        return replace(value, labels=kept, kind="", is_bucket=value.is_bucket and name == "sum" and "le" in kept)

    def _grouping(self) -> tuple[str, frozenset[str]] | None:
        if self._peek() not in ("by", "without"):
            return None
        return self._next(), self._names()

    def _names(self) -> frozenset[str]:
        self._sign("(")
        names = []
        while self._peek() != ")":
            names.append(self._expect("word"))
            if self._peek() == ",":
                self._next()
        self._next()
        return frozenset(names)

    def _arguments(self) -> list[Value]:
        self._sign("(")
        arguments = []
        while self._peek() != ")":
            arguments.append(self.binary(0))
            if self._peek() != ")":
                self._sign(",")
        self._next()
        return arguments

    def _peek(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _take(self) -> tuple[str, str]:
        if self._at >= len(self._tokens):
            raise PromQLError("it ends too early")
        self._at += 1
        return self._tokens[self._at - 1]

    def _next(self) -> str:
        return self._take()[1]

    def _expect(self, sort: str) -> str:
        found, text = self._take()
        if found != sort:
            raise PromQLError(f"{text!r} is no {sort}")
        return text

    def _sign(self, sign: str) -> None:
        text = self._next()
        if text != sign:
            raise PromQLError(f"{text!r} stands where {sign!r} belongs")


def _called(name: str, arguments: list[Value]) -> Value:
    sorts = [argument.sort for argument in arguments]
    if name == "time" and not sorts:
        return Value("number")
    if name == "vector" and sorts == ["number"]:
        return Value("vector")
    if name in (*COUNTER_FUNCTIONS, *GAUGE_FUNCTIONS, *OVER_TIME):
        if sorts != ["range"]:
            raise PromQLError(f"{name}() takes a range, as in metric[5m]")
        return _over_time(name, arguments[0])
    if name == "histogram_quantile":
        if sorts != ["number", "vector"]:
            raise PromQLError("histogram_quantile() takes a number and a vector")
        buckets = arguments[1]
        if not buckets.is_bucket or "le" not in buckets.labels:
            raise PromQLError("histogram_quantile() takes buckets, with their label le")
        if buckets.kind:
            raise PromQLError(
                "histogram_quantile() over the whole run says nothing of now: take the buckets' rate()"
            )
        return replace(buckets, labels=buckets.labels - {"le"}, is_bucket=False)
    if name in PLAIN_FUNCTIONS and sorts and sorts[0] == "vector":
        return replace(arguments[0], kind="")
    raise PromQLError(f"{name}() is not known here, or not with {', '.join(sorts) or 'nothing'}")


def _over_time(name: str, value: Value) -> Value:
    if value.kind == "gauge" and name in COUNTER_FUNCTIONS:
        raise PromQLError(f"{name}() is for counters, {', '.join(value.metrics)} is a gauge")
    if value.kind == "counter" and name not in COUNTER_FUNCTIONS:
        raise PromQLError(f"{name}() is for gauges, {', '.join(value.metrics)} is a counter")
    if not value.kind and name in COUNTER_FUNCTIONS:
        raise PromQLError(f"{name}() comes before everything else, or restarts of a process count as drops")
    return replace(value, sort="vector", kind="")


def _combined(
    operator: str, left: Value, right: Value, how: str, labels: frozenset[str], group: str, extra: frozenset[str]
) -> Value:
    vectors = [value for value in (left, right) if value.sort == "vector"]
    if any(value.sort in ("text", "range") for value in (left, right)):
        raise PromQLError(f"{operator!r} is between numbers and vectors")
    if len(vectors) < 2:
        if operator in ("and", "or", "unless"):
            raise PromQLError(f"{operator!r} is between vectors")
        return replace(vectors[0], kind="", is_bucket=False) if vectors else Value("number")
    if how == "on" and not (labels <= left.labels and labels <= right.labels):
        raise PromQLError(f"on({', '.join(sorted(labels))}): both sides need these labels")
    here, there = (value.labels & labels if how == "on" else value.labels - labels for value in (left, right))
    if here != there and operator != "or":
        raise PromQLError(f"{operator!r} never matches: {sorted(here)} on the left, {sorted(there)} right")
    one, many = (right, left) if group != "group_right" else (left, right)
    if not extra <= one.labels:
        raise PromQLError(f"{group}: the other side has no label {sorted(extra - one.labels)[0]!r}")
    kept = many.labels | extra if group or operator in ("and", "or", "unless") else here
    return Value("vector", frozenset(kept), "", left.metrics | right.metrics)
