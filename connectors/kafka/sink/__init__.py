"""The Kafka sink: rows as messages of a topic, positions in one of headrace's own, moved by a transaction."""

from connectors.kafka.sink.messages import MessageFormat
from connectors.kafka.sink.positions import read_positions
from connectors.kafka.sink.sink import KafkaSink, state_topic_of
from connectors.kafka.sink.writer import KafkaShardWriter

__all__ = ["KafkaShardWriter", "KafkaSink", "MessageFormat", "read_positions", "state_topic_of"]
