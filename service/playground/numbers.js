// Numbers as people read them.

export const percent = (share) => `${(100 * share).toFixed(share > 0.0995 || share === 0 ? 1 : 2)} %`;

export const short = (value) =>
  value == null ? "–" : Math.abs(value) >= 1e5 ? value.toLocaleString("en", { maximumFractionDigits: 0 }) : String(+value.toPrecision(4));

export const size = (bytes) =>
  bytes < 1000 ? `${bytes} bytes` : bytes < 1e6 ? `${(bytes / 1000).toFixed(1)} KB` : `${(bytes / 1e6).toFixed(1)} MB`;

export const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
