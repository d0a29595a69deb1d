// Rates of counters, from two overviews.

// rate is how much a counter went up a second; null when it is not known, or the process began anew between the two.
export function rate(now, before, milliseconds) {
  if (before === undefined || now === undefined || milliseconds <= 0 || now < before) return null;
  return ((now - before) * 1000) / milliseconds;
}

const digits = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export const count = (n) => digits.format(n);

export const perSecond = (r) => (r === null ? "–" : `${digits.format(r)}/s`);

const units = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(n) {
  let i = 0;
  for (; n >= 1024 && i < units.length - 1; i++) n /= 1024;
  return `${digits.format(n)} ${units[i]}`;
}

export function span(seconds) {
  if (seconds < 90) return `${digits.format(seconds)} s`;
  if (seconds < 5400) return `${digits.format(seconds / 60)} min`;
  if (seconds < 129600) return `${digits.format(seconds / 3600)} h`;
  return `${digits.format(seconds / 86400)} d`;
}
