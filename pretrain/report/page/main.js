// The page: reads the data, and keeps what all panels share, the axis, the view, the cursor and the runs shown.

const page = {
  axis: "tokens",
  view: null,
  cursor: null,
  charts: [],
  runs: [],

  /** From where to where the runs go on the axis. */
  extent() {
    const ends = this.runs.filter((run) => !run.hidden && run.x[this.axis]).map((run) => run.x[this.axis]);
    const low = Math.min(...ends.map((xs) => xs[0]));
    const high = Math.max(...ends.map((xs) => xs[xs.length - 1]));
    if (!ends.length) return [0, 1];
    return [low < 0.3 * high ? 0 : low, high > low ? high : high + 1];
  },
  draw() {
    for (const chart of this.charts) chart.draw();
    document.getElementById("unzoom").hidden = !this.view;
  },
  setAxis(axis) {
    this.axis = axis;
    this.view = this.cursor = null;
    this.draw();
  },
  setView(view) {
    this.view = view;
    this.draw();
  },
  setCursor(x, source) {
    this.cursor = x;
    for (const chart of this.charts) chart.showCursor(x, chart === source);
  },
  say(text) {
    document.getElementById("spoken").textContent = text;
  },
};

function toggles(host, items, pressed, choose) {
  const buttons = items.map(({ text, color }, index) => {
    const button = make(host, "button", { type: "button", "aria-pressed": String(pressed(index)) });
    if (color) make(button, "i", { class: "dot" }).style.background = color;
    button.append(text);
    button.addEventListener("click", () => {
      choose(index);
      buttons.forEach((other, at) => other.setAttribute("aria-pressed", String(pressed(at))));
    });
    return button;
  });
}

function tools() {
  const names = Object.keys(AXES).filter((axis) => page.runs.some((run) => run.x[axis]));
  if (!names.includes(page.axis)) page.axis = names[names.length - 1];
  const axes = document.getElementById("axes");
  toggles(axes, names.map((name) => ({ text: AXES[name].name })), (i) => names[i] === page.axis, (i) => page.setAxis(names[i]));
  if (page.runs.length > 1) {
    const runs = document.getElementById("runs");
    toggles(runs, page.runs.map((run) => ({ text: run.name, color: `var(--c${run.index % 8})` })), (i) => !page.runs[i].hidden, (i) => {
      page.runs[i].hidden = !page.runs[i].hidden;
      page.draw();
    });
  }
  document.getElementById("unzoom").addEventListener("click", () => page.setView(null));
}

/** What the model wrote, prompt by prompt, with a slider over the steps. */
function samples(host) {
  const withSamples = page.runs.filter((run) => run.samples.length);
  host.parentElement.hidden = !withSamples.length;
  for (const run of withSamples) {
    for (const prompt of [...new Set(run.samples.map((sample) => sample.prompt))]) {
      const texts = run.samples.filter((sample) => sample.prompt === prompt);
      const card = make(host, "article", { class: "sample" });
      const head = make(card, "header");
      if (page.runs.length > 1) {
        const name = make(head, "span", { class: "run" });
        make(name, "i", { class: "dot" }).style.background = `var(--c${run.index % 8})`;
        name.append(run.name);
      }
      const step = make(head, "output");
      const body = make(card, "pre", { tabindex: "0" });
      const show = (index) => {
        const { text } = texts[index];
        const begins = text.startsWith(prompt);
        body.replaceChildren();
        if (begins) make(body, "b", {}, prompt);
        body.append(begins ? text.slice(prompt.length) : text);
        step.textContent = `step ${plain(texts[index].step)}`;
      };
      if (texts.length > 1) {
        const slider = make(head, "input", { type: "range", min: 0, max: texts.length - 1, value: texts.length - 1, "aria-label": `step of the text that continues ${prompt}` });
        slider.addEventListener("input", () => show(Number(slider.value)));
      }
      show(texts.length - 1);
    }
  }
}

function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  page.runs = data.runs.map((run, index) => ({ ...run, index, hidden: false }));
  for (const run of page.runs) {
    for (const line of Object.values(run.lines)) {
      let place = 0;
      line.at = line.at.map((distance) => (place += distance));
    }
  }
  tools();
  for (const panel of data.panels) {
    const host = document.getElementById(panel.kind === "other" ? "others" : "panels");
    page.charts.push(new Chart(host, panel, page));
  }
  const others = document.getElementById("others").closest("details");
  others.hidden = !data.panels.some((panel) => panel.kind === "other");
  others.addEventListener("toggle", () => page.draw());
  samples(document.getElementById("samples"));
  page.draw();
  document.documentElement.classList.add("drawn");
}

start();
