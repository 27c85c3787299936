// One panel: lines of several runs over what training has cost, with a cursor that reads their values.

const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "6 3", "2 3", "9 3 2 3", "1 5"];

function make(parent, name, attributes = {}, text = "") {
  const isSvg = parent.namespaceURI === SVG || name === "svg";
  const node = isSvg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text) node.textContent = text;
  parent.append(node);
  return node;
}

/** Whether a line goes up and down so much that a thick one would hide itself. */
function isNoisy(ys) {
  let way = 0;
  for (let i = 1; i < ys.length; i++) way += Math.abs(ys[i] - ys[i - 1]);
  return ys.length > 400 && way > 15 * ys.reduce(([low, high], y) => [Math.min(low, y), Math.max(high, y)], [Infinity, -Infinity]).reduce((low, high) => high - low);
}

class Chart {
  /** Draws `panel` into `host`; `page` has the runs, the axis, the view, and is told where the cursor goes. */
  constructor(host, panel, page) {
    this.panel = panel;
    this.page = page;
    this.log = panel.log;
    this.figure = make(host, "figure", { class: panel.kind === "loss" ? "panel wide" : "panel" });
    const caption = make(this.figure, "figcaption");
    make(caption, "h3", {}, panel.title);
    if (panel.unit) make(caption, "span", { class: "unit" }, panel.unit);
    if (panel.kind === "loss") {
      const label = make(caption, "label", { class: "switch" });
      const box = make(label, "input", { type: "checkbox" });
      label.append("log scale");
      box.addEventListener("change", () => { this.log = box.checked; this.draw(); });
    }
    this.legend = make(this.figure, "div", { class: "legend" });
    this.plot = make(this.figure, "div", { class: "plot" });
    this.tip = make(this.plot, "div", { class: "tip", hidden: "" });
    if (panel.about) make(this.figure, "p", { class: "about" }, panel.about);
    // By line where there is one run, by run where there are several.
    this.byLine = page.runs.length === 1 && panel.tags.length > 1;
    this.width = 0;
    new ResizeObserver(() => { if (Math.abs(this.plot.clientWidth - this.width) > 1) this.draw(); }).observe(this.plot);
  }

  /** What is shown: a line of a run for each figure that it has. */
  lines() {
    const { axis } = this.page;
    const found = [];
    for (const run of this.page.runs) {
      if (run.hidden || !run.x[axis]) continue;
      this.panel.tags.forEach((tag, index) => {
        const line = run.lines[tag];
        if (!line) return;
        line.xs = line.xs && line.axis === axis ? line.xs : line.at.map((place) => run.x[axis][place]);
        line.axis = axis;
        const mean = tag === "train/loss" ? run.lines.mean : null;
        if (mean) {
          mean.xs = mean.xs && mean.axis === axis ? mean.xs : mean.at.map((place) => run.x[axis][place]);
          mean.axis = axis;
        }
        const color = `var(--c${(this.byLine ? index : run.index) % 8})`;
        const dash = this.byLine ? "" : DASHES[(index + Math.floor(run.index / 8)) % DASHES.length];
        found.push({ run, tag, label: this.panel.labels[index], line, mean, color, dash });
      });
    }
    return found;
  }

  draw() {
    const { axis, view } = this.page;
    this.shown = this.lines();
    if (this.svg) this.svg.remove();
    this.svg = null;
    this.width = this.plot.clientWidth;
    this.figure.hidden = !this.page.runs.some((run) => this.panel.tags.some((tag) => run.lines[tag]));
    if (!this.width || this.figure.hidden) return;
    const height = this.panel.kind === "loss" ? Math.min(400, Math.max(250, this.width * 0.42)) : 210;
    const box = { left: 58, right: this.width - 14, top: 12, bottom: height - 40 };
    this.svg = make(this.plot, "svg", {
      viewBox: `0 0 ${this.width} ${height}`, tabindex: "0", role: "img", "aria-label": this.describe(),
    });
    this.plot.prepend(this.svg);
    const [x0, x1] = view || this.page.extent();
    const [y0, y1] = this.range(x0, x1);
    this.box = box;
    this.x = scale(x0, x1, box.left, box.right, false);
    this.y = scale(y0, y1, box.bottom, box.top, this.log);
    this.frame(x0, x1, y0, y1);
    const clip = `clip${this.page.charts.indexOf(this)}`;
    const inner = make(make(this.svg, "clipPath", { id: clip }), "rect");
    for (const [key, value] of Object.entries({ x: box.left, y: box.top - 6, width: box.right - box.left + 6, height: box.bottom - box.top + 8 })) inner.setAttribute(key, value);
    const lines = make(this.svg, "g", { "clip-path": `url(#${clip})` });
    if (this.panel.kind === "loss") this.growths(lines, box);
    for (const shown of this.shown) this.drawLine(lines, shown);
    if (this.panel.kind === "loss") this.marks(lines, box);
    this.cursor = make(this.svg, "g", { class: "cursor" });
    this.brush = make(this.svg, "rect", { class: "brush", y: box.top, height: box.bottom - box.top, width: 0 });
    this.listen();
    this.writeLegend();
    this.showCursor(this.page.cursor, false);
  }

  /** The range of values between x0 and x1, with some room; the first steps of a loss go out of the top. */
  range(x0, x1) {
    const late = this.panel.kind === "loss" && !this.page.view ? x0 + 0.04 * (x1 - x0) : x0;
    let low = Infinity;
    let high = -Infinity;
    for (const { line, mean } of this.shown) {
      const look = (from, part) => part.xs.forEach((x, i) => {
        const y = part.y[i];
        if (x < from || x > x1 || y === null || (this.log && y <= 0)) return;
        low = Math.min(low, y);
        high = Math.max(high, y);
      });
      const before = high;
      look(late, line);
      if (mean) look(late, mean);
      if (high === before) look(-Infinity, line);
    }
    if (low > high) return this.log ? [0.1, 1] : [0, 1];
    if (this.log) {
      const room = Math.max(1.03, (high / low) ** 0.05);
      return [low / room, high * room];
    }
    const rests = low >= 0 && (low < 0.35 * high || this.panel.share);
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    return [rests ? 0 : low - room, high + room];
  }

  frame(x0, x1, y0, y1) {
    const { box } = this;
    const grid = make(this.svg, "g", { class: "grid" });
    const axis = AXES[this.page.axis];
    const units = this.page.axis === "seconds" ? TIMES.map(([size]) => size) : [1];
    const count = Math.max(2, Math.floor((box.right - box.left) / 90));
    for (const tick of linearTicks(x0, x1, count, units)) {
      const x = this.x(tick);
      make(grid, "line", { x1: x, x2: x, y1: box.bottom, y2: box.bottom + 4, class: "tick" });
      make(grid, "text", { x, y: box.bottom + 17, "text-anchor": "middle" }, axis.tick(tick));
    }
    const ticks = this.log ? logTicks(y0, y1, 5) : linearTicks(y0, y1, Math.max(3, (box.bottom - box.top) / 36));
    const written = this.tickTexts(ticks);
    ticks.forEach((tick, index) => {
      const y = this.y(tick);
      make(grid, "line", { x1: box.left, x2: box.right, y1: y, y2: y });
      make(grid, "text", { x: box.left - 8, y: y + 4, "text-anchor": "end" }, written[index]);
    });
    make(grid, "line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "base" });
    make(grid, "text", { x: box.right, y: box.bottom + 33, "text-anchor": "end", class: "title" }, axis.title);
  }

  tickTexts(ticks) {
    if (this.panel.share) {
      const gap = ticks.length > 1 ? ticks[1] - ticks[0] : 1;
      return ticks.map((tick) => `${(100 * tick).toFixed(gap < 0.001 ? 2 : gap < 0.01 ? 1 : 0)} %`);
    }
    const largest = Math.max(...ticks.map(Math.abs));
    const smallest = Math.min(...ticks.map(Math.abs).filter((v) => v > 0));
    if (largest >= 1e4 && largest < 1e15) return ticks.map((tick) => short(tick));
    if (largest >= 1e15 || (this.log ? smallest : largest) < 1e-3) return ticks.map((tick) => plain(tick, 4));
    if (this.log) return ticks.map((tick) => trimmed(plain(Number(tick.toPrecision(3)), 3)));
    const gap = ticks.length > 1 ? ticks[1] - ticks[0] : 1;
    const digits = Math.max(0, Math.ceil(-Math.log10(gap) - 1e-9));
    return ticks.map((tick) => tick.toFixed(Math.min(8, digits)));
  }

  drawLine(parent, { line, mean, color, dash }) {
    const path = (part, attributes) => {
      let text = "";
      let pen = "M";
      part.xs.forEach((x, index) => {
        const y = part.y[index];
        if (y === null || (this.log && y <= 0)) { pen = "M"; return; }
        text += `${pen}${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}`;
        pen = "L";
      });
      make(parent, "path", { d: text, fill: "none", stroke: color, "stroke-dasharray": dash, ...attributes });
    };
    path(line, { class: mean ? "faint" : isNoisy(line.y) ? "line dense" : "line" });
    if (mean) path(mean, { class: "line" });
    if (this.panel.dots || line.xs.length === 1) {
      line.xs.forEach((x, index) => {
        if (line.y[index] !== null) make(parent, "circle", { cx: this.x(x), cy: this.y(line.y[index]), r: 3, fill: color, class: "dot" });
      });
    }
  }

  growths(parent, box) {
    for (const run of this.page.runs) {
      for (const growth of run.hidden ? [] : run.growth) {
        const x = growth.x[this.page.axis];
        if (x === undefined) continue;
        const color = `var(--c${run.index % 8})`;
        make(parent, "line", { x1: this.x(x), x2: this.x(x), y1: box.top, y2: box.bottom, stroke: color, class: "growth" });
        const right = this.x(x) > box.right - 110;
        make(parent, "text", {
          x: this.x(x) + (right ? -5 : 5), y: box.top + 8 + 14 * run.index, class: "growth-text",
          "text-anchor": right ? "end" : "start",
        }, growth.text).style.fill = color;
      }
    }
  }

  /** At the foot of the loss: what was skipped (a cross), gone back from (an arrow) or a spike (a triangle). */
  marks(parent, box) {
    const shapes = { spikes: "M-4 4L4 4L0 -4Z", skipped: "M-3.5 -3.5L3.5 3.5M-3.5 3.5L3.5 -3.5", rewinds: "M4 -4L-4 0L4 4" };
    const words = { spikes: "spike", skipped: "skipped step", rewinds: "gone back" };
    for (const run of this.page.runs) {
      const at = run.x[this.page.axis];
      if (run.hidden || !at) continue;
      Object.keys(shapes).forEach((kind, row) => {
        for (const place of run.marks[kind] || []) {
          const group = make(parent, "g", { transform: `translate(${this.x(at[place]).toFixed(1)} ${box.bottom - 7 - 11 * row})` });
          const shape = make(group, "path", { d: shapes[kind], class: `mark ${kind}`, stroke: `var(--c${run.index % 8})`, fill: kind === "spikes" ? `var(--c${run.index % 8})` : "none" });
          make(shape, "title", {}, `${words[kind]} at or before step ${plain(run.x.step[place])}`);
        }
      });
    }
  }

  writeLegend() {
    this.legend.replaceChildren();
    const key = (color, dash, text) => {
      const item = make(this.legend, "span");
      const swatch = make(item, "svg", { viewBox: "0 0 22 8", width: 22, height: 8, "aria-hidden": "true" });
      make(swatch, "line", { x1: 0, x2: 22, y1: 4, y2: 4, stroke: color, "stroke-width": 2, "stroke-dasharray": dash });
      item.append(text);
    };
    const labels = new Map(this.shown.map((shown) => [shown.label, shown]));
    if (this.panel.tags.length > 1 && labels.size > 1) {
      for (const [label, { color, dash }] of labels) key(this.byLine ? color : "currentColor", dash, label);
    }
    if (this.panel.kind !== "loss") return;
    const counted = { spikes: ["▲", "spike", "spikes"], skipped: ["✕", "skipped step", "skipped steps"], rewinds: ["◁", "time gone back", "times gone back"] };
    for (const [kind, [sign, one, many]] of Object.entries(counted)) {
      const count = this.page.runs.reduce((sum, run) => sum + (run.hidden ? 0 : (run.marks[kind] || []).length), 0);
      if (count) make(this.legend, "span", {}, `${sign} ${count} ${count === 1 ? one : many}`);
    }
  }

  /** The panel in words, for those who do not see it. */
  describe() {
    const ends = this.shown.map(({ run, line, mean, label }) => {
      const part = mean || line;
      const last = part.y.length - 1;
      return `${run.name}${this.panel.tags.length > 1 ? ` ${label}` : ""} ${this.write(part.y[0])} to ${this.write(part.y[last])}`;
    });
    return `${this.panel.title} over ${AXES[this.page.axis].title}: ${ends.join("; ")}. Arrow keys read values.`;
  }

  write(value) {
    if (value === null) return "not finite";
    return this.panel.share ? `${(100 * value).toFixed(2)} %` : plain(value);
  }

  listen() {
    const { svg, page } = this;
    let from = null;
    const place = (event) => {
      const frame = svg.getBoundingClientRect();
      const x = ((event.clientX - frame.left) / frame.width) * this.width;
      return Math.min(this.box.right, Math.max(this.box.left, x));
    };
    svg.addEventListener("pointermove", (event) => {
      if (from !== null) {
        this.brush.setAttribute("x", Math.min(from, place(event)));
        this.brush.setAttribute("width", Math.abs(place(event) - from));
      }
      page.setCursor(this.x.back(place(event)), this);
    });
    svg.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse" && event.button === 0) {
        from = place(event);
        svg.setPointerCapture(event.pointerId);
      }
      page.setCursor(this.x.back(place(event)), this);
    });
    svg.addEventListener("pointerup", (event) => {
      const begin = from;
      from = null;
      this.brush.setAttribute("width", 0);
      if (begin !== null && Math.abs(place(event) - begin) > 8) {
        page.setView([begin, place(event)].sort((a, b) => a - b).map((x) => this.x.back(x)));
      }
    });
    svg.addEventListener("pointerleave", (event) => { if (from === null && event.pointerType === "mouse") page.setCursor(null, this); });
    svg.addEventListener("dblclick", () => page.setView(null));
    svg.addEventListener("blur", () => page.setCursor(null, this));
    svg.addEventListener("keydown", (event) => this.key(event));
  }

  /** Arrows go from point to point, ten at a time with Shift; Escape takes the cursor away, then the zoom. */
  key(event) {
    const { page } = this;
    if (event.key === "Escape") {
      if (page.cursor === null) page.setView(null);
      return page.setCursor(null, this);
    }
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined || !this.shown.length) return undefined;
    event.preventDefault();
    const [x0, x1] = page.view || page.extent();
    const xs = this.shown.reduce((most, { line }) => (line.xs.length > most.length ? line.xs : most), []).filter((x) => x >= x0 && x <= x1);
    const now = page.cursor === null ? (by > 0 ? -1 : xs.length) : nearest(xs, page.cursor);
    const next = Math.min(xs.length - 1, Math.max(0, now + by * (event.shiftKey ? 10 : 1)));
    return page.setCursor(xs[next], this);
  }

  /** A line at `x`, a dot on each line, and where `reads` their values in words. */
  showCursor(x, reads) {
    if (!this.svg) return;
    this.cursor.replaceChildren();
    this.tip.hidden = true;
    const [x0, x1] = this.page.view || this.page.extent();
    if (x === null || x < x0 || x > x1) return;
    const at = this.x(x);
    make(this.cursor, "line", { x1: at, x2: at, y1: this.box.top, y2: this.box.bottom });
    const rows = [];
    for (const shown of this.shown) {
      const part = shown.mean || shown.line;
      const reach = 0.03 * (x1 - x0);
      if (!part.xs.length || x > part.xs[part.xs.length - 1] + reach) continue;
      const index = nearest(part.xs, x);
      const y = part.y[index];
      if (y !== null && !(this.log && y <= 0) && this.y(y) >= this.box.top - 6) {
        make(this.cursor, "circle", { cx: this.x(part.xs[index]), cy: this.y(y), r: 4, fill: shown.color });
      }
      rows.push({ shown, y, place: part.at[index], x: part.xs[index] });
    }
    if (reads && rows.length) this.writeTip(rows, at);
  }

  writeTip(rows, at) {
    this.tip.replaceChildren();
    make(this.tip, "div", { class: "where" }, AXES[this.page.axis].read(rows[0].x));
    const table = make(this.tip, "table");
    const several = this.page.runs.length > 1;
    const isLoss = rows.some(({ shown }) => shown.mean);
    if (isLoss) {
      const head = make(table, "tr");
      for (const text of ["", "mean", "step's own", "step"]) make(head, "th", {}, text);
    }
    const spoken = [];
    for (const { shown, y, place } of rows) {
      const row = make(table, "tr");
      const name = make(row, "td", { class: "name" });
      make(name, "i", { class: "dot" }).style.background = shown.color;
      const labelled = this.panel.tags.length > 1;
      const text = [several ? shown.run.name : "", labelled ? shown.label : ""].filter(Boolean).join(" · ");
      name.append(text);
      make(row, "td", { class: "value" }, this.write(y));
      if (isLoss) {
        const own = shown.line.at.indexOf(place);
        make(row, "td", {}, own < 0 ? "" : this.write(shown.line.y[own]));
      }
      make(row, "td", { class: "step" }, (isLoss ? "" : "step ") + plain(shown.run.x.step[place]));
      spoken.push(`${text} ${this.write(y)}`);
    }
    this.tip.hidden = false;
    const width = this.tip.offsetWidth;
    const left = at + 14 + width > this.width ? at - 14 - width : at + 14;
    this.tip.style.left = `${Math.max(0, Math.min(left, this.width - width))}px`;
    this.page.say(`${AXES[this.page.axis].read(rows[0].x)}: ${spoken.join("; ")}`);
  }
}
