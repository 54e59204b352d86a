"""A persistence layer of Powertools' idempotency over SQLite: what a user without DynamoDB would write."""

from __future__ import annotations

import sqlite3
import time

from common import stand_in_for_boto3

stand_in_for_boto3()

from aws_lambda_powertools.utilities.idempotency import BasePersistenceLayer  # noqa: E402  # needs boto3
from aws_lambda_powertools.utilities.idempotency.exceptions import (  # noqa: E402
    IdempotencyItemAlreadyExistsError,
    IdempotencyItemNotFoundError,
)
from aws_lambda_powertools.utilities.idempotency.persistence.base import DataRecord  # noqa: E402


class SqlitePersistence(BasePersistenceLayer):
    """Keys, states and answers, in one table of a file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS kept (id TEXT PRIMARY KEY, status TEXT, expires INT, data TEXT)"
        )

    def _get_record(self, idempotency_key: str) -> DataRecord:
        row = self._database.execute("SELECT * FROM kept WHERE id = ?", [idempotency_key]).fetchone()
        if row is None:
            raise IdempotencyItemNotFoundError
        return DataRecord(row[0], status=row[1], expiry_timestamp=row[2], response_data=row[3])

    def _put_record(self, data_record: DataRecord) -> None:
        self._database.execute("DELETE FROM kept WHERE expires < ?", [int(time.time())])
        try:
            self._write("INSERT INTO kept VALUES (?, ?, ?, ?)", data_record)
        except sqlite3.IntegrityError:
            raise IdempotencyItemAlreadyExistsError from None

    def _update_record(self, data_record: DataRecord) -> None:
        self._write("INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)", data_record)

    def _delete_record(self, data_record: DataRecord) -> None:
        self._database.execute("DELETE FROM kept WHERE id = ?", [data_record.idempotency_key])

    def _write(self, statement: str, record: DataRecord) -> None:
        given = (record.idempotency_key, record.status, record.expiry_timestamp, record.response_data)
        self._database.execute(statement, given)
