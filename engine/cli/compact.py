"""`headrace compact`: small Parquet files joined into larger ones. `engine.compose.compact` acts; this tells."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from engine import config_file, logs
from engine.cli.progress import ProgressReport
from engine.errors import UserError

if TYPE_CHECKING:
    from engine.compose.compact import Done, Plan, Target

_PATH = typer.Argument(metavar="FILE|DIR", help="The configuration, or the directory of one Parquet sink.")
_PIPELINE = typer.Option("--pipeline", metavar="NAME", help="The sink of this one only; all when left out.")
_DRY_RUN = typer.Option("--dry-run", help="Say what would be joined, and change nothing.")
_NO_WAIT = typer.Option("--no-wait", help="Leave the removal of joined files to the next run or compaction.")
_JSON = typer.Option("--json", help="Print one JSON document.")


def compact(
    path: Annotated[Path, _PATH],
    pipeline: Annotated[str | None, _PIPELINE] = None,
    dry_run: Annotated[bool, _DRY_RUN] = False,
    no_wait: Annotated[bool, _NO_WAIT] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Join small Parquet files into files near file_bytes_target, while the engine runs or not.

    Rows and their order stay as they are, file by file of one shard and one Hive directory. Readers of
    headrace.duckdb see each row once throughout. Plain globs see joined files beside what they were joined
    to, for retired_seconds_min, after which this command removes them and ends. Interrupted, it loses nothing:
    the next one, or a run with compact = true, goes on.

    \b
        headrace compact headrace.toml --dry-run
        headrace compact out/clicks
    """
    from engine.compose import compact as compose

    logs.configure(json=as_json)
    if not path.exists():
        raise UserError(f"there is no {path}", hint="name a configuration, or the directory of a Parquet sink")
    found = []
    for target in compose.targets(path, config_file.load, pipeline):
        if dry_run:
            found.append(_planned(target, compose.plan(target), as_json))
        else:
            found.append(_compacted(target, as_json, waits=not no_wait))
    if as_json:
        typer.echo(orjson.dumps({"dry_run": dry_run, "sinks": found}, option=orjson.OPT_INDENT_2).decode())


def _planned(target: Target, plan: Plan, as_json: bool) -> dict[str, Any]:
    if not as_json:
        outputs = len(plan.groups)
        typer.echo(
            f"{target.path}: {plan.files:,} of {plan.files_total:,} files, {_size(plan.bytes)}, "
            f"would be joined into {outputs:,}"
            if outputs
            else f"{target.path}: nothing to join among {plan.files_total:,} files"
        )
    return {
        **_names(target),
        "files_total": plan.files_total,
        "files": plan.files,
        "bytes": plan.bytes,
        "groups": [
            {"directory": group.directory, "files": len(group.files), "bytes": group.bytes} for group in plan.groups
        ],
    }


def _compacted(target: Target, as_json: bool, *, waits: bool) -> dict[str, Any]:
    from engine.compose import compact as compose

    planned = max(1, compose.plan(target).files)
    started = time.monotonic()
    total = compose.Done()
    with ProgressReport(f"compacting {target.path.name}", quiet=as_json) as report:

        def progress(done: Done) -> None:
            files = total.files + done.files
            report.update(min(1.0, files / planned), f"{files:,} files")

        for done in compose.compact(
            target, progress, lambda: report.update(None, "waiting: files of this directory are being compacted")
        ):
            total = _sum(total, done)
        seconds = time.monotonic() - started
        if waits:
            compose.finish(target, lambda left: report.update(None, f"joined files are removed in {left:.0f} s"))
    if not as_json:
        typer.echo(
            f"{target.path}: {total.files:,} files, {_size(total.bytes_before)}, were joined into "
            f"{total.outputs:,}, {_size(total.bytes_after)}, with {total.rows:,} rows, in {seconds:.1f} s"
            if total.outputs
            else f"{target.path}: nothing to join"
        )
    return {
        **_names(target),
        "files": total.files,
        "outputs": total.outputs,
        "rows": total.rows,
        "bytes_before": total.bytes_before,
        "bytes_after": total.bytes_after,
        "seconds": round(seconds, 3),
        "removed": waits,
    }


def _sum(total: Done, done: Done) -> Done:
    return type(total)(
        files=total.files + done.files,
        outputs=total.outputs + done.outputs,
        rows=total.rows + done.rows,
        bytes_before=total.bytes_before + done.bytes_before,
        bytes_after=total.bytes_after + done.bytes_after,
    )


def _names(target: Target) -> dict[str, Any]:
    return {"pipeline": target.pipeline, "path": str(target.path)}


def _size(count: int) -> str:
    """Bytes for people."""
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"
