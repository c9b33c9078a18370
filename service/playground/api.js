// Everything that this page asks the service goes through here.

// The service's own address, below whatever prefix a proxy puts before it.
export const BASE = new URL("../", import.meta.url);

const KEY = "gridloop-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY)),
};

// An error as the service tells it: `message` is a sentence that says what to do.
export class Problem extends Error {
  constructor(status, body) {
    const places = (body.errors ?? []).map(({ loc, msg }) => `${loc.slice(1).join(".") || "body"}: ${msg}`);
    super(body.detail ?? body.error ?? `The service answered ${status}.`);
    this.status = status;
    this.title = body.title ?? "Refused";
    this.places = places.filter((place) => !this.message.includes(place.split(": ")[1]));
    this.requestId = body.request_id;
  }
}

async function send(url, options = {}) {
  const headers = { ...options.headers, ...(key.get() ? { Authorization: `Bearer ${key.get()}` } : {}) };
  try {
    return await fetch(url, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { title: "No answer", detail: "The service cannot be reached. Is it still running?" });
  }
}

async function refusal(answer) {
  const text = await answer.text();
  try {
    return new Problem(answer.status, JSON.parse(text));
  } catch {
    return new Problem(answer.status, { detail: text.slice(0, 300) });
  }
}

export async function getJson(path) {
  const answer = await send(new URL(path, BASE));
  if (!answer.ok) throw await refusal(answer);
  return answer.json();
}

export async function getFile(path) {
  const answer = await send(new URL(path, BASE));
  if (!answer.ok) throw await refusal(answer);
  return answer.blob();
}

// A file that the OpenAPI document holds; the page's policy lets nothing fetch it.
export function fileOf(dataUrl) {
  const [, kind, data] = dataUrl.match(/^data:([^;,]*)[^,]*;base64,(.*)$/s);
  return new Blob([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], { type: kind });
}

// A request is a plain object, which `calls.js` can write down, too:
//   { path, json }                          fields of a JSON body, or
//   { path, query, file: { blob, name }, form }    one file, fields in the URL, and long fields as parts of the form;
//   and `events`: whether the answer is wanted part by part.
export function urlOf({ path, query = {} }) {
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  return url.href;
}

// onpart: called with the name and the data of each event before the last; never, where the answer comes as a whole.
export async function ask(request, { signal, onpart } = {}) {
  const options = { method: "POST", signal, headers: request.events ? { Accept: "text/event-stream, */*;q=0.5" } : {} };
  if (request.file) {
    options.body = new FormData();
    for (const [name, value] of Object.entries(request.form ?? {})) options.body.append(name, value);
    options.body.append("file", request.file.blob, request.file.name);
  } else {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(request.json);
  }
  const start = performance.now();
  const answer = await send(urlOf(request), options);
  if (!answer.ok) throw await refusal(answer);
  const kind = answer.headers.get("Content-Type") ?? "";
  const got = await received(answer, kind, onpart);
  return { stages: stages(answer.headers.get("Server-Timing") ?? ""), ...got, kind, model: answer.headers.get("X-Model"), total_ms: performance.now() - start };
}

async function received(answer, kind, onpart) {
  if (kind.startsWith("application/json")) return { answer: await answer.json() };
  if (!kind.startsWith("text/event-stream")) return { blob: await answer.blob() };
  for await (const { event, data, "server-timing": timing = "" } of eventsOf(answer.body)) {
    const value = JSON.parse(data);
    if (event === "done") return { answer: value, inParts: true, stages: stages(timing) };
    if (event === "error") throw new Problem(value.status, value);
    onpart?.(event, value);
  }
  throw new Problem(0, { title: "No answer", detail: "The answer broke off before its end. Ask again." });
}

// Server-sent events as objects of their fields. A stream that is read by its reader is read by every browser.
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let piece; !(piece = await reader.read()).done; ) {
    text += piece.value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      yield Object.fromEntries(text.slice(0, end).split("\n").map((line) => line.split(/: (.*)/s)));
    }
  }
}

// "decode;dur=5.6, queue;dur=0.1" -> [["decode", 5.6], ["queue", 0.1]]
function stages(header) {
  return [...header.matchAll(/([\w-]+);dur=([\d.]+)/g)].map(([, name, ms]) => [name, Number(ms)]);
}
