"""Rows on filters: where payloads stand, what does not fit, and the pattern language. Not here: other settings."""

# ruff: noqa: E501  # rows are sentences

from __future__ import annotations

from tests.conformance.lambda_row import SAME, Row, Section, Source, at, differs, unverifiable

_RULES = "unit/filter_pattern::operators"
_EVENTS = "unit/filter_pattern::events"
_REFUSED = "unit/filter_pattern::refused"
_BOTH = "unit/filter_columnar::both_ways_keep_the_same_records"
_KINESIS = "unit/filter_criteria::table_of_kinesis"
_KAFKA = "unit/filter_criteria::table_of_kafka"
_DYNAMODB = "unit/filter_criteria::dynamodb_patterns_see_the_whole_record"
_PLAIN = "unit/filter_criteria::plain_strings_are_refused_for_json_sources"
_CHOOSE = "conformance/lambda_mapping::filters_choose_before_records_are_counted"

DATA = Section(
    "Filters: where data stand, and what does not fit",
    (
        Row(
            "filter-kinesis-data",
            "In a pattern `data` is a Kinesis record's payload, decoded from base64 and parsed as JSON.",
            "documented",
            SAME,
            at(_KINESIS, "unit/filter_criteria::files_are_judged_like_batches"),
        ),
        Row(
            "filter-kinesis-metadata",
            "Metadata of Kinesis records, such as the partition key: older documents filter by them, present ones do not.",
            "unknown",
            differs("they can be asked for"),
            at("unit/filter_criteria::metadata", "unit/filter_criteria::metadata_are_those_of_the_event"),
        ),
        Row(
            "filter-kafka-value",
            "In a pattern `value` is a Kafka record's value as UTF-8, parsed as JSON if it is some.",
            "documented",
            SAME,
            at(_KAFKA),
        ),
        Row(
            "filter-kafka-metadata",
            "Keys and other metadata of Kafka records: older documents filter by them, present ones do not.",
            "unknown",
            differs("they can be asked for"),
            at("unit/filter_criteria::metadata", "unit/filter_criteria::metadata_are_those_of_the_event"),
        ),
        Row(
            "filter-dynamodb-record",
            "In a pattern `dynamodb` is the change, nested, beside metadata such as `eventName`.",
            "documented",
            SAME,
            at(_DYNAMODB),
        ),
        Row(
            "filter-dynamodb-time",
            "The creation time is a number for patterns, however it is spelt.",
            "recorded",
            SAME,
            at(_DYNAMODB, "unit/filter_criteria::the_time_of_a_dynamodb_record_may_be_text"),
        ),
        Row(
            "filter-dynamodb-numbers",
            "Attributes of type N are strings, so that `numeric` never matches them.",
            "recorded",
            SAME,
            at(_DYNAMODB, _EVENTS),
        ),
        Row(
            "filter-record-unchanged",
            "A function gets the record as it was, still in base64: filters choose, and change nothing.",
            "documented",
            SAME,
            at("conformance/lambda_mapping::what_is_delivered_is_the_record_as_it_was"),
        ),
        Row(
            "filter-streams-json-json",
            "Kinesis and DynamoDB, JSON and a pattern of objects: the data are filtered.",
            "documented",
            SAME,
            at(_KINESIS, _DYNAMODB),
        ),
        Row(
            "filter-streams-json-none",
            "Kinesis and DynamoDB, JSON and no pattern on the data: metadata alone are looked at.",
            "documented",
            SAME,
            at(_KINESIS),
        ),
        Row(
            "filter-streams-text-json",
            "Kinesis and DynamoDB, no JSON and a pattern of objects: the record is let go.",
            "documented",
            SAME,
            at(_KINESIS, _DYNAMODB),
        ),
        Row(
            "filter-streams-text-none",
            "Kinesis and DynamoDB, no JSON and no pattern on the data: metadata alone are looked at.",
            "documented",
            SAME,
            at(_KINESIS),
        ),
        Row(
            "filter-streams-plain",
            "Kinesis and DynamoDB: a list of plain values as the pattern of the data is refused when it is set.",
            "documented",
            SAME,
            at(_PLAIN),
        ),
        Row(
            "filter-kafka-plain-plain",
            "Kafka, a plain string and a list of plain values: the value is filtered.",
            "documented",
            SAME,
            at(_KAFKA),
        ),
        Row(
            "filter-kafka-json-json",
            "Kafka, JSON and a pattern of objects: the value is filtered.",
            "documented",
            SAME,
            at(_KAFKA),
        ),
        Row(
            "filter-kafka-mismatch",
            "Kafka, plain against JSON either way: the rule is passed over, and metadata alone decide.",
            "documented",
            SAME,
            at(_KAFKA),
        ),
        Row(
            "filter-kafka-binary",
            "Kafka, a value that is no UTF-8: metadata alone decide.",
            "documented",
            SAME,
            at(_KAFKA),
        ),
        Row(
            "filter-unmatched",
            "A shard's position moves past what matches nothing; on Kafka with the batch's commit.",
            "documented",
            SAME,
            at(_CHOOSE, "unit/lanes::filtered_records_are_counted_in_no_lane"),
        ),
        Row(
            "filter-before-batching",
            "Records are filtered as they are added to a batch, before its size counts.",
            "documented",
            SAME,
            at(_CHOOSE),
        ),
        Row(
            "filter-change-delay",
            "Changed filters of a Kafka mapping may take 15 minutes to count.",
            "documented",
            unverifiable("a changed file counts from the next start on, at once"),
            (),
        ),
        Row(
            "filter-aggregated",
            "Records that Kinesis's producer library has put into one can be filtered with enhanced fan-out alone.",
            "documented",
            unverifiable("a topic has no such records"),
            (),
        ),
    ),
)


def _operator(name: str, behaviour: str, source: Source = "documented", result: str = SAME) -> Row:
    return Row(f"operator-{name}", behaviour, source, result, at(_RULES, "unit/filter_page::the_page_says_what_is"))


_EXTRA = differs("taken; AWS does not say whether mappings take it")

OPERATORS = Section(
    "Filters: operators",
    (
        _operator("null", "`[null]` takes null."),
        _operator("empty", '`[""]` takes the empty string.'),
        _operator("equals", "A value in a list takes what equals it."),
        _operator("equals-ignore-case", "`equals-ignore-case` takes a string in any case."),
        Row("operator-and", "All keys of a pattern have to match.", "documented", SAME, at(_EVENTS)),
        _operator("or", "One value of a list has to match."),
        Row(
            "operator-or-paths",
            "`$or` takes an event that one of its patterns takes.",
            "documented",
            SAME,
            at(_EVENTS),
        ),
        _operator("anything-but", "`anything-but` takes all but the values that it lists."),
        _operator("numeric-equals", '`numeric` with `"="` takes a number that equals it.'),
        _operator("numeric-range", "`numeric` takes a range with one bound or two."),
        _operator("exists", "`exists` asks whether the field is there."),
        _operator("prefix", "`prefix` takes a string that begins so."),
        _operator("suffix", "`suffix` takes a string that ends so."),
        _operator("wildcard", "`wildcard` takes a string that fits, `*` being anything.", "unknown", _EXTRA),
        _operator("cidr", "`cidr` takes an address of a network.", "unknown", _EXTRA),
        _operator(
            "affix-ignore-case", "`prefix` and `suffix` in any case, by a nested operator.", "unknown", _EXTRA
        ),
        _operator(
            "anything-but-nested",
            "`anything-but` with a nested prefix, suffix, case or wildcard, one or a list.",
            "unknown",
            _EXTRA,
        ),
    ),
)

SEMANTICS = Section(
    "Filters: exact semantics",
    (
        Row(
            "pattern-leaves",
            "A leaf of a pattern is a list that is not empty; anything else is refused with AWS's words.",
            "read from source",
            SAME,
            at(_REFUSED),
        ),
        Row(
            "pattern-case",
            "Keys and operators are case-sensitive; an operator in capitals is none.",
            "read from source",
            SAME,
            at(_EVENTS, _REFUSED),
        ),
        Row(
            "pattern-logic",
            "Keys are joined by and; values, operators of one list, and filters by or.",
            "documented",
            SAME,
            at(_RULES, _EVENTS, "unit/filter_criteria::filters_are_alternatives"),
        ),
        Row(
            "pattern-arrays",
            "An array matches by any of its elements.",
            "read from source",
            SAME,
            at(_RULES, _BOTH),
        ),
        Row(
            "pattern-array-consistent",
            "Rules on objects in one array have to be met by the same element.",
            "read from source",
            SAME,
            at(_EVENTS, "unit/filter_pattern::large_arrays_take_no_squares"),
        ),
        Row(
            "pattern-strings",
            "Strings are equal byte for byte, without folding or normalisation.",
            "documented",
            SAME,
            at(_RULES),
        ),
        Row(
            "pattern-numbers",
            "Numbers are equal by value: 300.0 is 300. What no double holds exactly is compared as text.",
            "recorded",
            SAME,
            at(_RULES, "unit/filter_pattern::equal_numbers_are_alike"),
        ),
        Row(
            "pattern-number-strings",
            'A string such as "300" is no number, nor a number a string.',
            "recorded",
            SAME,
            at(_RULES),
        ),
        Row(
            "pattern-numeric-types",
            "`numeric` looks at JSON numbers alone; a range has its lower bound first.",
            "read from source",
            SAME,
            at(_RULES, _REFUSED),
        ),
        Row(
            "pattern-null",
            "`null` takes JSON's null alone: no text, no missing key, no empty array.",
            "recorded",
            SAME,
            at(_RULES),
        ),
        Row(
            "pattern-exists",
            "`exists` speaks of leaves: an object and an empty array have none; a missing parent has no leaf either.",
            "recorded",
            SAME,
            at(_RULES, _EVENTS),
        ),
        Row(
            "pattern-anything-but",
            "`anything-but` needs the field, takes null and other types, and lists strings or numbers, not both.",
            "recorded",
            SAME,
            at(_RULES, _REFUSED),
        ),
        Row(
            "pattern-affixes",
            "`prefix` and `suffix` are for strings; an empty one takes every string, and is refused in `anything-but`.",
            "read from source",
            SAME,
            at(_RULES, _REFUSED),
        ),
        Row(
            "pattern-or",
            "`$or` counts with two objects or more that hold no word of the language; else it is a field's name.",
            "read from source",
            SAME,
            at(_EVENTS, "unit/filter_pattern::reserved_words_make_or_a_name"),
        ),
        Row(
            "pattern-dots",
            "A name with a dot is the same as a nested one, in patterns and in events.",
            "recorded",
            SAME,
            at(_EVENTS),
        ),
        Row(
            "pattern-duplicates",
            "Of a key that stands twice in a pattern the last one counts.",
            "read from source",
            SAME,
            at(_EVENTS),
        ),
        Row(
            "pattern-nested-json",
            "JSON in a string is a string.",
            "recorded",
            SAME,
            at(_RULES, _EVENTS),
        ),
        Row(
            "pattern-invalid",
            "An invalid pattern is an InvalidParameterValueException: Invalid filter pattern definition.",
            "recorded",
            SAME,
            at(_REFUSED, "unit/filter_cli::an_invalid_pattern_has_awss_words"),
        ),
    ),
)
