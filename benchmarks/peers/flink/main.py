"""Flink SQL does a job of the benchmark: this process becomes a JVM with a mini cluster in it (FlinkSql.java)."""

from __future__ import annotations

import os

from benchmark_job import java_command, read_job

#: What Flink's own scripts open to it on Java 17.
OPENED = ("java.lang", "java.util", "java.nio", "java.net", "java.io", "java.text", "java.time")


def main() -> None:
    job = read_job()
    options = ["-Xmx3g", *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in OPENED)]
    command = java_command("FlinkSql", options, job)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
