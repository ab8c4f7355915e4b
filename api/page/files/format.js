// Numbers, durations, sizes and moments as people read them.

const LOCALE = navigator.language;
const WHOLE = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat(LOCALE, { notation: "compact", maximumFractionDigits: 1 });
const CLOCK = new Intl.DateTimeFormat(LOCALE, { hour: "2-digit", minute: "2-digit" });
const DAY = new Intl.DateTimeFormat(LOCALE, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
const EXACT = new Intl.DateTimeFormat(LOCALE, { dateStyle: "medium", timeStyle: "medium" });

export const NONE = "–";

/** 12,345 */
export function count(number) {
  return WHOLE.format(number);
}

/** 12.3K */
export function short(number) {
  return number < 10_000 ? WHOLE.format(number) : SHORT.format(number);
}

/** "1 image", "2,000 images" */
export function counted(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** A number with as many digits as say something: 0.042, 1.32, 18.4, 240 */
export function number(value, digits = 3) {
  if (value === null || value === undefined) return NONE;
  return new Intl.NumberFormat(LOCALE, { maximumSignificantDigits: digits }).format(value);
}

/** Images per second, per minute when few, per hour when fewer; with as many digits while it changes. */
export function rate(perSecond) {
  if (perSecond === null || perSecond === undefined) return { value: NONE, unit: "images/s" };
  if (perSecond === 0) return { value: "0", unit: "images/s" };
  if (perSecond >= 0.1) return { value: steady(perSecond), unit: "images/s" };
  if (perSecond >= 1 / 600) return { value: steady(perSecond * 60), unit: "images/min" };
  return { value: steady(perSecond * 3600), unit: "images/h" };
}

function steady(value) {
  const digits = value < 10 ? 2 : value < 100 ? 1 : 0;
  return value.toLocaleString(LOCALE, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** 0.71 s, 42 s, 3 min 12 s, 2 h 5 min, 3 d 4 h */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds < 10) return `${number(seconds, 2)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const whole = Math.round(seconds);
  const parts = [
    [Math.floor(whole / 86_400), "d"],
    [Math.floor(whole / 3600) % 24, "h"],
    [Math.floor(whole / 60) % 60, "min"],
    [whole % 60, "s"],
  ];
  const first = parts.findIndex(([amount]) => amount > 0);
  return parts
    .slice(first, first + 2)
    .filter(([amount]) => amount > 0)
    .map(([amount, unit]) => `${amount} ${unit}`)
    .join(" ");
}

/** 15.2 GiB */
export function bytes(size) {
  if (size === null || size === undefined) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(size, 1)) / 10));
  return `${number(size / 1024 ** power)} ${units[power]}`;
}

/** A share as whole percent; full only when it is whole. */
export function percent(done, total) {
  return total ? Math.floor((100 * done) / total) : 0;
}

/** "just now", "4 min ago", "14:02", "3 Nov, 14:02" */
export function since(moment, now = Date.now()) {
  const date = new Date(moment);
  const seconds = (now - date) / 1000;
  if (seconds < 45) return "just now";
  if (seconds < 3600) return `${Math.max(1, Math.round(seconds / 60))} min ago`;
  return (seconds < 16 * 3600 ? CLOCK : DAY).format(date);
}

/** A moment to the second. */
export function exactly(moment) {
  return moment ? EXACT.format(new Date(moment)) : NONE;
}

/** Seconds between two moments. */
export function between(from, to) {
  return (new Date(to) - new Date(from)) / 1000;
}
