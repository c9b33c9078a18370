// What can be asked, read from the OpenAPI document and the list of models. No task is known by its name here.

const ROUTE = /^\/v1\/([a-z0-9-]+)$/;
const MEDIA = /`((?:image|audio|video|text|application)\/[\w.+-]+)`/g;

export function tasksOf(document) {
  const found = [];
  for (const [path, item] of Object.entries(document.paths)) {
    const name = path.match(ROUTE)?.[1];
    const operation = item.post;
    if (name && operation?.tags?.includes("tasks") && answersAsModel(document, operation)) {
      found.push(task(document, name, operation));
    }
  }
  return found;
}

// Every task's answer says which model gave it; other routes of `/v1` do not.
function answersAsModel(document, operation) {
  const schema = operation.responses?.["200"]?.content?.["application/json"]?.schema;
  return schema && "model" in (resolved(document, schema).properties ?? {});
}

function task(document, name, operation) {
  const content = operation.requestBody?.content ?? {};
  const form = content["multipart/form-data"];
  const json = content["application/json"];
  const [description, filesInWords = ""] = (operation.description ?? "").split("\n\nFiles are parts");
  const base = {
    name,
    path: `v1/${name}`,
    summary: operation.summary,
    description,
    takesFiles: Boolean(form),
    comesInParts: "text/event-stream" in operation.responses["200"].content,
    isCompared: `/v1/compare/${name}` in document.paths,
  };
  if (form) {
    const items = form.schema.properties.file.items;
    const kinds = [...filesInWords.matchAll(MEDIA)].map(([, kind]) => kind).filter((kind) => kind !== "multipart/form-data");
    return {
      ...base,
      kinds,
      family: (items["x-sample"]?.match(/^data:(\w+)/) ?? kinds[1]?.match(/^(\w+)/))?.[1] ?? "",
      sampleUrl: items["x-sample"],
      fields: (operation.parameters ?? []).filter((p) => p.in === "query").map((p) => field(document, p.name, p.schema, p.description, p.required)),
      examples: [],
    };
  }
  const schema = resolved(document, json.schema);
  const required = new Set(schema.required ?? []);
  return {
    ...base,
    kinds: [],
    family: "",
    fields: Object.entries(schema.properties ?? {}).map(([key, about]) => field(document, key, about, about.description, required.has(key))),
    examples: [...Object.values(json.examples ?? {}).map((example) => example.value), ...(schema.examples ?? [])].filter(unique),
  };
}

const unique = (value, index, all) => all.findIndex((other) => JSON.stringify(other) === JSON.stringify(value)) === index;

export function resolved(document, schema) {
  if (schema.$ref) return resolved(document, document.components.schemas[schema.$ref.split("/").pop()]);
  return schema;
}

// A field with one plain type: `anyOf` with null is a field that may be left out.
function field(document, name, about, description = "", required = false) {
  let schema = resolved(document, about);
  const kinds = (schema.anyOf ?? []).filter((kind) => kind.type !== "null").map((kind) => resolved(document, kind));
  if (kinds.length) schema = { ...schema, ...kinds[0] };
  const items = schema.items ? resolved(document, schema.items) : null;
  return {
    name,
    description,
    required,
    type: schema.enum ? "choice" : (schema.type ?? "json"),
    choices: schema.enum ?? [],
    itemType: items?.type ?? items?.anyOf?.find((kind) => kind.type !== "null")?.type,
    default: about.default ?? schema.default,
    minimum: schema.minimum ?? schema.exclusiveMinimum,
    maximum: schema.maximum ?? schema.exclusiveMaximum,
    maxLength: schema.maxLength,
  };
}

// The models of a task: [{ value, label, model, version }], the task's default first.
export function choicesOf(models, task) {
  const choices = [];
  for (const model of models.filter((model) => model.task === task).sort((a, b) => b.is_default - a.is_default)) {
    const ready = model.versions.filter(({ state }) => state === "ready" || state === "lazy"); // a lazy one is loaded when asked
    ready.sort((a, b) => (b.version === model.default_version) - (a.version === model.default_version));
    for (const version of ready) {
      const usual = version.version === model.default_version;
      choices.push({
        value: usual ? model.name : `${model.name}@${version.version}`,
        label: ready.length > 1 ? `${model.name}, version ${version.version}${usual ? " (default)" : ""}` : model.name,
        model,
        version,
      });
    }
  }
  return choices;
}

export const RESTRICTED = /research|non-?commercial|education only|\bNC\b|no licence stated/i;
