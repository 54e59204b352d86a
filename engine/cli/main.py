"""The command `headrace`: its subcommands, and the exit codes that follow from an error's domain."""

from __future__ import annotations

import traceback

import typer

from engine.cli import broker, compact, demo, dlq, doctor, invoke, position, produce, query, report, run, top
from engine.cli import filter as filter_command
from engine.errors import Domain, HeadraceError

app = typer.Typer(
    name="headrace",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="""Lambda-style functions on Kafka, written to Parquet and DuckDB exactly once.

    \b
    headrace demo                     a real Kafka, three pipelines, a table of answers
    headrace broker start             an Apache Kafka of your own, on this machine
    headrace produce clicks FILE      bring events into a topic
    headrace check headrace.toml      is the configuration right?
    headrace run headrace.toml        run it
    headrace query "SQL" --db FILE    ask the results
    headrace invoke MODULE.FUNCTION F call a handler with the lines of a file, without a broker
    headrace filter PATTERN FILE      which events an event pattern matches
    headrace position show FILE       where each shard stands, and how far it is behind
    headrace dlq list FILE            what failed and why; dlq replay sends it again, once
    headrace report FILE              what functions took, and what AWS would have charged
    headrace compact FILE             join small Parquet files
    headrace top FILE                 what a run does, live
    headrace doctor FILE              what is wrong, and what to do

    Exit codes: 0 done, 2 something you can mend, 3 something outside (broker, disk), 4 a bug in headrace.
    """,
)
app.command()(run.run)
app.command()(run.check)
app.command("filter")(filter_command.filter_events)
app.command()(report.report)
app.command()(top.top)
app.command()(doctor.doctor)
app.command()(invoke.invoke)
app.command()(compact.compact)
app.command()(produce.produce)
app.command()(query.query)
app.command()(demo.demo)
app.add_typer(position.app, name="position", help="Where pipelines stand, and moving them.")
app.add_typer(dlq.app, name="dlq", help="Failed records: what and why, and sending them again.")
app.add_typer(broker.app, name="broker", help="The embedded Apache Kafka broker.")


def call(arguments: list[str]) -> int:
    """Run the command line; the exit code."""
    try:
        result = app(args=arguments, standalone_mode=False)
    except typer.Exit as done:
        return done.exit_code
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "headrace"
        typer.echo(f"error: {error.format_message()}\n  see {command} --help", err=True)
        return Domain.USER
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("stopped", err=True)
        return 130
    except HeadraceError as error:
        typer.echo(f"error: {error}", err=True)
        return error.domain
    except BrokenPipeError:
        return 0
    except Exception:
        traceback.print_exc()
        typer.echo("error: this is a bug in headrace; the lines above say where", err=True)
        return Domain.INTERNAL
    return result if isinstance(result, int) else 0
