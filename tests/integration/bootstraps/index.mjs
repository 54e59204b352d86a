export async function handler(event, context) {
  const values = event.Records.map((record) => Buffer.from(record.kinesis.data, "base64").toString());
  if (values.includes("fail")) throw new TypeError("the record says so: ü");
  if (values.includes("exit")) process.exit(3);
  console.log("saw", values.length);
  return { values, requestId: context.awsRequestId, arn: context.invokedFunctionArn, left: context.getRemainingTimeInMillis() };
}
