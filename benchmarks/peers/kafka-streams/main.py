"""Kafka Streams does a job of the benchmark: this process becomes a JVM (Streams.java)."""

from __future__ import annotations

import os

from benchmark_job import java_command, read_job


def main() -> None:
    job = read_job()
    options = ["-Xmx2g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
    command = java_command("Streams", options, job)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
