// The page: header, list of tasks, and the panel of the task that the address names (`#/image-captioning`).

import { BASE, getJson, key } from "./api.js";
import { choicesOf, tasksOf } from "./catalogue.js";
import { fresh, h, replace } from "./dom.js";
import { kindsPage } from "./kinds.js";
import { plural } from "./numbers.js";
import { Panel } from "./panel.js";
import { themeSwitch } from "./theme.js";

const header = document.getElementById("header");
const nav = document.getElementById("tasks");
const main = document.getElementById("main");

const KINDS = "cnn-or-rnn";
const panels = new Map();
let shown = null;
let service = null; // { document, tasks, models, samples }

async function load() {
  panels.clear();
  replace(main, h("p", { role: "status" }, "Asking the service what it can do …"));
  try {
    const document = await getJson("openapi.json");
    const secured = Boolean(document.security?.length);
    drawHeader(document, secured);
    const [{ models }, samples] = await Promise.all([getJson("v1/models"), getJson("playground/samples/samples.json")]);
    service = { document, tasks: tasksOf(document), models, samples };
    drawTasks();
    route();
  } catch (problem) {
    service = null;
    replace(nav);
    const hint = problem.status === 401 ? "Type an API key above: it stays in this tab, and goes with it." : null;
    replace(main, h("div", { class: "problem", role: "alert" }, h("h1", {}, problem.title ?? "Something went wrong"), h("p", {}, problem.message), hint && h("p", {}, hint)));
  }
}

function drawHeader(document, secured) {
  const id = fresh("key");
  const input = h("input", { id, type: "password", autocomplete: "off", value: key.get(), size: 14, placeholder: "kept in this tab" });
  const form = h(
    "form",
    {
      class: "key",
      onsubmit: (event) => {
        event.preventDefault();
        key.set(input.value.trim());
        load();
      },
    },
    h("label", { for: id }, "API key"),
    input,
    h("button", { class: "small" }, "Use"),
  );
  const links = [["docs", "API, to try"], ["redoc", "API, to read"], ["openapi.json", "OpenAPI"], ["v1/models", "Models as JSON"]];
  replace(
    header,
    h("a", { class: "brand", href: "#/" }, document.info.title, h("small", {}, ` ${document.info.version}`)),
    h("div", { class: "links" }, links.map(([path, words]) => h("a", { href: new URL(path, BASE).href }, words))),
    secured ? form : null,
    themeSwitch(),
  );
}

function drawTasks() {
  const link = (href, words, name) => h("li", {}, h("a", { href, "data-task": name }, words));
  replace(nav, h("ul", {}, link("#/", "What is this?", ""), link(`#/${KINDS}`, "CNN or RNN?", KINDS), service.tasks.map((task) => link(`#/${task.name}`, spaced(task.name), task.name))));
}

const spaced = (name) => (name[0].toUpperCase() + name.slice(1)).replaceAll("-", " ");

function route() {
  if (!service) return;
  const name = decodeURIComponent(location.hash.replace(/^#\/?/, ""));
  shown?.leave();
  for (const link of nav.querySelectorAll("a")) {
    if (link.dataset.task === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  nav.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  shown = panelOf(name);
  document.title = shown ? `${spaced(name)} · Gridloop playground` : name === KINDS ? "CNN or RNN? · Gridloop playground" : "Gridloop playground";
  replace(main, shown ? shown.element : name === KINDS ? kindsPage(taskOf, askBoth) : overview());
  shown?.enter();
}

function panelOf(name) {
  const task = service.tasks.find((task) => task.name === name);
  if (task && !panels.has(name)) panels.set(name, new Panel(task, service.models, service.samples));
  return task ? panels.get(name) : null;
}

// The task that a model of this name serves.
const taskOf = (model) => service.models.find(({ name }) => name === model)?.task;

function askBoth(task, pair) {
  panelOf(task)?.pair(...pair);
  location.hash = `#/${task}`;
}

function overview() {
  const { tasks, models } = service;
  const missing = models.flatMap((model) => [
    ...(model.reason && !model.versions.length ? [[model.name, model.reason]] : []),
    ...model.versions.filter((version) => version.state === "failed").map((version) => [`${model.name}@${version.version}`, version.reason]),
  ]);
  return h(
    "section",
    {},
    h("h1", {}, "Small neural networks, one question each"),
    h(
      "p",
      { class: "lead" },
      "This service looks at pictures, reads text and series, listens and composes, with convolutional (CNN) and recurrent (RNN) networks that run on its own machine. Each task is one HTTP endpoint. ",
      "Here you can try them, see why they answered so, and copy the call into your own code. Which kind for what? ",
      h("a", { href: `#/${KINDS}` }, "CNN or RNN?"),
    ),
    h("ol", { class: "steps" }, ["Choose a question below.", "Press a sample, or bring your own picture, text, series or recording.", "Copy the call: curl, Python or JavaScript."].map((step) => h("li", {}, step))),
    h(
      "ul",
      { class: "cards" },
      tasks.map((task) => {
        const choices = choicesOf(models, task.name);
        const names = [...new Set(choices.map((choice) => choice.model.name))];
        const kinds = [...new Set(choices.map((choice) => choice.model.architecture?.toUpperCase()).filter(Boolean))];
        return h(
          "li",
          { class: "card" },
          h("h2", {}, h("a", { href: `#/${task.name}` }, task.summary)),
          h("p", {}, h("code", {}, `POST /${task.path}`)),
          h("p", { class: "hint" }, names.length ? `${plural(names.length, "model")}: ${names.join(", ")}${kinds.length ? ` (${kinds.join(", ")})` : ""}` : "No model of this task is loaded."),
        );
      }),
    ),
    missing.length ? [h("h2", {}, "Not served, and why"), h("ul", {}, missing.map(([name, reason]) => h("li", {}, h("strong", {}, name), `: ${reason}`)))] : null,
  );
}

// A file that is dropped beside its field would take the browser away from the page.
for (const name of ["dragover", "drop"]) {
  addEventListener(name, (event) => event.dataTransfer?.types.includes("Files") && event.preventDefault());
}

addEventListener("hashchange", () => {
  route();
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
});
load();
