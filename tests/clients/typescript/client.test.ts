// The generated client calls every endpoint of a running server. `tsc --strict` checks the types of what is used here,
// `node --test` what the answers say. Which operations there are is read from the server's document.

import { deepStrictEqual as same, ok } from "node:assert";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { client } from "./client/client.gen";
import * as sdk from "./client";
import type { FailedFile, FieldProblem, ImageResult, LabelPrediction, WordPrediction } from "./client";

const server = process.env.GRIDLOOP_URL ?? "";
const models = process.env.GRIDLOOP_TEST_MODELS ?? "";

let bodyOfAnswer = "";

client.setConfig({
  baseUrl: server,
  fetch: async (request, options) => {
    const answer = await fetch(request, options);
    bodyOfAnswer = await answer.clone().text();
    return answer;
  },
});

function picture(label: string): File {
  return new File([readFileSync(`${models}/cifar10-cnn/1/golden/${label}.png`)], `${label}.png`, { type: "image/png" });
}

// --- every operation of the document

type Operation = {
  operationId: string;
  parameters?: { name: string; in: string; schema: { examples?: unknown[] } }[];
  requestBody?: { content: Record<string, { examples?: Record<string, { value: unknown }>; schema: Form }> };
};
type Form = { properties?: { file?: { items: { "x-sample": string } } } };
type Call = (options: object) => Promise<{ data: unknown; error: unknown; response: Response }>;

const functionOf = (operation: Operation) => operation.operationId.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());

async function bodies(operation: Operation): Promise<unknown[]> {
  const content = operation.requestBody?.content ?? {};
  const sample = content["multipart/form-data"]?.schema.properties?.file?.items["x-sample"];
  if (sample) {
    const file = await (await fetch(sample)).blob();
    return [{ file: [file] }, { file: [file, file] }];
  }
  return Object.values(content["application/json"]?.examples ?? {}).map((example) => example.value);
}

test("every operation answers, and nothing of the answer is lost", async () => {
  const document = (await (await fetch(`${server}/openapi.json`)).json()) as { paths: Record<string, Record<string, Operation>> };
  const operations = Object.values(document.paths).flatMap((path) => Object.values(path));
  const functions = Object.keys(sdk).sort();
  same(operations.map(functionOf).sort(), functions);
  for (const operation of operations) {
    const call = sdk[functionOf(operation) as keyof typeof sdk] as unknown as Call;
    const places = (operation.parameters ?? []).filter((place) => place.in === "path");
    const path = Object.fromEntries(places.map((place) => [place.name, place.schema.examples?.[0]]));
    for (const body of operation.requestBody ? await bodies(operation) : [undefined]) {
      const { data, error, response } = await call({ path, body });
      same([operation.operationId, response.status, error], [operation.operationId, 200, undefined]);
      same(data, typeof data === "string" ? bodyOfAnswer : JSON.parse(bodyOfAnswer));
    }
  }
});

// --- what the answers say

test("a text is continued", async () => {
  const { data } = await sdk.nextWordPrediction({ body: { text: "How are", top_k: 3 }, throwOnError: true });
  const [best]: WordPrediction[] = data.predictions;
  same([best?.text, data.predictions.length, data.model.name], ["you", 3, "english-lstm"]);
  ok(best && best.score > 0.5);
});

const isAnswer = (result: ImageResult | FailedFile): result is ImageResult => !("error" in result);

test("pictures are labelled, several as a form and one as the body", async () => {
  const { data } = await sdk.imageClassification({
    body: { file: [picture("cat"), picture("ship")] },
    query: { top_k: 2, explain: true },
    throwOnError: true,
  });
  const [cat, ship]: ImageResult[] = data.results.filter(isAnswer);
  same([cat?.filename, ship?.filename], ["cat.png", "ship.png"]);
  const labels: LabelPrediction[] = [...(cat?.predictions ?? []), ...(ship?.predictions ?? [])];
  same([labels.length, labels[0]?.label, labels[2]?.label], [4, "cat", "ship"]);
  same(ship?.heatmap?.label, "ship");

  // The generator takes the first way of sending a file; the other is said by hand.
  const raw = await sdk.imageClassification({
    body: picture("ship") as never,
    bodySerializer: null,
    headers: { "Content-Type": "application/octet-stream" },
    query: { model: "cifar10-cnn@1" },
    throwOnError: true,
  });
  same([raw.data.model.version, raw.data.results.filter(isAnswer)[0]?.predictions[0]?.label], ["1", "ship"]);

  // Of several files, one that cannot be used does not lose the answers of the others.
  const mixed = await sdk.imageClassification({ body: { file: [new Blob(["no picture"]), picture("cat")] }, throwOnError: true });
  const [broken] = mixed.data.results;
  ok(broken && !isAnswer(broken) && broken.error.type === "/problems/invalid-input");
  same(mixed.data.results.filter(isAnswer)[0]?.predictions[0]?.label, "cat");
});

test("a stream goes on with the state of the answer before", async () => {
  const values = [10.1, 10.3, 9.9, 10.2, null, 10.0, 9.8, 10.1, 10.2, 9.9, 10.0, 10.1, 25.0, 10.0];
  const whole = await sdk.anomalyDetection({ body: { values }, throwOnError: true });
  const first = await sdk.anomalyDetection({ body: { values: values.slice(0, 10) }, throwOnError: true });
  const rest = await sdk.anomalyDetection({ body: { values: values.slice(10), state: first.data.state }, throwOnError: true });
  ok(whole.data.anomalies.includes(12));
  same(rest.data.is_anomaly, whole.data.is_anomaly.slice(10));
});

test("tensors go as numbers and as bytes", async () => {
  const values = new Float64Array([1, 2, 3, 4]);
  const described = { name: "values", shape: [1, 4], datatype: "FP64" as const };
  const path = { model_name: "series-gru" };
  const numbers = await sdk.infer({ path, body: { inputs: [{ ...described, data: [...values] }] }, throwOnError: true });
  const head = JSON.stringify({ inputs: [{ ...described, parameters: { binary_data_size: values.byteLength } }] });
  const binary = await sdk.infer({
    path,
    body: new Blob([head, values]) as never,
    bodySerializer: null,
    headers: { "Content-Type": "application/octet-stream", "Inference-Header-Content-Length": head.length },
    throwOnError: true,
  });
  same(numbers.data.model_version, "2");
  same(numbers.data.outputs.find((tensor) => tensor.name === "expected")?.shape, [1, 4]);
  same(binary.data.outputs, numbers.data.outputs);
});

test("models, probes and metrics are typed", async () => {
  const listed = await sdk.listModels({ throwOnError: true });
  ok(listed.data.models.some((model) => model.name === "cifar10-cnn" && model.task === "image-classification"));
  const one = await sdk.getModel({ path: { name: "series-gru" }, throwOnError: true });
  same([one.data.versions[0]?.state, one.data.card.startsWith("# ")], ["ready", true]);
  const tensors = await sdk.modelMetadata({ path: { model_name: "series-gru" }, throwOnError: true });
  same(tensors.data.inputs.find((tensor) => tensor.name === "values")?.datatype, "FP64");
  same((await sdk.livez({ throwOnError: true })).data.status, "alive");
  same((await sdk.readyz({ throwOnError: true })).data.status, "ready");
  const metrics: string = (await sdk.metrics({ throwOnError: true })).data;
  ok(metrics.includes("gridloop_requests_total"));
});

test("an error is a typed object too", async () => {
  const refused = await sdk.nextWordPrediction({ body: { text: "How are", top_k: 0 } });
  const fields: FieldProblem[] | undefined = refused.error?.errors;
  same([refused.error?.status, fields?.[0]?.loc], [422, ["body", "top_k"]]);
  const unknown = await sdk.getModel({ path: { name: "nobody" } });
  same(unknown.error?.type, "/problems/model-not-found");
  const protocol = await sdk.modelReady({ path: { model_name: "nobody" } });
  ok(protocol.error?.error.includes("nobody"));
});
