"""Rows on Firehose, on what AWS leaves open, and on AWS's own libraries. Not here: event source mappings."""

# ruff: noqa: E501  # rows are sentences

from __future__ import annotations

from tests.conformance.lambda_row import SAME, Row, Section, at, differs, unverifiable

_RIC = "integration/provided::awslambdaric_sees_the_context_and_the_variables_of_aws"
_BAD = "integration/environments::a_bad_invocation_costs_itself"

_TRANSFORM = "unit/kinds_firehose::ok_dropped_and_failed_records"
_WRONG = "unit/kinds_firehose::a_record_that_does_not_come_back_right_has_failed"

FIREHOSE = Section(
    "Firehose transformation functions",
    (
        Row(
            "firehose-event",
            "An event has invocation id, ARN, region and records.",
            "documented",
            SAME,
            at("conformance/lambda_events::a_firehose_event", "unit/kinds_firehose::the_event_literally"),
        ),
        Row(
            "firehose-record",
            "A record has id, arrival in milliseconds, data in base64, and metadata of its Kinesis record.",
            "documented",
            SAME,
            at(
                "conformance/lambda_events::a_firehose_event",
                "unit/kinds_firehose::the_members_are_those_of_a_public_fixture",
            ),
        ),
        Row(
            "firehose-ok",
            "`Ok` delivers the data that the function gives.",
            "documented",
            SAME,
            at(_TRANSFORM, "unit/kinds_firehose::what_data_becomes"),
        ),
        Row(
            "firehose-dropped",
            "`Dropped` is delivered nowhere, and is no error.",
            "documented",
            SAME,
            at(_TRANSFORM),
        ),
        Row(
            "firehose-failed",
            "`ProcessingFailed` goes to the error output, with the data as they were.",
            "documented",
            SAME,
            at(
                _TRANSFORM,
                "unit/failures::firehose_has_the_shape_of_its_error_output",
                "integration/bad_handlers::functions_that_fail_for_some_records_cost_those_alone",
            ),
        ),
        Row(
            "firehose-once",
            "Each id has to come back exactly once; else its record has failed.",
            "documented",
            SAME,
            at(_WRONG, "unit/kinds_firehose::every_record_has_exactly_one_fate"),
        ),
        Row(
            "firehose-keys",
            "Partition keys in the metadata say where a record is put.",
            "documented",
            SAME,
            at("unit/kinds_firehose::partition_keys_become_directories"),
        ),
        Row(
            "firehose-objects",
            "Data may hold any bytes, and several objects.",
            "documented",
            differs("a record becomes one row; several objects, and bytes that are no UTF-8, fail it"),
            at(_WRONG, "unit/kinds_firehose::what_data_becomes"),
        ),
        Row(
            "firehose-timeout",
            "A function has up to 5 minutes.",
            "documented",
            differs("up to 15"),
            at("conformance/lambda_mapping::ranges_of_functions_are_awss"),
            ("function.timeout",),
        ),
        Row(
            "firehose-payload",
            "An answer has up to 6 MB.",
            "documented",
            SAME,
            at(_BAD),
        ),
        Row(
            "firehose-retries",
            "An invocation that fails is retried three times.",
            "documented",
            SAME,
            at(
                "conformance/lambda_mapping::a_transformation_is_retried_three_times",
                "unit/kinds_firehose::an_answer_without_records_fails_the_invocation",
            ),
        ),
    ),
)

UNKNOWNS = Section(
    "What AWS leaves open, and how it is settled",
    (
        Row(
            "settled-numbers",
            "Documents compare numbers as text; AWS was seen to compare them by value.",
            "recorded",
            SAME,
            at("unit/filter_pattern::operators"),
        ),
        Row(
            "settled-event-source",
            "Self-managed events are said to come from `SelfManagedKafka` or, by older documents, `aws:SelfManagedKafka`.",
            "unknown",
            differs("the former, and the latter by a setting"),
            at(
                "unit/kinds_events::a_kafka_event_is_the_public_fixture",
                "conformance/powertools::kafka_events_are_what_powertools_reads",
            ),
            ("function.event_source",),
        ),
        Row(
            "settled-kafka-partial",
            "Which offset a Kafka partial failure commits.",
            "unknown",
            differs("the lowest that failed"),
            at("conformance/powertools::what_powertools_reports_of_kafka_is_what_is_tried_again"),
        ),
        Row(
            "settled-backoff",
            "How long AWS waits between attempts.",
            "unknown",
            unverifiable("it is told nowhere"),
            at("unit/processing::the_pause_doubles_up_to_its_bound"),
        ),
        Row(
            "settled-filter-metadata",
            "Whether metadata of Kinesis and Kafka can be filtered by.",
            "unknown",
            differs("they can"),
            at("unit/filter_criteria::metadata"),
        ),
        Row(
            "settled-payload",
            "Whether the payload of S3's record is a string or an object.",
            "unknown",
            SAME,
            at("unit/failures::kinesis_has_the_shape_of_the_s3_destination"),
        ),
        Row(
            "settled-condition",
            "Two spellings of the same condition, by destination.",
            "documented",
            SAME,
            at("unit/failures::kafka_to_a_topic_has_record_info_and_a_payload_as_an_object"),
        ),
        Row(
            "settled-first-state",
            "Whether the first state of a window is an empty object or null.",
            "deduced",
            SAME,
            at("conformance/lambda_windows::a_function_sums_over_windows"),
        ),
        Row(
            "settled-pollers",
            "How many pollers a mapping may have.",
            "unknown",
            unverifiable("there are no pollers"),
            at("unit/sam_refusals::what_does_no_harm_is_ignored_by_name"),
        ),
    ),
)

_READS = "conformance/powertools::kinesis_events_are_what_powertools_reads"

LIBRARIES = Section(
    "AWS's libraries, unmodified",
    (
        Row(
            "powertools-kinesis",
            "Powertools reads every property of Kinesis events, in windows and outside of them.",
            "read from source",
            SAME,
            at(_READS),
        ),
        Row(
            "powertools-kafka",
            "Powertools reads every property of Kafka events, of MSK and of other clusters.",
            "read from source",
            SAME,
            at("conformance/powertools::kafka_events_are_what_powertools_reads"),
        ),
        Row(
            "powertools-kafka-null",
            "Powertools' Kafka models refuse a record without a value, whatever stands there.",
            "read from source",
            unverifiable(
                "no event can be right for them; its data classes take the record, and fail when its value is decoded"
            ),
            at("conformance/powertools::a_tombstone_is_what_powertools_cannot_decode"),
        ),
        Row(
            "powertools-dynamodb",
            "Powertools reads every property of DynamoDB events.",
            "read from source",
            SAME,
            at("conformance/powertools::dynamodb_events_are_what_powertools_reads"),
        ),
        Row(
            "powertools-firehose",
            "Powertools reads Firehose events and makes their answers.",
            "read from source",
            SAME,
            at("conformance/powertools::firehose_events_are_what_powertools_reads_and_its_response_what_is_done"),
        ),
        Row(
            "powertools-batch",
            "Powertools' batch processors, of functions, coroutines and models, report what is then tried again.",
            "read from source",
            SAME,
            at(
                "conformance/powertools::what_powertools_reports_of_kinesis_is_what_is_tried_again",
                "conformance/powertools::what_powertools_reports_of_kafka_is_what_is_tried_again",
                "conformance/powertools::dynamodb_events_are_what_powertools_reads",
            ),
        ),
        Row(
            "powertools-consumer",
            "Powertools' Kafka consumer decodes JSON and Protobuf.",
            "read from source",
            SAME,
            at("conformance/powertools::kafka_events_are_what_powertools_reads"),
        ),
        Row(
            "powertools-consumer-avro",
            "Powertools' Kafka consumer decodes Avro.",
            "read from source",
            unverifiable("its package for Avro is not among headrace's; it gets the same bytes"),
            at("conformance/powertools::kafka_events_are_what_powertools_reads"),
        ),
        Row(
            "powertools-parser",
            "Powertools' parser takes events by its models and opens its envelopes.",
            "read from source",
            SAME,
            at(
                _READS,
                "conformance/powertools::kafka_events_are_what_powertools_reads",
                "conformance/powertools::dynamodb_events_are_what_powertools_reads",
                "conformance/powertools::firehose_events_are_what_powertools_reads_and_its_response_what_is_done",
            ),
        ),
        Row(
            "powertools-idempotency",
            "Powertools' idempotency keeps an effect single, here with a table of SQLite.",
            "read from source",
            SAME,
            at("conformance/powertools::idempotent_functions_have_their_effects_once"),
        ),
        Row(
            "powertools-logger",
            "Powertools' logger takes the context into its lines, and its metrics are lines of the log.",
            "read from source",
            SAME,
            at(_READS),
        ),
        Row(
            "powertools-tracer",
            "Powertools' tracer sends to X-Ray.",
            "read from source",
            unverifiable("it needs a package and a daemon of X-Ray's"),
            (),
        ),
        Row(
            "powertools-pipeline",
            "Functions with Powertools run in a pipeline from a topic to a table.",
            "deduced",
            SAME,
            at("conformance/powertools::pipelines_run_functions_with_powertools"),
        ),
        Row(
            "awslambdaric",
            "AWS's runtime interface client runs a handler.",
            "read from source",
            SAME,
            at(
                _RIC,
                "integration/provided::awslambdaric_reports_errors_with_their_frames",
                "integration/provided::awslambdaric_that_cannot_initialise_says_why",
                "integration/provided::awslambdaric_that_ends_fails_one_invocation",
            ),
            ("function.runtime",),
        ),
    ),
)
