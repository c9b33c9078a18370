// The types that openapi-typescript makes of the document, around plain `fetch`: `tsc --strict` checks what is asked and
// what is read, also where it is wrong, and `node --test` that answers are what the types say.

import { deepStrictEqual as same, ok } from "node:assert";
import { test } from "node:test";

import type { paths } from "./schema";

const server = process.env.GRIDLOOP_URL ?? "";

type Post<P extends keyof paths> = NonNullable<paths[P]["post"]>;
type Body<P extends keyof paths> = Post<P> extends { requestBody: { content: { "application/json": infer T } } } ? T : never;
type Content<P extends keyof paths> = Post<P> extends { responses: { 200: { content: infer T } } } ? T : never;
type Answer<P extends keyof paths> = Content<P> extends { "application/json": infer T } ? T : never;
type Happening<P extends keyof paths> = Content<P> extends { "text/event-stream": infer T } ? T : never;

const headers = { "Content-Type": "application/json" };

async function ask<P extends keyof paths>(path: P, body: Body<P>): Promise<Answer<P>> {
  const answer = await fetch(server + path, { method: "POST", headers, body: JSON.stringify(body) });
  ok(answer.ok, await answer.clone().text());
  return (await answer.json()) as Answer<P>;
}

async function* listen<P extends keyof paths>(path: P, body: Body<P>): AsyncGenerator<Happening<P>> {
  const accept = { ...headers, Accept: "text/event-stream" };
  const answer = await fetch(server + path, { method: "POST", headers: accept, body: JSON.stringify(body) });
  ok(answer.ok && answer.body, answer.statusText);
  let text = "";
  const decoder = new TextDecoder();
  for await (const piece of answer.body as unknown as AsyncIterable<Uint8Array>) {
    text += decoder.decode(piece, { stream: true });
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const lines = text.slice(0, end).split("\n").map((line) => [line.split(":", 1)[0], line.replace(/^[^:]*: /, "")]);
      const { event, data } = Object.fromEntries(lines) as { event: string; data: string };
      yield { event, data: JSON.parse(data) } as Happening<P>;
    }
  }
}

test("a text is continued", async () => {
  const found = await ask("/v1/next-word-prediction", { text: "How are", top_k: 3 });
  same(found.predictions[0]?.text, "you");
  // @ts-expect-error: the request has no such field
  const wrong: Body<"/v1/next-word-prediction"> = { text: "How are", topk: 3 };
  ok(wrong);
  // @ts-expect-error: the answer has no such field
  same(found.predicted, undefined);
});

test("a tune comes bar by bar, and an event's name tells the type of its data", async () => {
  let tune = "";
  let whole = "";
  for await (const part of listen("/v1/music-composition", { key: "D", meter: "2/4", bars: 4, seed: 1 })) {
    if (part.event === "head") tune += part.data.abc;
    else if (part.event === "bar") tune += part.data.number > 0 ? part.data.abc : "";
    else if (part.event === "done") whole = part.data.abc;
    else throw new Error(part.data.detail);
    // @ts-expect-error: there is no such event
    ok(part.event !== "note");
  }
  same(tune, whole);
});

test("a validation says how a request would be read", async () => {
  const found = await ask("/v1/anomaly-detection:validate", { values: [1, 2, null] });
  same([found.facts.points, found.facts.missing, found.model.name], [3, 1, "series-gru"]);
});

test("the routes of Azure Anomaly Detector have their own names", async () => {
  const series = Array.from({ length: 13 }, (_, n) => ({ value: n === 12 ? 90 : n % 2 }));
  const found = await ask("/anomalydetector/v1.1/timeseries/last/detect", { series, granularity: "none" });
  same([found.isAnomaly, found.isPositiveAnomaly, typeof found.suggestedWindow], [true, true, "number"]);
});
