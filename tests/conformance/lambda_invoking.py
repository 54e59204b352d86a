"""Rows on answers, batches, order, retries and windows. Not here: settings, events and the function's surroundings."""

# ruff: noqa: E501  # rows are sentences

from __future__ import annotations

from tests.conformance.lambda_row import SAME, Row, Section, at, differs, unverifiable

_SUCCESS = "unit/kinds_responses::forms_of_complete_success"
_FAILURE = "unit/kinds_responses::forms_of_complete_failure"
_LOWEST = "unit/kinds_responses::the_lowest_record_that_is_named_is_where_the_rest_begins"
_AGAIN = "conformance/lambda_mapping::later_successes_come_again"
_BUDGET = "conformance/lambda_failures::the_rest_of_a_batch_has_the_retries_that_are_left"
_HALVES = "conformance/lambda_mapping::a_batch_is_halved_down_to_the_bad_record_without_using_up_retries"
_CUT = "conformance/lambda_mapping::a_partial_response_is_cut_where_it_says_and_not_halved"
_POWERTOOLS = "conformance/powertools::what_powertools_reports_of_kinesis_is_what_is_tried_again"
_MODEL = "unit/mapping_model::TestMapping"
_KAFKA = "unit/kinds_responses::a_kafka_record_is_named_by_partition_and_offset"

RESPONSES = Section(
    "Partial batch responses",
    (
        Row("response-null", "A null answer is complete success.", "recorded", SAME, at(_SUCCESS)),
        Row("response-empty-text", "An empty string is complete success.", "recorded", SAME, at(_SUCCESS)),
        Row("response-empty-list", "An empty list is complete success.", "recorded", SAME, at(_SUCCESS)),
        Row("response-empty-object", "An empty object is complete success.", "recorded", SAME, at(_SUCCESS)),
        Row("response-no-items", "An empty batchItemFailures is complete success.", "recorded", SAME, at(_SUCCESS)),
        Row("response-null-items", "A null batchItemFailures is complete success.", "recorded", SAME, at(_SUCCESS)),
        Row("response-empty-id", "An empty identifier fails the whole batch.", "recorded", SAME, at(_FAILURE)),
        Row("response-null-id", "A null identifier fails the whole batch.", "recorded", SAME, at(_FAILURE)),
        Row(
            "response-wrong-key",
            "A failure under another name fails the whole batch.",
            "recorded",
            SAME,
            at(_FAILURE),
        ),
        Row(
            "response-unknown-id",
            "An identifier of no record of the batch fails the whole batch.",
            "recorded",
            SAME,
            at(_FAILURE),
        ),
        Row(
            "response-raised",
            "A raised error fails the whole batch.",
            "recorded",
            SAME,
            at("conformance/lambda_mapping::the_first_attempt_is_no_retry"),
        ),
        Row(
            "response-lowest",
            "Of several identifiers the lowest sequence number is where the rest begins.",
            "documented",
            SAME,
            at(_LOWEST, _POWERTOOLS),
            ("source.function_response_types",),
        ),
        Row(
            "response-rest",
            "That record and all after it come again, those that were handled included.",
            "documented",
            SAME,
            at(_AGAIN, _POWERTOOLS),
        ),
        Row(
            "response-budget",
            "The rest has the retries that are left: a last record that stays bad, with three retries, makes four invocations.",
            "recorded",
            SAME,
            at(_BUDGET),
            ("source.maximum_retry_attempts",),
        ),
        Row(
            "response-bisect-raised",
            "A raised error halves the batch whatever the response type.",
            "documented",
            SAME,
            at(_HALVES, _POWERTOOLS),
            ("source.bisect_batch_on_function_error",),
        ),
        Row(
            "response-bisect-partial",
            "A partial response is cut where it says, and not halved.",
            "documented",
            SAME,
            at(_CUT, _POWERTOOLS),
            ("source.bisect_batch_on_function_error",),
        ),
        Row("response-bisect-quota", "Splitting uses up no retry.", "documented", SAME, at(_HALVES, _CUT)),
        Row(
            "response-bisect-first",
            "What bisecting does with a batch whose first record is reported.",
            "unknown",
            unverifiable("told nowhere; here that record is set apart, and it alone uses up its retries"),
            at(
                "conformance/lambda_mapping::a_first_record_that_is_reported_is_set_apart_when_bisecting",
                "conformance/lambda_mapping::without_bisecting_what_follows_a_bad_record_fails_with_it",
            ),
            ("source.bisect_batch_on_function_error",),
        ),
        Row(
            "response-kafka-form",
            "On Kafka an identifier is an object of topic-partition and offset.",
            "documented",
            SAME,
            at(_KAFKA, "conformance/powertools::what_powertools_reports_of_kafka_is_what_is_tried_again"),
        ),
        Row(
            "response-kafka-text",
            "Some libraries write the identifier of a Kafka record as one text.",
            "read from source",
            differs("taken as well"),
            at(_KAFKA),
        ),
        Row(
            "response-kafka-success",
            "On Kafka null and an empty object are success.",
            "documented",
            SAME,
            at(_SUCCESS),
        ),
        Row(
            "response-kafka-unknown",
            "On Kafka an unknown partition or offset has the whole batch tried again.",
            "documented",
            SAME,
            at("unit/kinds_responses::a_kafka_record_that_is_not_there_fails_the_batch"),
        ),
        Row(
            "response-kafka-order",
            "What is committed and sent again after a Kafka partial failure is not told.",
            "unknown",
            differs("as on Kinesis: what lies before the lowest is committed, the rest comes again"),
            at("conformance/powertools::what_powertools_reports_of_kafka_is_what_is_tried_again", _CUT),
        ),
        Row(
            "response-dynamodb",
            "On DynamoDB an identifier is the change's sequence number.",
            "documented",
            SAME,
            at(
                "unit/kinds_responses::a_dynamodb_record_is_named_by_its_own_sequence_number",
                "conformance/powertools::dynamodb_events_are_what_powertools_reads",
            ),
        ),
    ),
)

BATCHES = Section(
    "Batches, order and retries",
    (
        Row(
            "batch-closes",
            "A batch closes at its window, its size or 6 MB of payload, whichever comes first.",
            "documented",
            SAME,
            at(
                "conformance/lambda_mapping::a_batch_closes_at_6_mb_of_payload",
                "unit/batching::closes_at_the_record_count",
                "unit/batching::closes_at_the_window",
                "unit/batching::nothing_is_lost_reordered_or_oversized",
            ),
        ),
        Row(
            "batch-base64",
            "Some 4.5 MB of raw data fit, for base64 takes a third more.",
            "deduced",
            SAME,
            at("conformance/lambda_mapping::a_batch_closes_at_6_mb_of_payload"),
        ),
        Row(
            "batch-no-window",
            "Without a window a stream's batch is invoked with whatever is there.",
            "documented",
            SAME,
            at("conformance/lambda_mapping::without_a_window_what_is_there_is_invoked_with"),
            ("source.maximum_batching_window_in_seconds",),
        ),
        Row(
            "batch-next-window",
            "The next window begins when the previous invocation is over.",
            "documented",
            differs("it begins with its first record, so that waiting and handling overlap"),
            at("unit/batching::closes_at_the_window"),
        ),
        Row(
            "batch-polling",
            "Shards are polled once a second, tables four times; enhanced fan-out pushes.",
            "documented",
            unverifiable("Kafka is long-polled: records come as they arrive"),
            at("unit/shard::a_quiet_topic_is_invoked_within_its_window"),
        ),
        Row(
            "order-one-batch",
            "One batch of a shard is under way at a time.",
            "documented",
            SAME,
            at("conformance/lambda_mapping::a_shard_has_as_many_invocations_as_its_factor"),
        ),
        Row(
            "order-keys",
            "With a parallelization factor, order holds for each partition key.",
            "documented",
            SAME,
            at(_MODEL, "unit/lanes::a_keys_lane_is_the_same_everywhere"),
            ("source.parallelization_factor",),
        ),
        Row(
            "order-partitions",
            "On Kafka order holds within a partition.",
            "documented",
            SAME,
            at(_MODEL, "unit/shard::records_reach_the_sink_once_and_in_order"),
        ),
        Row(
            "at-least-once",
            "A function may be called with a record more than once.",
            "documented",
            SAME,
            at(_MODEL, "conformance/powertools::idempotent_functions_have_their_effects_once"),
        ),
        Row(
            "retry-whole",
            "A batch that fails is tried again as a whole.",
            "documented",
            SAME,
            at(
                "conformance/lambda_mapping::the_first_attempt_is_no_retry",
                "unit/processing::an_error_is_tried_again_until_it_passes",
            ),
        ),
        Row(
            "retry-blocks",
            "Meanwhile its shard is blocked, and no other.",
            "documented",
            SAME,
            at("conformance/lambda_mapping::a_failing_batch_holds_its_shard_and_no_other"),
        ),
        Row(
            "retry-for-ever",
            "With the defaults a poison record blocks its shard until the stream lets it go.",
            "documented",
            SAME,
            at(
                "conformance/lambda_mapping::a_failing_batch_holds_its_shard_and_no_other",
                "unit/shard::records_that_vanish_under_a_reader_keep_the_rest_in_order",
            ),
        ),
        Row(
            "retry-exhausted",
            "What is exhausted or expired without a destination is dropped.",
            "documented",
            differs("its shard stops before it, unless dropping is asked for"),
            at("conformance/lambda_mapping::what_is_exhausted_without_a_destination_stops_or_goes"),
            ("source.maximum_retry_attempts", "source.maximum_record_age_in_seconds"),
        ),
        Row(
            "age-expires",
            "Records beyond the record age are not handled, and reported or dropped.",
            "documented",
            SAME,
            at("conformance/lambda_mapping::only_records_that_are_too_old_expire", _MODEL),
            ("source.maximum_record_age_in_seconds",),
        ),
        Row(
            "throttle-attempts",
            "Throttling before the function runs is no attempt.",
            "documented",
            SAME,
            at("conformance/lambda_mapping::a_throttled_function_has_not_been_tried", _MODEL),
        ),
        Row(
            "throttle-age",
            "Only the record age ends what is throttled.",
            "documented",
            SAME,
            at("conformance/lambda_mapping::the_record_age_ends_what_is_throttled_for_ever"),
        ),
        Row(
            "backoff",
            "The wait between attempts grows; how is not told.",
            "deduced",
            unverifiable("how it grows is told nowhere; here it doubles from 0.1 s to 30 s, and both can be set"),
            at("unit/processing::the_pause_doubles_up_to_its_bound"),
        ),
        Row(
            "oversized",
            "A Kafka record above 6 MB may stay unprocessed, or is reported with a condition of its own.",
            "documented",
            differs("it is reported, or stops its shard"),
            at(
                "conformance/lambda_failures::a_record_that_no_invocation_can_hold_has_a_null_response",
                "unit/processing::a_record_over_its_bound_never_reaches_the_function",
            ),
        ),
        Row(
            "scaling",
            "Consumers are added and taken away as lag and throttling ask for.",
            "documented",
            unverifiable("who runs headrace decides how many processes share the consumer group"),
            at("unit/pool::two_members_catch_up_together"),
        ),
        Row(
            "commits",
            "Offsets are committed after each batch that has succeeded.",
            "documented",
            SAME,
            at("unit/shard::every_commit_accounts_for_its_offsets", "unit/pool::group_offsets_follow_the_sink"),
        ),
        Row(
            "metrics-mapping",
            "CloudWatch has iterator age, lag, and counts of what was polled, filtered, dropped and delivered.",
            "documented",
            differs("the log's last line has counts, `headrace position show` the lag"),
            at(
                "integration/position::show_tells_position_log_lag_and_group_offset",
                "unit/shard::every_commit_accounts_for_its_offsets",
            ),
        ),
        Row(
            "metrics-function",
            "CloudWatch has a function's invocations, errors, throttles, durations and concurrency.",
            "documented",
            differs("`headrace report` has them, but for concurrency"),
            at("unit/report_command::sums_and_charges", "unit/metering::a_meter_counts_by_function_and_minute"),
        ),
        Row(
            "system-log",
            "A Kafka mapping writes a log of its own in JSON.",
            "documented",
            differs("headrace writes its own, with --json as JSON; the setting is ignored by name"),
            at(
                "integration/run_cli::an_empty_topic_is_caught_up_and_json_logs_are_json",
                "conformance/lambda_mapping::what_belongs_to_awss_own_machinery_is_named",
            ),
        ),
        Row(
            "aggregation",
            "Records that Kinesis's producer library has put into one are taken apart under rules of their own.",
            "documented",
            unverifiable("a topic has no such records"),
            (),
        ),
    ),
)

_SUMS = "conformance/lambda_windows::a_function_sums_over_windows"

WINDOWS = Section(
    "Tumbling windows",
    (
        Row(
            "window-boundaries",
            "A record belongs to the window of its arrival time.",
            "documented",
            differs(
                "of its timestamp; a late record counts in the window that is open, one from the future as now"
            ),
            at(
                _SUMS,
                "unit/tumbling::late_records_count_in_the_open_window",
                "unit/tumbling::a_record_from_the_future_keeps_no_window_open",
            ),
            ("source.tumbling_window_in_seconds",),
        ),
        Row(
            "window-chain",
            "Each shard has one chain of states.",
            "documented",
            SAME,
            at(_SUMS, "unit/tumbling::windows_are_those_of_a_plain_oracle"),
        ),
        Row(
            "window-members",
            "An event has window, state, shard, source and two flags beside its records.",
            "documented",
            SAME,
            at(_SUMS, "conformance/lambda_events::a_kinesis_event", "conformance/lambda_events::a_dynamodb_event"),
        ),
        Row(
            "window-times",
            "The window's start and end are ISO 8601 in UTC, with seconds.",
            "documented",
            SAME,
            at(_SUMS, "conformance/lambda_events::a_kinesis_event"),
        ),
        Row(
            "window-first-state",
            "The first invocation of a window has an empty object as its state.",
            "deduced",
            SAME,
            at(_SUMS),
        ),
        Row(
            "window-state-answer",
            "An answer without a state is a failed invocation.",
            "documented",
            SAME,
            at(_SUMS, "unit/kinds_responses::an_answer_without_a_state_fails_its_invocation"),
        ),
        Row(
            "window-items",
            "An answer may report records beside its state.",
            "documented",
            SAME,
            at(
                "unit/kinds_responses::a_state_goes_with_a_partial_failure",
                "unit/tumbling::windows_are_those_of_a_plain_oracle",
            ),
        ),
        Row(
            "window-final",
            "A window ends with one final invocation; then its state is gone.",
            "documented",
            SAME,
            at(_SUMS, "unit/tumbling::each_window_hands_its_state_on_and_ends_once"),
        ),
        Row(
            "window-final-records",
            "The final invocation has an empty list of records.",
            "deduced",
            SAME,
            at(_SUMS),
        ),
        Row(
            "window-final-failed",
            "A final invocation that fails holds its shard, under the mapping's retries.",
            "documented",
            SAME,
            at(
                _SUMS,
                "unit/tumbling::a_failed_final_invocation_holds_the_shard",
                "unit/tumbling::a_final_invocation_that_is_given_up_lets_the_shard_go_on",
            ),
        ),
        Row(
            "window-state-size",
            "A state above 1 MB ends its window early.",
            "documented",
            SAME,
            at(_SUMS, "unit/tumbling::a_state_that_is_too_large_ends_the_window_early"),
        ),
        Row(
            "window-early-next",
            "After an early end the same window goes on with a fresh state.",
            "read from source",
            SAME,
            at(_SUMS, "unit/tumbling::a_state_that_is_too_large_ends_the_window_early"),
        ),
        Row(
            "window-idle",
            "Without records a window is taken for over after two minutes.",
            "documented",
            SAME,
            at(
                "unit/tumbling::an_idle_window_is_closed_by_time", "unit/tumbling::an_idle_window_waits_for_its_end"
            ),
        ),
        Row(
            "window-shard-end",
            "A shard that ends closes its window, and its children begin anew.",
            "documented",
            unverifiable("partitions do not end"),
            at("unit/pool::new_partitions_are_taken_up_from_their_start"),
        ),
        Row(
            "window-retries",
            "Retries and record age hold in windows too.",
            "documented",
            SAME,
            at(
                "unit/tumbling::a_failed_final_invocation_holds_the_shard",
                "unit/tumbling::windows_are_those_of_a_plain_oracle",
            ),
        ),
        Row(
            "window-crash",
            "A window outlives its poller.",
            "deduced",
            SAME,
            at("unit/tumbling::a_window_goes_on_with_the_next_owner"),
        ),
    ),
)
