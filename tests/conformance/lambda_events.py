"""Rows on the events that functions get, and on the records of what failed. Not here: when there is one."""

# ruff: noqa: E501  # rows are sentences

from __future__ import annotations

from tests.conformance.lambda_row import REFUSED, SAME, Row, Section, at, differs, unverifiable

_KINESIS = "conformance/lambda_events::a_kinesis_event"
_KAFKA = "conformance/lambda_events::a_kafka_event"
_DYNAMODB = "conformance/lambda_events::a_dynamodb_event"
_SHAPE = "unit/kinds_events::a_kinesis_event_has_the_shape_recorded_on_aws"
_FIXTURE = "unit/kinds_events::a_kafka_event_is_the_public_fixture"

KINESIS = Section(
    "Kinesis events",
    (
        Row(
            "kinesis-members",
            "An event has `Records`; each has the members of AWS, in the order in which AWS was seen to write them.",
            "recorded",
            SAME,
            at(_KINESIS, _SHAPE, "unit/kinds_events::the_shape_is_that_of_the_public_fixtures"),
        ),
        Row(
            "kinesis-constants",
            "`eventSource`, `eventName`, `eventVersion` 1.0 and `kinesisSchemaVersion` 1.0 are always the same.",
            "recorded",
            SAME,
            at(_KINESIS, "unit/kinds_events::a_kinesis_record_tells_of_its_kafka_record"),
        ),
        Row(
            "kinesis-sequence-number",
            "A sequence number is a decimal string, rising within a shard, of some 56 digits.",
            "recorded",
            differs("56 digits that end in the offset"),
            at("unit/kinds_events::sequence_numbers_follow_offsets"),
        ),
        Row(
            "kinesis-event-id",
            "`eventID` is the shard's id, a colon, and the sequence number.",
            "recorded",
            SAME,
            at(_KINESIS),
        ),
        Row(
            "kinesis-data",
            "`data` is the payload in base64.",
            "recorded",
            differs("Kafka has null values, which are empty here"),
            at(_KINESIS, "unit/kinds_events::null_and_empty_values_are_empty_data"),
        ),
        Row(
            "kinesis-partition-key",
            "`partitionKey` is text of 1 to 256 characters.",
            "documented",
            differs("the key as UTF-8, else in base64, `null` without one; of any length"),
            at("unit/kinds_events::partition_keys"),
        ),
        Row(
            "kinesis-arrival",
            "`approximateArrivalTimestamp` is a float of seconds with milliseconds.",
            "recorded",
            SAME,
            at(_KINESIS),
        ),
        Row(
            "kinesis-origin",
            "ARN, region and the function's role are those of the account.",
            "documented",
            differs("made up, unless an ARN is given"),
            at(
                "unit/kinds_events::the_region_is_that_of_the_environment",
                "unit/kinds_events::an_arn_that_is_given_stands_in_the_event",
            ),
            ("function.event_source_arn",),
        ),
        Row(
            "kinesis-encryption",
            "`encryptionType` may stand in a record.",
            "read from source",
            unverifiable("nothing is encrypted with KMS, and recorded events have no such member"),
            at(_SHAPE),
        ),
        Row("kinesis-one-shard", "A batch is of one shard.", "documented", SAME, at(_KINESIS)),
        Row(
            "kinesis-shard-id",
            "A shard's id is `shardId-` and 12 digits.",
            "documented",
            SAME,
            at(_KINESIS),
        ),
    ),
)

KAFKA = Section(
    "Kafka events",
    (
        Row(
            "kafka-members",
            "An event has `eventSource`, MSK's `eventSourceArn`, `bootstrapServers` and `records`, in this order.",
            "documented",
            SAME,
            at(_KAFKA, _FIXTURE),
        ),
        Row(
            "kafka-source-msk",
            "MSK's events say `aws:kafka` and name the cluster's ARN.",
            "documented",
            SAME,
            at(_KAFKA, _FIXTURE),
            ("function.event_source", "function.event_source_arn"),
        ),
        Row(
            "kafka-source-self-managed",
            "Events of a cluster of one's own say `SelfManagedKafka` and have no ARN.",
            "documented",
            SAME,
            at(_KAFKA, "unit/kinds_events::a_kafka_event_of_a_self_managed_cluster"),
            ("function.event_source",),
        ),
        Row(
            "kafka-servers",
            "`bootstrapServers` is one string, joined with commas.",
            "documented",
            SAME,
            at(_KAFKA),
        ),
        Row(
            "kafka-records",
            "`records` maps topic, dash and partition to a list of records.",
            "documented",
            SAME,
            at(_KAFKA),
        ),
        Row(
            "kafka-several-partitions",
            "One event may hold several partitions of the topic.",
            "documented",
            differs("it holds one"),
            at(_KAFKA),
        ),
        Row(
            "kafka-record",
            "A record has topic, partition, offset, time in milliseconds, key, value and headers, typed as AWS types them.",
            "documented",
            SAME,
            at(_KAFKA, _FIXTURE),
        ),
        Row(
            "kafka-timestamp-type",
            "`timestampType` is CREATE_TIME or LOG_APPEND_TIME.",
            "documented",
            SAME,
            at(_KAFKA, "unit/filter_criteria::append_time_is_told"),
        ),
        Row(
            "kafka-null-key",
            "A record without a key has none: null, or no such member.",
            "unknown",
            SAME,
            at(_KAFKA, "conformance/powertools::kafka_events_are_what_powertools_reads"),
        ),
        Row(
            "kafka-null-value",
            "A record without a value has none; users report that the member is missing then.",
            "unknown",
            differs("`value` is null, for code that indexes it"),
            at(_KAFKA, "unit/kinds_events::a_kafka_event_of_a_self_managed_cluster"),
        ),
        Row(
            "kafka-headers",
            "Headers are a list of maps with one name each, in order, names repeated where they are.",
            "documented",
            SAME,
            at(_KAFKA, "unit/kinds_events::header_bytes_are_signed_and_repeated_names_kept"),
        ),
        Row(
            "kafka-header-bytes",
            "A header's bytes are numbers from -128 to 127.",
            "read from source",
            SAME,
            at(_KAFKA, "unit/kinds_events::header_bytes_are_signed_and_repeated_names_kept"),
        ),
        Row(
            "kafka-schema-registry",
            "With a schema registry, values are validated and decoded before the filter, or go to the destination.",
            "documented",
            REFUSED,
            at("unit/sam_refusals::what_cannot_be_honoured_is_named"),
        ),
        Row(
            "kafka-schema-metadata",
            "With a schema registry, records name format and schema of key and value, and carry them without prefix.",
            "documented",
            REFUSED,
            at(
                "unit/sam_refusals::what_cannot_be_honoured_is_named",
                "conformance/powertools::kafka_events_are_what_powertools_reads",
            ),
        ),
        Row(
            "kafka-schema-filter",
            "With a schema registry, filters see what was decoded, Protobuf's names as they are spelt.",
            "documented",
            differs("filters see the value's own bytes"),
            at("unit/sam_refusals::what_cannot_be_honoured_is_named", "unit/filter_criteria::table_of_kafka"),
        ),
        Row(
            "kafka-schema-errors",
            "What cannot be decoded goes to the destination with a condition of its own, or is let go.",
            "documented",
            differs(
                "kinds with columns report it under DESERIALIZATION_ERROR; events carry bytes, and decode nothing"
            ),
            at("unit/failures::the_contexts_say_what_aws_was_seen_to_say"),
        ),
    ),
)

DYNAMODB = Section(
    "DynamoDB events",
    (
        Row(
            "dynamodb-members",
            "A record has AWS's members, in the order in which AWS was seen to write them.",
            "recorded",
            SAME,
            at(_DYNAMODB, "unit/kinds_dynamodb::what_a_change_lacks_is_filled_in"),
        ),
        Row(
            "dynamodb-source",
            "Records are made by a table's stream.",
            "documented",
            differs("each value is one, or at least a change; what is neither fails alone"),
            at(
                "unit/kinds_dynamodb::a_whole_stream_record_is_passed_on_as_it_is",
                "unit/kinds_dynamodb::a_value_that_is_no_change_is_a_fault_of_its_record_alone",
            ),
        ),
        Row("dynamodb-version", "`eventVersion` is 1.1.", "recorded", SAME, at(_DYNAMODB)),
        Row(
            "dynamodb-time",
            "`ApproximateCreationDateTime` is a number of whole seconds.",
            "recorded",
            SAME,
            at(_DYNAMODB),
        ),
        Row(
            "dynamodb-view",
            "`StreamViewType` says which images there are.",
            "documented",
            SAME,
            at(_DYNAMODB, "unit/kinds_dynamodb::a_change_without_images_is_one_of_keys"),
        ),
        Row(
            "dynamodb-user-identity",
            "What expired has a `userIdentity`.",
            "documented",
            SAME,
            at(_DYNAMODB),
        ),
    ),
)

_FAILED = "unit/failures::the_contexts_say_what_aws_was_seen_to_say"
_S3 = "unit/failures::kinesis_has_the_shape_of_the_s3_destination"
_BUDGET = "conformance/lambda_failures::the_rest_of_a_batch_has_the_retries_that_are_left"
_AGED = "conformance/lambda_failures::a_record_that_became_too_old_has_the_attempts_that_there_were"
_RAISED = "conformance/lambda_failures::a_raised_error_is_unhandled"

FAILURES = Section(
    "Records of what failed",
    (
        Row(
            "failure-members",
            "A record of a stream's failure has `requestContext`, `responseContext`, version 1.0, a time, and the batch's info.",
            "recorded",
            SAME,
            at(_S3, _RAISED),
        ),
        Row(
            "failure-batch",
            "One record stands for a batch, and has no payload in a queue.",
            "recorded",
            differs("one for each failed record, with the payload that AWS gives S3"),
            at(_S3, _RAISED, _BUDGET),
        ),
        Row(
            "failure-info",
            "The info has shard, first and last sequence number and arrival, size and ARN.",
            "recorded",
            SAME,
            at(_S3),
        ),
        Row(
            "failure-info-dynamodb",
            "On DynamoDB the info is called `DDBStreamBatchInfo`.",
            "documented",
            SAME,
            at("unit/failures::dynamodb_has_its_own_info_and_event"),
        ),
        Row(
            "failure-condition",
            "The condition is RetryAttemptsExhausted or RecordAgeExceeded.",
            "recorded",
            SAME,
            at(_FAILED, _RAISED, "conformance/lambda_failures::a_record_that_is_too_old_has_no_response"),
        ),
        Row(
            "failure-age-response",
            "A record that was too old has no `responseContext` at all.",
            "recorded",
            SAME,
            at(_FAILED, "conformance/lambda_failures::a_record_that_is_too_old_has_no_response"),
        ),
        Row(
            "failure-invoke-count",
            "`approximateInvokeCount` is the number of attempts: one retry makes two.",
            "recorded",
            SAME,
            at(
                _RAISED,
                _BUDGET,
                _AGED,
                "integration/bad_handlers::a_handler_that_raises_is_tried_so_often_and_then_reported",
            ),
        ),
        Row(
            "failure-function-error",
            "`functionError` is Unhandled for what was raised.",
            "recorded",
            SAME,
            at(_FAILED, _RAISED),
        ),
        Row(
            "failure-function-error-null",
            "`functionError` is null where the function answered with batchItemFailures.",
            "recorded",
            SAME,
            at(
                _FAILED,
                _BUDGET,
                "conformance/lambda_failures::a_response_that_fails_the_whole_batch_has_no_function_error",
            ),
        ),
        Row(
            "failure-remaining",
            "After a partial failure the info is of the records that were left.",
            "recorded",
            SAME,
            at(_BUDGET),
        ),
        Row(
            "failure-payload",
            "S3 gets the whole event as well, as a JSON string.",
            "documented",
            SAME,
            at(_S3, "unit/failures::kafka_to_a_file_has_records_info_and_a_payload_as_text"),
        ),
        Row(
            "failure-object-key",
            "An object of S3 has a key made of mapping, shard and time.",
            "documented",
            unverifiable("there is no S3; a file has a line for each record"),
            at("unit/file_destination::records_come_back_as_they_went"),
        ),
        Row(
            "failure-kafka-info",
            "On Kafka `KafkaBatchInfo` has size, source, servers, payload size, and offsets as text with times for each partition.",
            "documented",
            SAME,
            at("unit/failures::kafka_to_a_file_has_records_info_and_a_payload_as_text"),
        ),
        Row(
            "failure-too-large",
            "A record that no payload holds has the condition MaximumPayloadSizeExceeded and a null response.",
            "documented",
            SAME,
            at(_FAILED, "conformance/lambda_failures::a_record_that_no_invocation_can_hold_has_a_null_response"),
        ),
        Row(
            "failure-topic",
            "A Kafka topic gets one message for each record, with `recordInfo` and an event object that holds it.",
            "documented",
            SAME,
            at(
                "conformance/lambda_failures::a_kafka_topic_gets_one_message_for_each_record",
                "unit/failures::kafka_to_a_topic_has_record_info_and_a_payload_as_an_object",
            ),
        ),
        Row(
            "failure-topic-condition",
            "In a Kafka topic the condition is spelt RetriesExhausted.",
            "documented",
            SAME,
            at("conformance/lambda_failures::a_kafka_topic_gets_one_message_for_each_record"),
        ),
        Row(
            "failure-topic-key",
            "A message has the record's own key.",
            "documented",
            SAME,
            at("integration/destination::records_arrive_whole"),
        ),
        Row(
            "failure-topic-source",
            "The topic is of the same cluster, and not the one that is read.",
            "documented",
            SAME,
            at("integration/destination::the_source_itself_is_refused"),
        ),
    ),
)
