"""Spark Structured Streaming does a job of the benchmark: one query, trigger availableNow, on local cores."""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmark_job import WINDOW_MS, Job, print_result, read_job

if os.environ.get("BENCHMARK_JAVA"):
    os.environ["JAVA_HOME"] = str(Path(os.environ["BENCHMARK_JAVA"]).parent.parent)

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention
from pyspark.sql.streaming import DataStreamWriter, StreamingQuery

FIELDS = (
    "event_id BIGINT, user_id STRING, session STRING, page STRING, event_type STRING, ts BIGINT, "
    "referrer STRING, ua STRING, price DOUBLE, ip STRING"
)
BATCH_RECORDS_MAX = 500_000
WATERMARK = "10 minutes"


def session(job: Job) -> SparkSession:
    jars = sorted((Path(os.environ["BENCHMARK_PEER"]) / "jars").glob("*.jar"))
    scratch = job.scratch_directory
    spark = (
        SparkSession.builder.master(f"local[{job.processes}]")
        .config("spark.jars", ",".join(map(str, jars)))
        .config("spark.driver.memory", "3g")
        .config("spark.ui.enabled", "false")
        .config("spark.local.dir", str(scratch / "local"))
        .config("spark.sql.warehouse.dir", str(scratch / "warehouse"))
        # Its default of 200 is for clusters; state is kept in as many parts.
        .config("spark.sql.shuffle.partitions", str(job.processes))
        .config("spark.sql.parquet.compression.codec", "zstd")
        .config("spark.sql.session.timeZone", "UTC")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("WARN")
    return spark


def source(spark: SparkSession, job: Job) -> DataFrame:
    records = (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", job.bootstrap)
        .option("subscribe", job.topic)
        .option("startingOffsets", "earliest")
        .option("maxOffsetsPerTrigger", BATCH_RECORDS_MAX)
        .load()
    )
    event = F.from_json(F.col("value").cast("string"), FIELDS).alias("event")
    return records.select("key", event).select("key", "event.*")


def etl(events: DataFrame, job: Job) -> DataStreamWriter:
    return events.drop("key").writeStream.format("parquet").option("path", str(job.output_directory))


def filtered(events: DataFrame, job: Job) -> DataStreamWriter:
    wanted = events.where("event_type = 'purchase' AND price > 90")
    fields = [F.col(name) for name in events.columns if name != "key"]
    return (
        wanted.select("key", F.to_json(F.struct(*fields)).alias("value"))
        .writeStream.format("kafka")
        .option("kafka.bootstrap.servers", job.bootstrap)
        .option("kafka.compression.type", "lz4")
        .option("topic", job.output)
    )


def window(events: DataFrame, job: Job) -> DataStreamWriter:
    windows = (
        events.withColumn("time", F.timestamp_millis("ts"))
        .withWatermark("time", WATERMARK)
        .groupBy(F.window("time", f"{WINDOW_MS // 1000} seconds"), "page")
        .agg(F.count("*").alias("count"), F.sum("price").alias("sum"))
        .select(F.unix_millis("window.start").alias("window_start"), "page", "count", "sum")
    )
    directory = job.output_directory

    def write(batch: DataFrame, number: int) -> None:
        # A batch that is done again replaces what it wrote.
        batch.write.mode("overwrite").parquet(str(directory / f"{number:05}"))

    return windows.writeStream.outputMode("update").foreachBatch(write)


def main() -> None:
    job = read_job()
    spark = session(job)
    started = time.perf_counter()
    writer = {"etl": etl, "filter": filtered, "window": window}[job.workload](source(spark, job), job)
    query: StreamingQuery = (
        writer.option("checkpointLocation", str(job.scratch_directory / "checkpoint"))
        .trigger(availableNow=True)
        .start()
    )
    query.awaitTermination()
    seconds = time.perf_counter() - started
    spark.stop()
    print_result(job.events, seconds)


if __name__ == "__main__":
    main()
