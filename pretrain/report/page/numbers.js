// Numbers as people read them, the ticks of an axis, and where a value lies on it.

const SUPERSCRIPT = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
const SIZES = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];
const TIMES = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

function trimmed(text) {
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

/** `value` with `digits` significant digits, as a power of ten where it is very large or small. */
function plain(value, digits = 5) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e7 || size < 1e-3) {
    const [mantissa, exponent] = value.toExponential(Math.max(0, digits - 2)).split("e");
    const power = String(Number(exponent)).replace(/./g, (sign) => SUPERSCRIPT[sign]);
    return `${trimmed(mantissa)}×10${power}`.replace(/^1×/, "").replace(/^-1×/, "-");
  }
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const text = value.toPrecision(digits);
  return size >= 1e4 ? Math.round(value).toLocaleString("en") : text.includes("e") ? String(Number(text)) : text;
}

function short(value, digits = 3) {
  const [size, unit] = SIZES.find(([limit]) => Math.abs(value) >= limit * 0.9999) || [1, ""];
  return trimmed((value / size).toPrecision(Math.max(digits, Math.floor(Math.log10(Math.abs(value / size) || 1)) + 1))) + (unit && ` ${unit}`);
}

function duration(seconds) {
  const [size, unit] = TIMES.find(([limit]) => Math.abs(seconds) >= limit) || [1, "s"];
  return `${trimmed((seconds / size).toPrecision(4))} ${unit}`;
}

const AXES = {
  tokens: { title: "tokens", name: "Tokens", tick: (v) => short(v), read: (v) => `${short(v, 5)} tokens` },
  flops: { title: "training FLOPs", name: "FLOPs", tick: (v) => plain(v, 4), read: (v) => `${plain(v, 5)} FLOPs` },
  flops_dense_equivalent: {
    title: "training FLOPs, if every linear were dense", name: "Dense FLOPs", tick: (v) => plain(v, 4),
    read: (v) => `${plain(v, 5)} FLOPs if dense`,
  },
  seconds: { title: "training time", name: "Time", tick: duration, read: duration },
  step: { title: "optimizer steps", name: "Steps", tick: (v) => short(v), read: (v) => `step ${plain(v)}` },
};

/** Round values in [low, high], about `count` of them; `units` are what a tick may be a round number of. */
function linearTicks(low, high, count, units = [1]) {
  const rough = (high - low) / Math.max(1, count);
  if (!(rough > 0)) return [low];
  const unit = units.find((u) => rough >= u * 0.5) || units[units.length - 1];
  const power = 10 ** Math.floor(Math.log10(rough / unit));
  const step = unit * power * ([1, 2, 5, 10].find((m) => m * power * unit >= rough) || 10);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) ticks.push(k * step);
  return ticks;
}

function logTicks(low, high, count) {
  const decades = Math.log10(high / low);
  if (decades < 0.7) return linearTicks(low, high, count).filter((v) => v > 0);
  const factors = decades < 1.5 ? [1, 2, 3, 5] : decades < count * 0.6 ? [1, 3] : [1];
  const every = Math.max(1, Math.ceil(decades / count));
  const ticks = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
    if (e % every) continue;
    for (const factor of factors) {
      const tick = factor * 10 ** e;
      if (tick >= low * 0.9999 && tick <= high * 1.0001) ticks.push(tick);
    }
  }
  return ticks;
}

/** A map from [low, high] to [from, to], and back. */
function scale(low, high, from, to, log) {
  const f = log ? Math.log : (v) => v;
  const g = log ? Math.exp : (v) => v;
  const begin = f(low);
  const width = f(high) - begin || 1;
  const at = (value) => from + ((f(value) - begin) / width) * (to - from);
  at.back = (place) => g(begin + ((place - from) / (to - from)) * width);
  return at;
}

/** The index of the number in rising `xs` that is nearest to `x`. */
function nearest(xs, x) {
  let low = 0;
  let high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle;
    else high = middle;
  }
  return Math.abs(xs[high] - x) < Math.abs(xs[low] - x) ? high : low;
}
