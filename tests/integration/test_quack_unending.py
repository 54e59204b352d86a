"""A query that DuckDB cannot interrupt holds up neither the commits nor the end of an engine.

In a process of its own, which is killed: nothing else ends such a query.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from connectors.duckdb.serving import address_path
from tests.integration.quack_world import client

#: DuckDB plans it for minutes, without looking up.
UNENDING = "SELECT count(*) FROM clicks AS t0 " + " ".join(
    f"JOIN clicks AS t{each} USING (i)" for each in range(1, 250)
)

ENGINE = """
import asyncio, os, sys, time
from pathlib import Path
import connectors.analysis.lending as lending
from connectors.duckdb import Database
from connectors.duckdb.serving import ServingSettings

lending.END_SECONDS_MAX = 1.0

async def main(path, stop):
    database = Database(path, serving=ServingSettings(seconds_max=0.5))
    await database.open()
    await database.run(lambda connection: connection.execute("CREATE TABLE clicks AS SELECT 1 AS i"))
    while not stop.exists():
        await asyncio.sleep(0.05)
    assert database.lending.is_lent
    await database.run(lambda connection: connection.execute("INSERT INTO clicks VALUES (2)"))
    await database.close()
    print("closed", flush=True)
    os._exit(0)

asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
"""


ASKING = """
import sys
from pathlib import Path
from connectors.duckdb.serving import read_address
from tests.integration.quack_world import client

address = read_address(Path(sys.argv[1]))
with client() as connection:
    connection.execute("FROM quack_query(?, ?, token => ?)", [address.uri, sys.argv[2], address.token])
"""


def test_an_engine_ends_though_a_query_does_not(tmp_path: Path) -> None:
    """It has its time, and is then left; what was committed meanwhile is there."""
    database, stop = tmp_path / "d.duckdb", tmp_path / "stop"
    command = [sys.executable, "-c", ENGINE, str(database), str(stop)]
    engine = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 30
        while not address_path(database).exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        asking = subprocess.Popen([sys.executable, "-c", ASKING, str(database), UNENDING])
        try:
            time.sleep(3)
            stop.touch()
            out, _ = engine.communicate(timeout=30)
        finally:
            asking.kill()
            asking.wait()
    finally:
        engine.kill()
        engine.wait()
    assert (out, engine.returncode) == ("closed\n", 0)
    with client() as connection:
        connection.execute(f"ATTACH '{database}' AS d (READ_ONLY)")
        assert connection.execute("SELECT count(*) FROM d.clicks").fetchall() == [(2,)]
