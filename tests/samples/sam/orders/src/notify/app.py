"""A handler of DynamoDB events that counts changes in a tumbling window."""


def handler(event, context):
    state = event["state"]
    state["changes"] = state.get("changes", 0) + len(event["Records"])
    return {"state": state}
