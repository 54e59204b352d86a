"""Rows on what a function finds around itself: the context, variables, limits, what is billed.

Not here: what is said of it, and how it is spoken to (`lambda_runtime`).
"""

# ruff: noqa: E501  # rows are sentences

from __future__ import annotations

from tests.conformance.lambda_row import SAME, Row, Section, at, differs

_CONTEXT = "conformance/lambda_environment::context_and_variables_are_awss"
_CLIENT = "unit/environment_child::the_context_has_all_that_aws_s_has"
_RIC = "integration/provided::awslambdaric_sees_the_context_and_the_variables_of_aws"
_LOGS = "conformance/lambda_environment::log_lines_are_awss"
_BAD = "integration/environments::a_bad_invocation_costs_itself"
_TIMEOUT = "conformance/lambda_environment::a_timeout_has_awss_words"
_CRASH = "conformance/lambda_environment::a_crash_takes_the_globals_and_leaves_tmp"
_SLOW = "integration/environments::a_slow_init_phase_is_done_over_in_the_invocation"

CONTEXT = Section(
    "The context object",
    (
        Row(
            "context-attributes",
            "It has request id, log group and stream, function name and version, ARN, memory, tenant, client and identity.",
            "read from source",
            SAME,
            at(_CONTEXT, _CLIENT, _RIC),
            ("function.name",),
        ),
        Row(
            "context-memory",
            "The memory limit is text: the variable as it is.",
            "read from source",
            SAME,
            at(_CONTEXT, _CLIENT),
            ("function.memory_size",),
        ),
        Row(
            "context-identity",
            "The identity is always there; without a Cognito caller its members are None.",
            "read from source",
            SAME,
            at(_CONTEXT, _CLIENT),
        ),
        Row(
            "context-client",
            "Client context and tenant are None unless a caller gives them.",
            "read from source",
            SAME,
            at(_CONTEXT, _RIC),
        ),
        Row(
            "context-remaining",
            "The remaining time counts down from the timeout, and never below 0.",
            "read from source",
            SAME,
            at(_CONTEXT, _CLIENT),
            ("function.timeout",),
        ),
        Row("context-log", "`log` writes to the function's log.", "read from source", SAME, at(_LOGS)),
        Row(
            "context-node",
            "Other languages have the same, under names of their own.",
            "documented",
            SAME,
            at("integration/provided::any_language_serves_one_invocation_after_the_other"),
        ),
    ),
)

VARIABLES = Section(
    "Environment variables",
    (
        Row(
            "variables-aws",
            "Handler, region, runtime, name, memory, version, initialisation, log group and stream are variables.",
            "documented",
            SAME,
            at(_CONTEXT, "integration/environments::the_environment_is_aws_s", _RIC),
        ),
        Row(
            "variables-folders",
            "The code is at LAMBDA_TASK_ROOT, /var/task; the runtime at LAMBDA_RUNTIME_DIR, /var/runtime.",
            "documented",
            differs("the variables name the folders that there are"),
            at(_CONTEXT),
            ("function.root",),
        ),
        Row(
            "variables-credentials",
            "Three variables hold the role's credentials.",
            "documented",
            differs("those of headrace's own environment, if any, are passed on"),
            at(_CONTEXT),
        ),
        Row(
            "variables-runtime-api",
            "AWS_LAMBDA_RUNTIME_API is the address of the Runtime API.",
            "documented",
            differs("for provided programs; Python handlers are called over a socket of their own"),
            at(_RIC, _CONTEXT),
        ),
        Row(
            "variables-trace",
            "_X_AMZN_TRACE_ID is the invocation's trace.",
            "documented",
            SAME,
            at(_RIC, _CONTEXT, "unit/runtime_api::trace_ids_differ_and_begin_with_the_time"),
        ),
        Row(
            "variables-language",
            "LANG is en_US.UTF-8 and TZ is UTC; both can be set.",
            "documented",
            SAME,
            at(_CONTEXT, "integration/environments::the_environment_is_aws_s"),
        ),
        Row(
            "variables-log-format",
            "AWS_LAMBDA_LOG_FORMAT and AWS_LAMBDA_LOG_LEVEL switch the runtime's log to JSON and to a level.",
            "read from source",
            SAME,
            at("unit/environment_child::log_lines_are_aws_s"),
        ),
        Row(
            "variables-names",
            "A name has two letters, digits or underscores at least, a letter first; all together have 4 KB.",
            "documented",
            SAME,
            at(
                "conformance/lambda_mapping::ranges_of_functions_are_awss",
                "unit/config::what_a_mapping_cannot_be_told",
            ),
            ("function.environment",),
        ),
        Row(
            "variables-reserved",
            "AWS's own variables cannot be set by a function.",
            "documented",
            differs("they can, and go before"),
            at("conformance/lambda_environment::awss_own_variables_can_be_given"),
            ("function.environment",),
        ),
    ),
)

LIMITS = Section(
    "Limits and billing",
    (
        Row(
            "limit-memory",
            "An environment that takes more than its memory is ended.",
            "documented",
            differs("by sampling: a short peak can go unnoticed"),
            at(_BAD),
            ("function.memory_size",),
        ),
        Row(
            "limit-cpu",
            "1,769 MB are one processor.",
            "documented",
            differs("memory gives no share of the processor"),
            at(_CONTEXT),
        ),
        Row(
            "limit-timeout",
            "An invocation that takes too long is ended, and its environment replaced.",
            "documented",
            SAME,
            at(_TIMEOUT, "integration/environments::a_timeout_ends_the_environment"),
            ("function.timeout",),
        ),
        Row(
            "limit-disk",
            "/tmp has 512 to 10,240 MB, and is the environment's own.",
            "documented",
            differs("it is the machine's: neither bounded nor apart"),
            at(_CRASH),
        ),
        Row(
            "limit-processes",
            "An environment has 1,024 file descriptors and 1,024 processes.",
            "documented",
            differs("the system's own limits hold"),
            at(_CONTEXT),
        ),
        Row(
            "limit-payload",
            "A payload has 6 MB each way; a larger answer fails its invocation.",
            "documented",
            SAME,
            at(
                _BAD,
                "integration/environments::large_requests_and_answers_go_through",
                "integration/provided::a_response_of_7_mb_costs_one_invocation",
                "unit/runtime_api_bounds::a_response_above_6_mb_fails_the_invocation_and_nothing_else",
            ),
        ),
        Row(
            "limit-scaling",
            "A function gets 1,000 environments in 10 s, each of which takes 10 requests a second.",
            "documented",
            differs("as many as the machine starts, up to the reserved concurrency, without such a rate"),
            at("integration/environment_pool::no_more_environments_than_reserved"),
        ),
        Row(
            "environment-one",
            "An environment has one invocation at a time.",
            "documented",
            SAME,
            at("integration/environment_pool::no_more_environments_than_reserved"),
        ),
        Row(
            "environment-globals",
            "Globals outlive invocations; a crash takes them and leaves /tmp.",
            "documented",
            SAME,
            at(_CRASH, _CONTEXT),
        ),
        Row(
            "environment-idle",
            "An environment that is idle is ended some time later.",
            "documented",
            SAME,
            at("integration/environment_pool::idle_environments_are_retired"),
        ),
        Row(
            "init-limit",
            "Initialisation has 10 s; else it is done over inside of the first invocation.",
            "documented",
            SAME,
            at(_SLOW),
        ),
        Row(
            "billed-duration",
            "Durations are rounded up to whole milliseconds.",
            "documented",
            SAME,
            at(_LOGS),
        ),
        Row("billed-init", "Initialisation is billed.", "documented", SAME, at(_LOGS)),
        Row(
            "prices",
            "GB-seconds, by architecture, and requests have prices; a part is free each month, volume is cheaper.",
            "documented",
            differs("prices of third-party copies, without volume tiers"),
            at(
                "unit/report_command::sums_and_charges",
                "unit/report_command::arm_is_cheaper",
                "unit/report_command::the_free_tier_is_that_of_each_month",
            ),
        ),
    ),
)
