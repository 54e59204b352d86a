"""The pattern language: what AWS was recorded to match and to refuse, a row for each fact."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import UserError
from engine.filters import PATTERN_CHARACTERS_MAX, InvalidPattern, Pattern
from engine.filters.evaluate import leaves, matches
from engine.filters.json_text import parse
from engine.filters.numbers import Number
from engine.filters.pattern import BRANCHES_MAX, RESERVED
from tests.unit.filter_worlds import NUMBERS, STRINGS

AWS = "InvalidParameterValueException: Invalid filter pattern definition."

#: Rules for the field x, its value (None: the event has no x), whether it matches.
ONE_FIELD = [
    # equals
    ('["a"]', '"a"', True),
    ('["a"]', '"A"', False),
    ('["a"]', '"ab"', False),
    ('["\\u00e9"]', '"\u00e9"', True),
    ('["\\u00e9"]', '"e\u0301"', False),  # no normalisation
    ('["a","b"]', '"b"', True),
    ('[""]', '""', True),
    ('[""]', "null", False),
    ('[""]', None, False),
    ('["300"]', "300", False),
    ("[300]", '"300"', False),
    ("[300]", "300", True),
    ("[300]", "300.0", True),  # recorded, against AWS's documents
    ("[300]", "3.0e2", True),
    ("[300.0]", "300", True),
    ("[300]", "301", False),
    ("[0]", "-0.0", True),
    ("[0.1]", "0.10", True),
    ("[0.1]", "0.1000000000000000055511151231257827", False),
    ("[9007199254740992]", "9007199254740993", False),  # one double, two numbers
    ("[12345678901234567891]", "12345678901234567891", True),
    ("[12345678901234567891]", "12345678901234567892", False),
    ("[1e400]", "1e400", True),
    ("[1e400]", "1e401", False),
    ("[true]", "true", True),
    ("[true]", "false", False),
    ("[true]", '"true"', False),
    ("[true]", "1", False),
    ("[1]", "true", False),
    ("[false]", "0", False),
    # null
    ("[null]", "null", True),
    ("[null]", '"null"', False),
    ("[null]", '""', False),
    ("[null]", "[]", False),
    ("[null]", "[null]", True),
    ("[null]", None, False),
    # exists
    ('[{"exists":true}]', "null", True),
    ('[{"exists":true}]', '""', True),
    ('[{"exists":true}]', "[1]", True),
    ('[{"exists":true}]', "[]", False),
    ('[{"exists":true}]', "{}", False),
    ('[{"exists":true}]', '{"y":1}', False),  # an object is no leaf
    ('[{"exists":true}]', None, False),
    ('[{"exists":false}]', None, True),
    ('[{"exists":false}]', '{"y":1}', True),
    ('[{"exists":false}]', "[]", True),
    ('[{"exists":false}]', "null", False),
    ('[{"exists":false},"a"]', '"a"', True),
    ('[{"exists":false},"a"]', '"b"', False),
    # prefix and suffix
    ('[{"prefix":"ab"}]', '"abc"', True),
    ('[{"prefix":"ab"}]', '"ab"', True),
    ('[{"prefix":"ab"}]', '"a"', False),
    ('[{"prefix":"ab"}]', '"Abc"', False),
    ('[{"prefix":""}]', '""', True),
    ('[{"prefix":""}]', '"x"', True),
    ('[{"prefix":""}]', "1", False),
    ('[{"prefix":"1"}]', "12", False),
    ('[{"prefix":{"equals-ignore-case":"AB"}}]', '"abc"', True),
    ('[{"prefix":{"equals-ignore-case":"AB"}}]', '"bab"', False),
    ('[{"suffix":"bc"}]', '"abc"', True),
    ('[{"suffix":"bc"}]', '"abcd"', False),
    ('[{"suffix":""}]', '"abc"', True),
    ('[{"suffix":"c"}]', "null", False),
    ('[{"suffix":{"equals-ignore-case":"BC"}}]', '"abc"', True),
    ('[{"suffix":{"equals-ignore-case":"BC"}}]', '"x\\nabc"', True),
    ('[{"suffix":{"equals-ignore-case":"BC"}}]', '"abcd"', False),
    # equals-ignore-case
    ('[{"equals-ignore-case":"aBc"}]', '"AbC"', True),
    ('[{"equals-ignore-case":"aBc"}]', '"abcd"', False),
    ('[{"equals-ignore-case":"a.c"}]', '"abc"', False),
    ('[{"equals-ignore-case":"ÄÖ"}]', '"äÖ"', True),
    ('[{"equals-ignore-case":""}]', '""', True),
    ('[{"equals-ignore-case":""}]', '"a"', False),
    ('[{"equals-ignore-case":"null"}]', "null", False),
    # anything-but
    ('[{"anything-but":"a"}]', '"b"', True),
    ('[{"anything-but":"a"}]', '"a"', False),
    ('[{"anything-but":"a"}]', "1", True),
    ('[{"anything-but":"a"}]', "null", True),  # recorded
    ('[{"anything-but":"a"}]', None, False),  # recorded
    ('[{"anything-but":"a"}]', "[]", False),
    ('[{"anything-but":"a"}]', '["a","b"]', True),
    ('[{"anything-but":"a"}]', '["a"]', False),
    ('[{"anything-but":["a","b"]}]', '"b"', False),
    ('[{"anything-but":["a","b"]}]', '"c"', True),
    ('[{"anything-but":1}]', "1.0", False),
    ('[{"anything-but":1}]', "2", True),
    ('[{"anything-but":0}]', "1", True),
    ('[{"anything-but":[1,2]}]', "2", False),
    ('[{"anything-but":[1,2]}]', '"2"', True),
    ('[{"anything-but":{"prefix":"in"}}]', '"init"', False),
    ('[{"anything-but":{"prefix":"in"}}]', '"out"', True),
    ('[{"anything-but":{"prefix":["in","te"]}}]', '"test"', False),
    ('[{"anything-but":{"prefix":["in","te"]}}]', "12", True),
    ('[{"anything-but":{"prefix":"in"}}]', "null", True),
    ('[{"anything-but":{"prefix":"in"}}]', None, False),
    ('[{"anything-but":{"suffix":"ng"}}]', '"going"', False),
    ('[{"anything-but":{"suffix":["ng","st"]}}]', '"gone"', True),
    ('[{"anything-but":{"equals-ignore-case":"Init"}}]', '"INIT"', False),
    ('[{"anything-but":{"equals-ignore-case":["Init","x"]}}]', '"X"', False),
    ('[{"anything-but":{"equals-ignore-case":["Init","x"]}}]', "null", True),
    ('[{"anything-but":{"wildcard":"*/lib/*"}}]', '"a/lib/b"', False),
    ('[{"anything-but":{"wildcard":["*/lib/*","*.c"]}}]', '"b.c"', False),
    ('[{"anything-but":{"wildcard":"*/lib/*"}}]', '"a/bin/b"', True),
    ('[{"anything-but":{"wildcard":""}}]', '"a"', True),
    ('[{"anything-but":{"wildcard":""}}]', '""', False),
    # wildcard
    ('[{"wildcard":"a*"}]', '"a"', True),
    ('[{"wildcard":"a*b"}]', '"a\\nxb"', True),
    ('[{"wildcard":"a*b"}]', '"axbx"', False),
    ('[{"wildcard":"ab*ba"}]', '"aba"', False),
    ('[{"wildcard":"*a*b*"}]', '"xaxxb"', True),
    ('[{"wildcard":"*a*b*"}]', '"xbxa"', False),
    ('[{"wildcard":"*ab*ab"}]', '"abab"', True),
    ('[{"wildcard":"*ab*ab"}]', '"xab"', False),
    ('[{"wildcard":"a"}]', '"a"', True),
    ('[{"wildcard":"a"}]', '"ab"', False),
    ('[{"wildcard":"*"}]', '""', True),
    ('[{"wildcard":"*"}]', "1", False),
    ('[{"wildcard":"a\\\\*b"}]', '"a*b"', True),
    ('[{"wildcard":"a\\\\*b"}]', '"axb"', False),
    ('[{"wildcard":"a\\\\\\\\b"}]', '"a\\\\b"', True),
    ('[{"wildcard":"\\\\**"}]', '"*x"', True),
    ('["a*"]', '"ab"', False),
    # cidr
    ('[{"cidr":"10.0.0.0/24"}]', '"10.0.0.255"', True),
    ('[{"cidr":"10.0.0.0/24"}]', '"10.0.1.0"', False),
    ('[{"cidr":"10.0.0.0/24"}]', '"host"', False),
    ('[{"cidr":"10.0.0.0/24"}]', '"10.0.0.256"', False),
    ('[{"cidr":"10.0.0.0/24"}]', "10", False),
    ('[{"cidr":"10.0.0.5/24"}]', '"10.0.0.4"', False),  # from the address on
    ('[{"cidr":"10.0.0.5/24"}]', '"10.0.0.6"', True),
    ('[{"cidr":"0.0.0.0/0"}]', '"255.255.255.255"', True),
    ('[{"cidr":"0.0.0.0/0"}]', '"::1"', False),
    ('[{"cidr":"2001:db8::/32"}]', '"2001:db8:0:0:0:0:0:1"', True),
    ('[{"cidr":"2001:db8::/32"}]', '"2001:db9::1"', False),
    ('[{"cidr":"2001:db8::/32"}]', '"2001:db8::1%eth0"', False),
    # numeric
    ('[{"numeric":["=",5]}]', "5.0", True),
    ('[{"numeric":["=",5]}]', "6", False),
    ('[{"numeric":["<",5]}]', "4.999", True),
    ('[{"numeric":["<",5]}]', "5", False),
    ('[{"numeric":["<=",5]}]', "5", True),
    ('[{"numeric":[">",5]}]', "5", False),
    ('[{"numeric":[">=",5]}]', "5", True),
    ('[{"numeric":[">=",5]}]', "1e400", True),
    ('[{"numeric":[">",0,"<=",5]}]', "5", True),
    ('[{"numeric":[">",0,"<=",5]}]', "0", False),
    ('[{"numeric":[">=",-5,"<",5]}]', "-5", True),
    ('[{"numeric":[">=",-5,"<",5]}]', "5", False),
    ('[{"numeric":["<",5]}]', '"4"', False),
    ('[{"numeric":["<",5]}]', "null", False),
    ('[{"numeric":["<",5]}]', "[7,3]", True),
    # several operators in one list: any of them
    ('["a",{"prefix":"b"},{"numeric":[">",1]}]', "2", True),
    ('["a",{"prefix":"b"},{"numeric":[">",1]}]', '"bc"', True),
    ('["a",{"prefix":"b"},{"numeric":[">",1]}]', '"c"', False),
    ('[{"exactly":"a"}]', '"a"', True),
    # arrays: any element, however deep
    ('["a"]', '["b","a"]', True),
    ('["a"]', '[["b"],[["a"]]]', True),
    ('["a"]', '["b"]', False),
    ('["a"]', "[]", False),
    # JSON in a string is a string
    ('["{\\"y\\":1}"]', '"{\\"y\\":1}"', True),
]

#: Pattern, event, whether it matches.
EVENTS = [
    ('{"a":["x"],"b":["y"]}', '{"a":"x","b":"y"}', True),
    ('{"a":["x"],"b":["y"]}', '{"a":"x"}', False),
    ('{"a":["x"]}', '{"A":"x"}', False),
    ('{"a":{"b":["x"]}}', '{"a":{"b":"x","c":1}}', True),
    ('{"a":{"b":["x"]}}', '{"a":"x"}', False),
    ('{"a":{"b":[1]}}', '{"a":"{\\"b\\":1}"}', False),
    # missing parents
    ('{"a":{"b":[{"exists":false}]}}', "{}", True),
    ('{"a":{"b":[{"exists":false}]}}', '{"a":1}', True),
    ('{"a":{"b":[{"exists":false}]}}', '{"a":{"b":null}}', False),
    # dotted names
    ('{"a":{"b":["x"]}}', '{"a.b":"x"}', True),
    ('{"a.b":["x"]}', '{"a":{"b":"x"}}', True),
    ('{"a.b":["x"]}', '{"a":"x"}', False),
    ('{"a":{"b.c":["x"]}}', '{"a.b":{"c":"x"}}', True),
    ('{"a.b":["x"]}', '{"a":{"b":"y"},"a.b":"x"}', True),
    # keys that stand twice
    ('{"a":["x"],"a":["y"]}', '{"a":"y"}', True),
    ('{"a":["x"],"a":["y"]}', '{"a":"x"}', False),
    ('{"a":{"b":["x"]},"a":{"b":["y"]}}', '{"a":{"b":"x"}}', False),
    ('{"a":["x"]}', '{"a":"x","a":"y"}', False),
    # array-consistent matching
    ('{"a":{"b":[1],"c":[2]}}', '{"a":[{"b":1,"c":2}]}', True),
    ('{"a":{"b":[1],"c":[2]}}', '{"a":[{"b":1,"c":3},{"b":4,"c":2}]}', False),
    ('{"a":{"b":[1],"c":[2]}}', '{"a":[{"b":1,"c":3},{"b":1,"c":2}]}', True),
    ('{"a":{"b":[1]},"d":{"c":[2]}}', '{"a":[{"b":1},{"b":3}],"d":[{"c":1},{"c":2}]}', True),
    ('{"a":{"b":{"x":[1],"y":[2]}}}', '{"a":[{"b":[{"x":1},{"y":2}]}]}', False),
    ('{"a":{"b":{"x":[1]},"c":[3]}}', '{"a":[{"b":[{"x":1}],"c":2},{"b":[{"x":2}],"c":3}]}', False),
    ('{"a":{"b":{"x":[1]},"c":[3]}}', '{"a":[{"b":[{"x":2},{"x":1}],"c":3}]}', True),
    ('{"a":{"b":[1],"c":[{"exists":false}]}}', '{"a":[{"b":1},{"b":2,"c":5}]}', True),
    ('{"a":{"b":[1],"c":[{"exists":false}]}}', '{"a":[{"b":1,"c":5},{"b":2}]}', False),
    ('{"a":["x"],"a.b":[2]}', '{"a":["x",{"b":2}]}', True),
    ('{"a":{"b":[1],"c":[2]},"d":[1]}', '{"a":[[{"b":1,"c":2}]],"d":1}', True),
    ('{"a":{"b":[1],"c":[2]}}', '{"a":[[{"b":1}],[{"c":2}]]}', False),
    # $or
    ('{"$or":[{"a":[1]},{"b":[2]}]}', '{"b":2}', True),
    ('{"$or":[{"a":[1]},{"b":[2]}]}', '{"a":2,"b":1}', False),
    ('{"c":[3],"$or":[{"a":[1]},{"b":[2]}]}', '{"a":1}', False),
    ('{"c":[3],"$or":[{"a":[1]},{"b":[2]}]}', '{"a":1,"c":3}', True),
    ('{"$or":[{"a":[1]},{"b":[2]}],"c":[3]}', '{"a":1}', False),
    ('{"d":{"$or":[{"a":[1]},{"b":[2]}]}}', '{"d":{"b":2}}', True),
    ('{"d":{"$or":[{"a":[1]},{"b":[2]}]}}', '{"b":2}', False),
    ('{"$or":[{"a":[1],"$or":[{"x":[1]},{"y":[1]}]},{"b":[2]}]}', '{"a":1,"y":1}', True),
    ('{"$or":[{"a":[1],"$or":[{"x":[1]},{"y":[1]}]},{"b":[2]}]}', '{"a":1}', False),
    ('{"$or":[{"a":[{"exists":false}]},{"b":[2]}]}', "{}", True),
    ('{"$or":[{"a":[1]},{"b":[2]}],"c":[3],"d":{"$or":[{"e":[4]},{"f":[5]}]}}', '{"b":2,"c":3,"d":{"f":5}}', True),
    # ... and where it is only a name
    ('{"$or":["x"]}', '{"$or":"x"}', True),
    ('{"$or":[{"prefix":"x"},{"suffix":"y"}]}', '{"$or":"xz"}', True),
    ('{"$or":{"a":[1]}}', '{"$or":{"a":1}}', True),
    # what an $or asks of a path again counts instead, as in event-ruler
    ('{"a":[1],"$or":[{"a":[2]},{"b":[1]}]}', '{"a":2}', True),
    # DynamoDB's numbers are strings
    ('{"dynamodb":{"Keys":{"Id":{"N":["101"]}}}}', '{"dynamodb":{"Keys":{"Id":{"N":"101"}}}}', True),
    (
        '{"dynamodb":{"Keys":{"Id":{"N":[{"numeric":["=",101]}]}}}}',
        '{"dynamodb":{"Keys":{"Id":{"N":"101"}}}}',
        False,
    ),
]

#: Pattern, and what its refusal says after AWS's words.
REFUSED = [
    ('{"a":"x"}', '"a" must be an object or an array'),
    ('{"a":1}', '"a" must be an object or an array'),
    ('{"a":null}', '"a" must be an object or an array'),
    ('{"a":[]}', "Empty arrays are not allowed"),
    ('{"a":{}}', "Empty objects are not allowed"),
    ("{}", "Empty objects are not allowed"),
    ("[]", "Filter is not an object"),
    ('"a"', "Filter is not an object"),
    ("", "not JSON"),
    ("{", "not JSON"),
    ("{'a':[1]}", "not JSON"),
    ('{"a":[NaN]}', "not JSON"),
    ('{"a":[1]} x', "not JSON"),
    ('{"a":[["x"]]}', "Match value must be String"),
    ('{"a":[{}]}', "Match expression name not found"),
    ('{"a":[{"EXISTS":true}]}', "Unrecognized match type EXISTS"),
    ('{"a":[{"NUMERIC":["=",5]}]}', "Unrecognized match type NUMERIC"),
    ('{"a":[{"prefix":"x","suffix":"y"}]}', "Only one key allowed"),
    ('{"a":[{"prefix":"x","prefix":"y"}]}', "Only one key allowed"),
    ('{"a":[{"exists":"true"}]}', "exists match pattern must be either true or false"),
    ('{"a":[{"prefix":1}]}', "prefix match pattern must be a string"),
    ('{"a":[{"prefix":["x"]}]}', "prefix match pattern must be a string"),
    ('{"a":[{"prefix":{"prefix":"x"}}]}', "Unsupported prefix pattern: prefix"),
    ('{"a":[{"prefix":{}}]}', "Prefix expression name not found"),
    ('{"a":[{"suffix":{"equals-ignore-case":1}}]}', "equals-ignore-case match pattern must be a string"),
    ('{"a":[{"suffix":{"equals-ignore-case":"x","y":1}}]}', "Only one key allowed"),
    ('{"a":[{"equals-ignore-case":["x"]}]}', "equals-ignore-case match pattern must be a string"),
    ('{"a":[{"equals-ignore-case":{"prefix":"x"}}]}', "equals-ignore-case match pattern must be a string"),
    ('{"a":[{"anything-but":null}]}', "Value of anything-but must be an array or single string/number value"),
    ('{"a":[{"anything-but":true}]}', "Value of anything-but must be"),
    ('{"a":[{"anything-but":["x",null]}]}', "Inside anything but list, start|null|boolean is not supported"),
    ('{"a":[{"anything-but":["x",1]}]}', "mixed type is not supported"),
    ('{"a":[{"anything-but":[]}]}', "either all values are number or string"),
    ('{"a":[{"anything-but":{}}]}', "Anything-But expression name not found"),
    ('{"a":[{"anything-but":{"numeric":["=",1]}}]}', "Unsupported anything-but pattern: numeric"),
    ('{"a":[{"anything-but":{"prefix":"x","suffix":"y"}}]}', "Only one key allowed"),
    ('{"a":[{"anything-but":{"prefix":""}}]}', "Null prefix/suffix not allowed"),
    ('{"a":[{"anything-but":{"suffix":["x",""]}}]}', "Null prefix/suffix not allowed"),
    ('{"a":[{"anything-but":{"prefix":[]}}]}', "Empty arrays are not allowed"),
    ('{"a":[{"anything-but":{"prefix":1}}]}', "prefix/suffix match pattern must be a string"),
    ('{"a":[{"anything-but":{"prefix":{"equals-ignore-case":"x"}}}]}', "prefix/suffix match pattern must be"),
    ('{"a":[{"anything-but":{"equals-ignore-case":123}}]}', "Inside anything-but/equals-ignore-case list"),
    ('{"a":[{"anything-but":{"wildcard":[1]}}]}', "wildcard match pattern must be a string"),
    ('{"a":[{"anything-but":{"wildcard":"**"}}]}', "Consecutive wildcard characters at pos 0"),
    ('{"a":[{"wildcard":1}]}', "wildcard match pattern must be a string"),
    ('{"a":[{"wildcard":"a**b"}]}', "Consecutive wildcard characters at pos 1"),
    ('{"a":[{"wildcard":"a\\\\b"}]}', "Invalid escape character at pos 1"),
    ('{"a":[{"wildcard":"a\\\\"}]}', "Invalid escape character at pos 1"),
    ('{"a":[{"cidr":"10.0.0.0"}]}', "Malformed CIDR, one '/' required"),
    ('{"a":[{"cidr":"10.0.0.0/1/2"}]}', "Malformed CIDR, one '/' required"),
    ('{"a":[{"cidr":"10.0.0.0/x"}]}', "mask bits must be an integer"),
    ('{"a":[{"cidr":"10.0.0.0/-1"}]}', "mask bits must be an integer"),
    ('{"a":[{"cidr":"10.0.0.0/32"}]}', "IPv4 mask bits must be < 32"),
    ('{"a":[{"cidr":"::/128"}]}', "IPv6 mask bits must be < 128"),
    ('{"a":[{"cidr":"bad/24"}]}', "Nonstandard IP address: bad"),
    ('{"a":[{"cidr":["10.0.0.0/8"]}]}', "cidr match pattern must be a string"),
    ('{"a":[{"numeric":5}]}', "Value of numeric must be an array"),
    ('{"a":[{"numeric":{"=":5}}]}', "Value of numeric must be an array"),
    ('{"a":[{"numeric":[]}]}', "Invalid member in numeric match"),
    ('{"a":[{"numeric":[5]}]}', "Invalid member in numeric match"),
    ('{"a":[{"numeric":["=="  ,5]}]}', "Unrecognized numeric range operator: =="),
    ('{"a":[{"numeric":["="]}]}', "Value of equals must be numeric"),
    ('{"a":[{"numeric":["=","5"]}]}', "Value of equals must be numeric"),
    ('{"a":[{"numeric":["=",5,6]}]}', "Too many elements in numeric expression"),
    ('{"a":[{"numeric":["<",5,">",1]}]}', "Too many elements in numeric expression"),  # the lower bound comes first
    ('{"a":[{"numeric":[">",0,">",1]}]}', "Bad numeric range operator: >"),
    ('{"a":[{"numeric":[">",0,"<"]}]}', "Value of < must be numeric"),
    ('{"a":[{"numeric":[">",0,5]}]}', "Bad value in numeric range"),
    ('{"a":[{"numeric":[">",0,"<",5,"<",6]}]}', "Too many terms in numeric range expression"),
    ('{"a":[{"numeric":[">",5,"<",5]}]}', "Bottom must be less than top"),
    ('{"a":[{"numeric":[">",6,"<",5]}]}', "Bottom must be less than top"),
    ('{"$or":[{"a":[1]}]}', "Unrecognized match type a"),  # one object is no choice
    ('{"$or":[{"a":[1]},{"prefix":["x"]}]}', "Unrecognized match type a"),
    ('{"$or":[{"a":[1]},{}]}', "Empty objects are not allowed"),
    ('{"$or":[{"a":[1]},{"b":2}]}', '"b" must be an object or an array'),
    ('{"$or":[{"a":[1]},"x"]}', "Unrecognized match type a"),
    ('{"$or":[]}', "Empty arrays are not allowed"),
]


def holds(pattern: str, event: str) -> bool:
    return matches(Pattern.of(pattern), parse(event))


@pytest.mark.parametrize(("rules", "value", "expected"), ONE_FIELD)
def test_operators(rules: str, value: str | None, expected: bool) -> None:
    """What a list of rules takes, at the top and inside of an object."""
    event = "{}" if value is None else f'{{"x":{value}}}'
    assert holds(f'{{"x":{rules}}}', event) is expected
    assert holds(f'{{"d":{{"x":{rules}}}}}', f'{{"d":{event}}}') is expected


@pytest.mark.parametrize(("pattern", "event", "expected"), EVENTS)
def test_events(pattern: str, event: str, expected: bool) -> None:
    """What patterns of several fields take."""
    assert holds(pattern, event) is expected


@pytest.mark.parametrize(("pattern", "reason"), REFUSED)
def test_refused(pattern: str, reason: str) -> None:
    """An invalid pattern is refused with AWS's words, then the reason, and a hint that shows it."""
    with pytest.raises(InvalidPattern) as caught:
        Pattern.of(pattern)
    assert isinstance(caught.value, UserError)
    assert caught.value.message.startswith(AWS + " ")
    assert reason in caught.value.message
    assert caught.value.hint is not None
    assert pattern in caught.value.hint


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_words_make_or_a_name(name: str) -> None:
    """With a word of the language as a key, ``$or`` is no choice but a field, whose objects are operators."""
    with pytest.raises(InvalidPattern, match="Unrecognized match type a"):
        Pattern.of(f'{{"$or":[{{"a":["x"]}},{{"{name}":[true]}}]}}')


def test_limits() -> None:
    """A pattern has so many characters, so many combinations and so many levels at most, each refused by name."""
    filled = '{"a":["' + "x" * (PATTERN_CHARACTERS_MAX - 10) + '"]}'
    assert len(filled) == PATTERN_CHARACTERS_MAX
    Pattern.of(filled)
    with pytest.raises(InvalidPattern, match=r"4,097 characters; at most 4,096"):
        Pattern.of(filled + " ")
    ten = ",".join(f'{{"a{at}":[1]}}' for at in range(10))
    cubed = "{" + ",".join(f'"x{at}":{{"$or":[{ten}]}}' for at in range(3)) + "}"
    assert len(Pattern.of(cubed).branches) == BRANCHES_MAX
    with pytest.raises(InvalidPattern, match="more than 1,000 combinations"):
        Pattern.of(cubed[:-1] + f',"y":{{"$or":[{ten}]}}}}')
    deep = '{"a":' * 600 + "[1]" + "}" * 600
    with pytest.raises(InvalidPattern, match="more than 500 levels"):
        Pattern.of(deep)
    assert len(Pattern.of('{"a":' * 490 + "[1]" + "}" * 490).branches) == 1


def test_large_arrays_take_no_squares() -> None:
    """Conditions on one large array are matched element by element, not each against each."""
    elements = [{"b": 1, "c": 3, "d": {"e": at}} for at in range(5000)]
    event = parse(json.dumps({"a": [*elements, {"b": 1, "c": 2, "d": {"e": 1}}], "z": list(range(5000))}))
    begun = time.process_time()
    pattern = Pattern.of('{"a":{"b":[1],"c":[2],"d":{"e":[1]},"f":[{"exists":false}]},"z":[{"exists":true}]}')
    assert matches(pattern, event)
    assert not matches(Pattern.of('{"a":{"b":[1],"c":[2],"d":{"e":[2]}}}'), event)
    assert time.process_time() - begun < 5


def test_deep_arrays_are_matched() -> None:
    """Objects in arrays in arrays, as deep as JSON may be, are matched without a frame for each level."""
    inner = '{"b":1,"c":2}'
    event = '{"a":' + "[" * 490 + inner + "]" * 490 + "}"
    assert holds('{"a":{"b":[1],"c":[2],"d":[{"exists":false}]}}', event)
    assert not holds('{"a":{"b":[1],"c":[3]}}', event)


@pytest.mark.parametrize("tail", ['"', '"' + '\\"' * 500_000, '"x"' * 300_000, '"' + "\\" * 999_999])
def test_depth_is_found_in_one_pass(tail: str) -> None:
    """Text that is no JSON is found to be none in a time that grows with its length alone."""
    begun = time.process_time()
    with pytest.raises(ValueError, match="Extra data"):
        parse("[" * 400 + "]" * 400 + "[" * 300 + tail)
    assert time.process_time() - begun < 3


def test_wildcards_take_no_powers() -> None:
    """Many stars on a long string that does not match are decided at once."""
    pattern = Pattern.of('{"x":[{"wildcard":"' + "*a" * 1000 + 'b"}]}')
    begun = time.process_time()
    assert not matches(pattern, {"x": "a" * 100_000})
    assert time.process_time() - begun < 5


def test_plain_numbers_of_python() -> None:
    """Events made in Python, with int and float, match like those parsed from JSON; other things are refused."""
    pattern = Pattern.of('{"x":[{"numeric":[">",1]}],"y":[300]}')
    assert matches(pattern, {"x": 1.5, "y": 300})
    assert not matches(pattern, {"x": 1, "y": 300.0})
    assert matches(pattern, {"x": [True, 2], "y": (300.0,)})
    with pytest.raises(TypeError, match="bytes is no value of JSON"):
        matches(pattern, {"x": b"1", "y": 300})


@given(st.sampled_from(NUMBERS), st.sampled_from(NUMBERS))
def test_equal_numbers_are_alike(one: str, other: str) -> None:
    """Equality of numbers goes both ways, and is that of their values where both are exact."""
    left, right = Number(one), Number(other)
    assert left.same(right) == right.same(left)
    assert left.same(Number(one))
    if left.exact and right.exact:
        assert left.same(right) == (float(one) == float(other))
    else:
        assert left.same(right) == (one == other)


@given(st.sampled_from(STRINGS), st.sampled_from(STRINGS))
def test_wildcards_are_regular_expressions(pattern: str, text: str) -> None:
    """A wildcard between two texts takes what starts with one, ends with the other, and has room for both."""
    rules: Any = json.dumps([{"wildcard": pattern.replace("\\", "\\\\").replace("*", "\\*") + "*" + "x"}])
    expected = text.startswith(pattern) and text.endswith("x") and len(text) >= len(pattern) + 1
    assert matches(Pattern.of(f'{{"x":{rules}}}'), {"x": text}) is expected


def test_leaves_of_nested_arrays() -> None:
    """A leaf knows the elements that it lies in, from the outside; scalars of an array lie in none of it."""
    found = leaves({"a": [1, {"b": [2, [3]]}]}, ["a", "a.b"])
    assert [membership for _, membership in found["a"]] == [()]
    assert sorted(len(membership) for _, membership in found["a.b"]) == [1, 2]
