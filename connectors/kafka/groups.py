"""Offsets of a consumer group, read and moved by somebody who is no member of it.

Members commit through `source`. A commit from outside is taken by the broker only while the group has no
members (Kafka protocol, OffsetCommit with generation -1), so nothing here can pull an offset from under one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aiokafka import errors
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest

from connectors.kafka.cluster import Cluster
from engine.errors import ExternalError

#: What a broker answers when the group has members, or is about to.
IN_USE = (errors.UnknownMemberIdError, errors.IllegalGenerationError, errors.RebalanceInProgressError)


async def group_offsets(
    cluster: Cluster, group: str, topic: str, partitions: Sequence[int]
) -> dict[int, int | None]:
    """The committed offset of each partition; None where the group has none. Raises as `Cluster.call` does."""

    async def ask(client: AIOKafkaClient) -> dict[int, int | None]:
        coordinator = await client.coordinator_lookup(CoordinationType.GROUP, group)
        answer = await client.send(coordinator, OffsetFetchRequest(group, [(topic, list(partitions))]))
        _raise(getattr(answer, "error_code", 0), group)
        found: dict[int, int | None] = dict.fromkeys(partitions)
        for _topic, entries in answer.topics:
            for partition, offset, _metadata, error_code in entries:
                _raise(error_code, group)
                found[partition] = None if offset < 0 else offset
        return found

    return await cluster.call(ask, f"no offsets of group {group!r}")


async def move_group_offsets(cluster: Cluster, group: str, topic: str, offsets: Mapping[int, int]) -> None:
    """Commit ``offsets`` to a group without members. Raises ExternalError, with nothing moved, where it has some"""

    async def commit(client: AIOKafkaClient) -> None:
        coordinator = await client.coordinator_lookup(CoordinationType.GROUP, group)
        entries = [(partition, offset, "") for partition, offset in offsets.items()]
        answer = await client.send(coordinator, OffsetCommitRequest(group, -1, "", -1, [(topic, entries)]))
        for _topic, results in answer.topics:
            for _partition, error_code in results:
                _raise(error_code, group)

    await cluster.call(commit, f"group {group!r} took no offsets")


def _raise(error_code: int, group: str) -> None:
    error = errors.for_code(error_code)
    if error is errors.NoError:
        return
    if error in IN_USE:
        raise ExternalError(
            f"consumer group {group!r} has members, which would not hear of a moved offset",
            hint="stop the processes that run the pipeline, and wait for their session to end",
        )
    if error in (errors.GroupAuthorizationFailedError, errors.TopicAuthorizationFailedError):
        raise ExternalError(f"consumer group {group!r}: not authorized to use its offsets")
    raise error(group)
