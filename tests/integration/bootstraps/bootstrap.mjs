// A bootstrap for functions in JavaScript: `node bootstrap.mjs index.handler` calls `handler` of index.mjs.
import http from "node:http";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [host, port] = process.env.AWS_LAMBDA_RUNTIME_API.split(":");
const agent = new http.Agent({ keepAlive: true });

function call(method, resource, body, headers = {}) {
  return new Promise((resolve, reject) => {
    const options = { host, port, agent, method, path: `/2018-06-01/runtime/${resource}`, headers };
    const request = http.request(options, (response) => {
      const parts = [];
      response.on("data", (part) => parts.push(part));
      response.on("end", () => resolve({ headers: response.headers, body: Buffer.concat(parts).toString() }));
      response.on("error", reject);
    });
    request.on("error", reject);
    request.end(body);
  });
}

function report(resource, error) {
  const body = { errorMessage: error.message, errorType: error.name, trace: error.stack.split("\n") };
  return call("POST", resource, JSON.stringify(body), { "Lambda-Runtime-Function-Error-Type": error.name });
}

let handler;
try {
  const [module, name] = process.argv[2].split(".");
  handler = (await import(pathToFileURL(path.join(process.env.LAMBDA_TASK_ROOT, `${module}.mjs`))))[name];
  if (handler === undefined) throw new Error(`${module}.mjs has no ${name}`);
} catch (error) {
  await report("init/error", error);
  process.exit(1);
}

while (true) {
  const { headers, body } = await call("GET", "invocation/next");
  const id = headers["lambda-runtime-aws-request-id"];
  const context = {
    awsRequestId: id,
    invokedFunctionArn: headers["lambda-runtime-invoked-function-arn"],
    getRemainingTimeInMillis: () => Number(headers["lambda-runtime-deadline-ms"]) - Date.now(),
  };
  try {
    const result = await handler(JSON.parse(body), context);
    await call("POST", `invocation/${id}/response`, JSON.stringify(result ?? null));
  } catch (error) {
    await report(`invocation/${id}/error`, error);
  }
}
