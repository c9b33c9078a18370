// The call for what is on the screen, in three languages.

import { key, urlOf } from "./api.js";
import { copyButton, fresh, h, replace } from "./dom.js";

const quoted = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;

export function curl(request) {
  const url = urlOf(request);
  const lines = [`curl ${request.events ? "-N " : ""}${/[?&]/.test(url) ? quoted(url) : url}`];
  if (request.events) lines.push("-H 'Accept: text/event-stream'");
  if (key.get()) lines.push('-H "Authorization: Bearer $GRIDLOOP_KEY"');
  if (request.file) {
    for (const [name, value] of Object.entries(request.form ?? {})) lines.push(`-F ${quoted(`${name}=${value}`)}`);
    lines.push(`-F ${quoted(`file=@${request.file.name}`)}`);
  } else lines.push(`--json ${quoted(JSON.stringify(request.json))}`);
  return lines.join(" \\\n  ");
}

export function python(request) {
  const secured = key.get();
  const lines = [secured ? "import os\n" : null, "import httpx", ""].filter((line) => line !== null);
  const options = [JSON.stringify(plainUrl(request))];
  if (request.query && Object.keys(request.query).length) options.push(`params=${literal(request.query)}`);
  if (request.file) {
    options.push(`files={"file": file}`);
    if (request.form && Object.keys(request.form).length) options.push(`data=${literal(request.form)}`);
  } else options.push(`json=${literal(request.json)}`);
  const headers = [];
  if (request.events) headers.push('"Accept": "text/event-stream"');
  if (secured) headers.push('"Authorization": f"Bearer {os.environ[\'GRIDLOOP_KEY\']}"');
  if (headers.length) options.push(`headers={${headers.join(", ")}}`);
  let indent = request.file ? "    " : "";
  if (request.file) lines.push(`with open(${JSON.stringify(request.file.name)}, "rb") as file:`);
  if (!request.events) {
    lines.push(`${indent}answer = httpx.post(`, ...options.map((option) => `${indent}    ${option},`), `${indent})`);
    return [...lines, "answer.raise_for_status()", "print(answer.json())"].join("\n");
  }
  lines.push(`${indent}with httpx.stream(`, ...['"POST"', ...options].map((option) => `${indent}    ${option},`), `${indent}) as answer:`);
  indent += "    ";
  lines.push(`${indent}answer.raise_for_status()`, `${indent}for line in answer.iter_lines():`, `${indent}    print(line)`);
  return lines.join("\n");
}

export function javascript(request) {
  const lines = [];
  const headers = [];
  if (request.file) {
    lines.push("const form = new FormData();");
    for (const [name, value] of Object.entries(request.form ?? {})) lines.push(`form.append(${JSON.stringify(name)}, ${JSON.stringify(value)});`);
    lines.push('form.append("file", document.querySelector("input[type=file]").files[0]);');
  } else headers.push('"Content-Type": "application/json"');
  if (request.events) headers.push('Accept: "text/event-stream"');
  if (key.get()) headers.push("Authorization: `Bearer ${key}`");
  lines.push(`const answer = await fetch(${JSON.stringify(urlOf(request))}, {`, '  method: "POST",');
  if (headers.length) lines.push(`  headers: { ${headers.join(", ")} },`);
  lines.push(request.file ? "  body: form," : `  body: JSON.stringify(${JSON.stringify(request.json)}),`, "});");
  lines.push("if (!answer.ok) throw new Error((await answer.json()).detail);");
  if (request.events) lines.push("for await (const text of answer.body.pipeThrough(new TextDecoderStream())) console.log(text);");
  else lines.push("console.log(await answer.json());");
  return lines.join("\n");
}

const plainUrl = ({ path }) => urlOf({ path });

// A value as Python writes it.
function literal(value) {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item)}`).join(", ")}}`;
  return JSON.stringify(value);
}

const LANGUAGES = { curl, Python: python, JavaScript: javascript };

// The section under an answer: a tab for each language.
export class Calls {
  constructor() {
    this.chosen = "curl";
    this.element = h("div", { class: "calls" });
  }

  show(request) {
    this.request = request;
    const panel = fresh("call");
    const code = h("pre", { id: panel, tabindex: 0, role: "tabpanel", "aria-label": `${this.chosen} call` }, LANGUAGES[this.chosen](request));
    const names = Object.keys(LANGUAGES);
    const tabs = names.map((name, index) =>
      h(
        "button",
        {
          type: "button",
          role: "tab",
          class: "small",
          "aria-selected": String(name === this.chosen),
          "aria-controls": panel,
          tabindex: name === this.chosen ? 0 : -1,
          onclick: () => this.#choose(name),
          onkeydown: (event) => {
            const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
            if (step) this.#choose(names.at((index + step) % names.length), true);
          },
        },
        name,
      ),
    );
    const bar = h("div", { class: "tabs", role: "tablist", "aria-label": "Language of the call" }, tabs);
    replace(this.element, h("div", { class: "row" }, bar, copyButton(() => LANGUAGES[this.chosen](this.request), "Copy the call")), code);
  }

  #choose(name, focus) {
    this.chosen = name;
    this.show(this.request);
    this.element.querySelector("[aria-selected=true]").focus({ preventScroll: !focus });
  }
}
