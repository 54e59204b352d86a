"""SQL by analysts over what sinks hold: what may be asked (`check`), and how long, how much, how many (`runner`).

    runner = Runner(connect, queries_max=4, seconds_max=30, rows_max=1_000_000)
    running = runner.start("SELECT page, count(*) FROM clicks GROUP BY ALL")
    table = running.result(timeout=60)  # pyarrow.Table; running.cancel() from any thread

Not here: where the data is (``connect`` opens it), and how an answer travels.
"""

from connectors.analysis.check import Question, check
from connectors.analysis.runner import Busy, Cancelled, Runner, Running

__all__ = ["Busy", "Cancelled", "Question", "Runner", "Running", "check"]
