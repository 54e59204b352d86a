"""What a run can be watched by: every metric, how Prometheus reads them, and what healthy means.

All of it reads a frozen `engine.status.EngineStatus`, in any thread. Not here: measuring, and serving over HTTP.
"""

from engine.metrics.accounting import account
from engine.metrics.exposition import expose
from engine.metrics.health import Health, Reason, commit_waits, health
from engine.metrics.registry import METRICS, Metric

__all__ = ["METRICS", "Health", "Metric", "Reason", "account", "commit_waits", "expose", "health"]
