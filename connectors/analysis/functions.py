"""Which of DuckDB's functions analysts may call: those that only compute, and those that only describe.

Everything is taken from DuckDB's own list of what it has built in, and then left out by name or by its
volatility; what is not built in (a macro of the file, a function of the engine's) is in no list, and refused.
"""

from __future__ import annotations

import functools

import duckdb

#: Built in scalars that do more than compute, or whose argument is taken for more than a value: sequences,
#: settings, variables, the log, sleeping, plans (which open what they name), raw states and bytes of DuckDB's own.
REFUSED = frozenset(
    {
        "combine",
        "current_setting",
        "currval",
        "finalize",
        "getenv",
        "getvariable",
        "json_execute_serialized_sql",
        "json_serialize_plan",
        "nextval",
        "pg_sleep",
        "setseed",
        "~~~",  # GLOB: its time grows with the pattern's stars without bound, and nothing interrupts it
        "sleep_ms",
        "stats",
        "variant_bytes_to_variant",
        "vector_type",
        "write_log",
    }
)

_REFUSED_PREFIXES = ("__internal", "quack_", "pragma_", "duckdb_", "ducklake_", "read_", "which_")

#: The volatile ones that may be called; any other is refused, also one that a later DuckDB adds.
VOLATILE = frozenset({"error", "gen_random_uuid", "random", "uuid", "uuidv4", "uuidv7"})

#: Parsed as functions, without an entry of their own.
_SYNTAX = frozenset({"unnest", "unlist"})

TABLE_FUNCTIONS = frozenset(
    {
        "duckdb_columns",
        "duckdb_constraints",
        "duckdb_databases",
        "duckdb_functions",
        "duckdb_indexes",
        "duckdb_keywords",
        "duckdb_memory",
        "duckdb_schemas",
        "duckdb_tables",
        "duckdb_types",
        "duckdb_views",
        "generate_series",
        "icu_calendar_names",
        "json_each",
        "json_tree",
        "pg_timezone_names",
        "pragma_collations",
        "pragma_database_size",
        "pragma_table_info",
        "pragma_version",
        "range",
        "repeat",
        "repeat_row",
        "unnest",
    }
)

#: What a DuckLake catalogue tells about itself, by function or by its own macros; all of them only read.
LAKE_FUNCTIONS = frozenset(
    {
        "current_snapshot",
        "last_committed_snapshot",
        "list_files",
        "snapshots",
        "table_changes",
        "table_deletions",
        "table_info",
        "table_insertions",
    }
)
LAKE_TABLE_FUNCTIONS = LAKE_FUNCTIONS | {f"ducklake_{name}" for name in LAKE_FUNCTIONS}

_BUILT_IN = """
SELECT DISTINCT function_name, function_type, stability FROM duckdb_functions()
WHERE internal AND database_name = 'system' AND function_type IN ('scalar', 'aggregate', 'macro')
"""


@functools.cache
def computing() -> frozenset[str]:
    """The names, in lower case, of the functions that may stand in an expression.

    They are those of DuckDB alone: what extensions add is not among them.
    """
    allowed, refused = set(_SYNTAX), set(REFUSED)
    with duckdb.connect() as connection:
        functions = connection.execute(_BUILT_IN).fetchall()
    for name, kind, stability in functions:
        name = name.lower()
        volatile = kind == "scalar" and stability not in ("CONSISTENT", "CONSISTENT_WITHIN_QUERY")
        if (volatile and name not in VOLATILE) or name.startswith(_REFUSED_PREFIXES):
            refused.add(name)
        allowed.add(name)
    return frozenset(allowed - refused)
