"""A handler of Kafka events: it tells how many records of each partition it was given."""


def handler(event, context):
    for partition, records in event["records"].items():
        print(partition, len(records))
