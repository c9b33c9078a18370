// Elements without innerHTML: what callers and models write is always text, never markup.

const SVG = "http://www.w3.org/2000/svg";

// h("p", { class: "hint", onclick: f, "aria-live": "polite" }, "text", element, [elements], null)
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else if (name === "value") element.value = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

export function replace(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

let count = 0;

// An id that no other element has.
export const fresh = (name) => `${name}-${++count}`;

export function details(summary, ...children) {
  return h("details", {}, h("summary", {}, summary), ...children);
}

// A button that says for a moment what it did.
export function copyButton(text, label = "Copy") {
  const button = h("button", { type: "button", class: "small" }, label);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Press Ctrl+C";
      const code = button.parentElement.querySelector("pre");
      if (code) getSelection().selectAllChildren(code);
    }
    setTimeout(() => (button.textContent = label), 2000);
  });
  return button;
}

export function downloadLink(blob, name, label) {
  return h("a", { class: "button small", href: URL.createObjectURL(blob), download: name }, label);
}

// A script of another author that knows no modules: it leaves one name in the window.
const loading = new Map();
export function library(file, name) {
  if (!loading.has(file)) {
    loading.set(
      file,
      new Promise((done, failed) => {
        const script = h("script", { src: new URL(`vendor/${file}`, import.meta.url).href });
        script.addEventListener("load", () => done(window[name]));
        script.addEventListener("error", () => failed(new Error(`${file} could not be loaded.`)));
        document.head.append(script);
      }),
    );
  }
  return loading.get(file);
}
