"""The handler kinds: what a function is called with, and what it may give back.

Nothing is imported here, so that `loader`, `calling` and the event modules (`kinesis`, `kafka`, `dynamodb`,
`firehose`) load with the standard library alone.
"""
