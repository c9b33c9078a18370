// Series from what people paste: CSV with or without a header, or numbers in any arrangement.

const TIME = /time|date|stamp|month|day|year|hour/i;
const MISSING = /^(|na|nan|null|none|-)$/i;

const isNumber = (text) => text !== "" && Number.isFinite(Number(text));
const isTime = (text) => /\d[-/:]\d/.test(text) && !Number.isNaN(Date.parse(text)); // "1 2 3" is a date to some browsers

// Returns { columns: [{ name, values }], timestamps: [texts or numbers] or null }.
// Throws an Error with a sentence where there are no numbers.
export function series(text) {
  const lines = text.split(/\r?\n/).filter((line) => line.trim());
  const delimiter = [";", "\t", ","].find((mark) => lines.some((line) => line.includes(mark)));
  const rows = lines.map((line) => (delimiter ? line.split(delimiter) : [line]).map((cell) => cell.trim().replace(/^"(.*)"$/, "$1")));
  if (rows.length <= 2 && !rows.flat().some(isTime)) return plain(text);
  if (!delimiter && rows[0][0].includes(" ") && !isTime(rows[0][0])) return plain(text);
  const hasHeader = rows[0].every((cell) => !isNumber(cell) && !isTime(cell)) || (rows.length > 1 && !rows[0].some(isNumber) && rows[1].some(isNumber) && !isTime(rows[0][0]));
  const names = hasHeader ? rows.shift() : rows[0].map((_, index) => `column ${index + 1}`);
  const columns = names.map((name, index) => ({ name, cells: rows.map((row) => row[index] ?? "") }));
  const full = ({ cells }) => cells.filter((cell) => !MISSING.test(cell));
  const time = columns.find((column) => full(column).length === rows.length && (full(column).every(isTime) || (columns.length > 1 && TIME.test(column.name) && full(column).every(isNumber))));
  const numeric = columns.filter((column) => column !== time && full(column).length && full(column).every(isNumber));
  if (!numeric.length) throw new Error("No column of numbers was found. Paste one number a line, or CSV with a column of numbers.");
  return {
    columns: numeric.map(({ name, cells }) => ({ name, values: cells.map((cell) => (MISSING.test(cell) ? null : Number(cell))) })),
    timestamps: time ? time.cells.map((cell) => (isNumber(cell) && !/^\d{4}-/.test(cell) ? Number(cell) : cell)) : null,
  };
}

function plain(text) {
  const cells = text.split(/[\s,;]+/).filter((cell) => cell !== "" && cell !== "[" && cell !== "]").map((cell) => cell.replace(/^\[|\]$/g, ""));
  if (!cells.length || !cells.every((cell) => isNumber(cell) || MISSING.test(cell))) throw new Error("These are not all numbers. Paste one number a line, or CSV with a column of numbers.");
  return { columns: [{ name: "values", values: cells.map((cell) => (MISSING.test(cell) ? null : Number(cell))) }], timestamps: null };
}
