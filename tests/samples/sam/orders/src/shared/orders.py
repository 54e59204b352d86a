"""A handler of Kinesis events: it notes the orders that it was given."""

import base64
import json
import os


def lambda_handler(event, context):
    for record in event["Records"]:
        order = json.loads(base64.b64decode(record["kinesis"]["data"]))
        print(os.environ["STAGE"], context.function_name, order["id"])
    return {"batchItemFailures": []}
