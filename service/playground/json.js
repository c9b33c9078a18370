// An answer as JSON that can be read: long lists of numbers on one line, long texts and lists cut.

const LONG_TEXT = 120;
const LONG_LIST = 24;

export function readable(value, indent = "") {
  if (typeof value === "string") {
    return value.length > LONG_TEXT ? `${JSON.stringify(value.slice(0, 60))} … ${value.length.toLocaleString("en")} characters` : JSON.stringify(value);
  }
  if (Array.isArray(value)) {
    if (value.every((item) => typeof item !== "object" || item === null)) {
      const items = value.slice(0, LONG_LIST).map((item) => readable(item));
      return `[${items.join(", ")}${value.length > LONG_LIST ? `, … ${value.length.toLocaleString("en")} in all` : ""}]`;
    }
    const inner = `${indent}  `;
    const items = value.slice(0, LONG_LIST).map((item) => `${inner}${readable(item, inner)}`);
    if (value.length > LONG_LIST) items.push(`${inner}… ${value.length.toLocaleString("en")} in all`);
    return `[\n${items.join(",\n")}\n${indent}]`;
  }
  if (value && typeof value === "object") {
    const inner = `${indent}  `;
    const items = Object.entries(value).map(([name, item]) => `${inner}${JSON.stringify(name)}: ${readable(item, inner)}`);
    return items.length ? `{\n${items.join(",\n")}\n${indent}}` : "{}";
  }
  return String(value);
}
