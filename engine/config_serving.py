"""What a run shows of itself and to whom: the page, the server for analysts, traces. Models; no server here."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from engine.config_model import Model, Names

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class WebConfig(Model):
    """The page of a run, with /metrics and /healthz."""

    enabled: bool = Field(True, description="serve it; runs with `--until-caught-up` do not")
    host: str = Field(
        "127.0.0.1", min_length=1, description="the address to listen at; another than loopback needs token"
    )
    port: int = Field(
        8321, ge=0, le=65_535, description="0: any free one; a port that is taken gives another one too"
    )
    token: SecretStr | None = Field(
        None,
        min_length=16,
        description="what users have to know; HEADRACE_WEB_TOKEN when left out; loopback needs none",
    )
    names: Names = Field(
        (), description="host names that browsers may use for it, beside the address; others are refused"
    )
    stall_seconds_max: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="/healthz: how long a shard's position may stand still with records behind it",
    )
    failures_max: int = Field(
        200, ge=1, le=10_000, description="of the latest failed records, of each pipeline, to show"
    )
    failures_bytes_max: int = Field(4_194_304, ge=65_536, description="of those failed records together, in memory")


class QueryConfig(Model):
    """SQL over the sinks of a run: DuckDB's Quack protocol for its DuckDB files, and the page's SQL box."""

    serve: bool = Field(True, description="serve DuckDB sinks by the Quack protocol, read only")
    host: Literal["127.0.0.1", "::1", "localhost"] = Field(
        "127.0.0.1", description="loopback only: Quack has no TLS of its own; put a proxy before it"
    )
    port: int = Field(
        0, ge=0, le=65_535, description="of the first DuckDB file, the next ones follow; 0: any free ones"
    )
    token: SecretStr | None = Field(
        None,
        min_length=16,
        description="what analysts have to know; HEADRACE_QUERY_TOKEN, or made anew for each run",
    )
    queries_max: int = Field(
        4, ge=1, le=64, description="at a time, for each DuckDB file and for the page; others wait"
    )
    seconds_max: float = Field(
        30.0, gt=0, le=3_600, description="of one query, waiting included; then it is interrupted"
    )
    rows_max: int = Field(5_000_000, ge=1, description="of one result; a query with more is refused")
    threads_max: int | None = Field(
        None, ge=1, le=256, description="of one DuckDB file; as many as cores when left out"
    )


class TracingConfig(Model):
    """OpenTelemetry traces: a span for each invocation; the context comes from records' headers."""

    enabled: bool = Field(False, description="send spans")
    endpoint: str = Field(
        "http://127.0.0.1:4318/v1/traces",
        description="OTLP over HTTP; headers come from OTEL_EXPORTER_OTLP_HEADERS",
    )
    sample_share: float = Field(1.0, gt=0, le=1, description="of invocations without a sampled parent")
    links_max: int = Field(128, ge=0, le=1_024, description="records' contexts that one span is linked with")

    @model_validator(mode="after")
    def _endpoint_is_one(self) -> Self:
        if not self.endpoint.startswith(("http://", "https://")):
            raise ValueError("endpoint starts with http:// or https://")
        return self
