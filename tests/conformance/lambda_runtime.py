"""Rows on log lines, errors, answers, and the Runtime API. Not here: what a function finds around itself."""

# ruff: noqa: E501  # rows are sentences

from __future__ import annotations

from tests.conformance.lambda_row import SAME, Row, Section, at, differs, unverifiable

_RIC = "integration/provided::awslambdaric_sees_the_context_and_the_variables_of_aws"
_LOGS = "conformance/lambda_environment::log_lines_are_awss"
_BAD = "integration/environments::a_bad_invocation_costs_itself"
_TIMEOUT = "conformance/lambda_environment::a_timeout_has_awss_words"
_CRASH = "conformance/lambda_environment::a_crash_takes_the_globals_and_leaves_tmp"
_INIT = "integration/environments::an_init_fault_is_aws_s"
_SLOW = "integration/environments::a_slow_init_phase_is_done_over_in_the_invocation"
_MARSHAL = "conformance/lambda_environment::answers_are_marshalled_as_awss_client_does"
_LINE = "unit/report::the_line_is_that_of_aws"

LINES = Section(
    "Log lines",
    (
        Row(
            "line-start",
            "START names request and version before the function's output.",
            "documented",
            SAME,
            at(_LOGS),
        ),
        Row("line-end", "END names the request after it.", "documented", SAME, at(_LOGS)),
        Row(
            "line-report",
            "REPORT has durations, billed duration and memory, with tabs and two decimals.",
            "documented",
            SAME,
            at(_LINE, _LOGS),
        ),
        Row("line-init", "Init Duration stands in it on a cold start alone.", "documented", SAME, at(_LINE, _LOGS)),
        Row(
            "line-status",
            "Status, and the type of a fault, may end it.",
            "documented",
            differs("they do for every invocation that failed"),
            at(_LINE, _LOGS, _TIMEOUT),
        ),
        Row(
            "line-x-ray",
            "A second line may tell of X-Ray.",
            "documented",
            differs("never: there is no X-Ray; such lines are read"),
            at("unit/report::lines_of_aws_are_read"),
        ),
        Row(
            "line-emulator",
            "AWS's emulator writes the members in another order.",
            "read from source",
            SAME,
            at("unit/report::lines_of_aws_are_read"),
        ),
        Row("line-timeout", "A timeout is told with time, request and seconds.", "documented", SAME, at(_TIMEOUT)),
        Row(
            "line-init-report",
            "An initialisation that fails has an INIT_REPORT.",
            "documented",
            SAME,
            at("unit/report::a_failed_initialisation_has_a_line_of_its_own", _INIT, _SLOW),
        ),
        Row(
            "line-record",
            "A log record has level, time, request and message, with tabs.",
            "read from source",
            SAME,
            at(_LOGS, "unit/environment_child::log_lines_are_aws_s"),
        ),
        Row(
            "line-error",
            "An error that was not caught is one line, its parts joined with CR, indented with spaces that do not break.",
            "read from source",
            SAME,
            at(_LOGS, "integration/environments::an_error_has_its_stack_and_its_log_line"),
        ),
    ),
)

ERRORS = Section(
    "Errors and answers",
    (
        Row(
            "error-object",
            "An error is an object of message, type, request id and formatted frames.",
            "read from source",
            SAME,
            at(_LOGS, "integration/provided::awslambdaric_reports_errors_with_their_frames"),
        ),
        Row(
            "error-unhandled",
            "A caller gets 200 and a header that says Unhandled.",
            "documented",
            unverifiable("nobody calls over HTTP; `headrace invoke` shows the object"),
            at("integration/invoke::a_handler_that_raises_shows_the_payload_of_aws"),
        ),
        Row(
            "fault-import",
            "Runtime.ImportModuleError: the module cannot be imported.",
            "read from source",
            SAME,
            at(_INIT),
        ),
        Row(
            "fault-syntax",
            "Runtime.UserCodeSyntaxError: the module does not parse.",
            "read from source",
            SAME,
            at(_INIT),
        ),
        Row(
            "fault-handler",
            "Runtime.HandlerNotFound: the module has no such function.",
            "read from source",
            SAME,
            at(_INIT),
        ),
        Row(
            "fault-name", "Runtime.MalformedHandlerName: the name has no dot.", "read from source", SAME, at(_INIT)
        ),
        Row(
            "fault-built-in",
            "Runtime.BuiltInModuleConflict: the module is Python's own.",
            "read from source",
            SAME,
            at(_INIT),
        ),
        Row(
            "fault-marshal",
            "Runtime.MarshalError: the answer has no form in JSON.",
            "read from source",
            SAME,
            at(_MARSHAL, _BAD),
        ),
        Row(
            "fault-unmarshal",
            "Runtime.UnmarshalError: the event is no JSON.",
            "read from source",
            unverifiable("events are made by headrace, and are JSON"),
            at("integration/provided::events_of_other_kinds_have_their_headers"),
        ),
        Row("fault-exit", "Runtime.ExitError: the process has ended.", "read from source", SAME, at(_BAD, _CRASH)),
        Row(
            "fault-init-again",
            "An init fault is met again by a second initialisation.",
            "documented",
            differs("it fails the invocation at once"),
            at(_INIT),
        ),
        Row("answer-decimal", "Decimals are written as numbers.", "read from source", SAME, at(_MARSHAL)),
        Row(
            "answer-nan",
            "NaN is written as it is.",
            "read from source",
            SAME,
            at(_MARSHAL, "unit/kinds_texts::nan_is_read"),
        ),
        Row(
            "answer-text",
            "From Python 3.12 on text is not escaped.",
            "read from source",
            differs("nor before"),
            at(_MARSHAL),
        ),
        Row(
            "answer-bytes",
            "Bytes are given back as they are.",
            "read from source",
            SAME,
            at(_MARSHAL, "integration/provided::awslambdaric_reports_what_it_cannot_serialise"),
        ),
    ),
)

_NEXT = "unit/runtime_api::the_first_next_ends_the_init_phase_and_blocks_until_there_is_an_invocation"

RUNTIME_API = Section(
    "The Runtime API",
    (
        Row(
            "api-next", "`next` blocks without a timeout, and its body is the event.", "documented", SAME, at(_NEXT)
        ),
        Row(
            "api-headers",
            "Its headers have request id, deadline, ARN and trace.",
            "documented",
            SAME,
            at(_NEXT),
        ),
        Row(
            "api-optional-headers",
            "Client context, Cognito identity and tenant are headers where a caller gives them.",
            "documented",
            SAME,
            at(_NEXT, _RIC),
        ),
        Row(
            "api-response",
            "`response` is taken with 202.",
            "documented",
            SAME,
            at(_NEXT, "unit/runtime_api::one_connection_serves_any_number_of_invocations"),
        ),
        Row(
            "api-error",
            "`error` is taken with 202, its type in a header as well.",
            "documented",
            SAME,
            at("unit/runtime_api::an_error_is_raised_with_what_the_runtime_says_of_it"),
        ),
        Row(
            "api-init-error",
            "`init/error` ends the init phase with a fault.",
            "documented",
            SAME,
            at("unit/runtime_api::an_init_error_is_the_fault_of_the_init_phase_and_comes_before_its_end_only"),
        ),
        Row(
            "api-codes",
            "What is out of turn is 400 or 403.",
            "documented",
            SAME,
            at("unit/runtime_api::an_answer_out_of_turn_or_for_another_invocation_is_refused"),
        ),
        Row(
            "api-restore",
            "SnapStart has two resources of its own.",
            "read from source",
            differs("404, as there are no snapshots"),
            at("unit/runtime_api::there_is_nothing_else"),
        ),
        Row(
            "api-streaming",
            "A response may be streamed, and end in an error.",
            "documented",
            SAME,
            at(
                "unit/runtime_api::a_streamed_response_is_put_together",
                "unit/runtime_api::a_streamed_response_may_end_in_an_error",
            ),
        ),
        Row(
            "api-enough",
            "This API is enough for AWS's own clients and for bootstraps of any language.",
            "deduced",
            SAME,
            at(
                _RIC,
                "integration/provided::any_language_serves_one_invocation_after_the_other",
                "integration/provided::the_event_is_that_of_the_kind",
            ),
            ("function.command", "function.runtime"),
        ),
        Row(
            "api-emulator",
            "AWS's emulator takes invocations over HTTP, one at a time.",
            "documented",
            differs("it has no place here: environments are spoken to directly"),
            at("unit/runtime_api::there_is_nothing_else"),
        ),
    ),
)
