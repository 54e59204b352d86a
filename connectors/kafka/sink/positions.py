"""The positions of a Kafka sink, read without owning or changing anything of it, also while others write.

Not here: the sink itself (`connectors.kafka.sink.sink`), whose ``open`` makes the state topic.
"""

from __future__ import annotations

from aiokafka.client import AIOKafkaClient

from connectors.kafka.cluster import Cluster
from connectors.kafka.sink.state import Binding, StateLog, check_binding
from engine.batch import Stream
from engine.protocols import Clock


async def read_positions(
    cluster: Cluster, clock: Clock, *, pipeline: str, stream: Stream, output: str, state_topic: str
) -> dict[int, int | None]:
    """The committed position of each of the stream's partitions, None where there is none.

    ``output`` is the sink's topic, empty for one that takes no rows.
    Raises SinkMismatch and RecreatedTopic for a sink of something else, BrokerUnavailable.
    """
    positions: dict[int, int | None] = dict.fromkeys(range(stream.partitions))
    if state_topic not in await cluster.topics():
        return positions

    async def with_topic(client: AIOKafkaClient) -> AIOKafkaClient:
        client.add_topic(state_topic)
        await client.force_metadata_update()
        return client

    state = (await cluster.describe(state_topic)).stream
    client = await cluster.call(with_topic, f"no answer about topic {state_topic!r}")
    log = StateLog(cluster, client, clock, state_topic, state.topic_id)
    bound = check_binding(await log.adopted(), Binding.of(pipeline, stream, output), state_topic, restart=False)
    if bound is None:
        return positions
    for partition in range(min(stream.partitions, state.partitions - 1)):
        positions[partition] = (await log.shard(partition)).positions.get(stream.topic_id)
    return positions
