"use strict";
// The view of one run.

function runView(main, id) {
  let zoom = [null, null], logarithmic = false, smoothing = 0.02, plots = new Map(), shownSamples = "", alive = true, busy = false, again = false;
  let detail = null, curve = null;
  const part = (title, ...content) => h("section", { class: "card", "aria-label": title }, h("h2", {}, title), ...content);
  const head = h("div"), facts = h("dl", { class: "facts" }), share = h("progress", { max: 1, "aria-label": "Steps done" });
  const lossPlot = h("div", { class: "plot", id: "loss" }), ratePlot = h("div", { class: "plot" });
  const timePlot = h("div", { class: "plot" }), memory = h("div", { class: "plot" }), budget = h("div");
  const log = h("ol", { class: "log", tabindex: 0, "aria-label": "Log" }), files = h("div"), job = h("div");
  const samples = h("div", { id: "samples" }), controls = controlsOf(id), trouble = h("p", { class: "bad", role: "alert", hidden: true });
  const smooth = h("input", { type: "range", id: "smoothing", min: 0, max: 3, step: 0.1, value: 1.7, oninput: (e) => {
    smoothing = Math.pow(10, -e.target.value);
    soon();
  } });
  const scale = h("input", { type: "checkbox", id: "logarithmic", onchange: (e) => { logarithmic = e.target.checked; drawCurve(); } });
  const all = h("button", { type: "button", onclick: () => zoomed(null, null) }, "Show all steps");
  main.replaceChildren(
    trouble,
    h("section", { class: "card", "aria-label": "Run" }, head, facts, share, controls),
    part("Loss", h("div", { class: "row" }, h("label", { for: "smoothing" }, "Smoothing"), h("span", {}, smooth),
      h("label", {}, scale, " logarithmic"), all), lossPlot, h("p", { class: "dim" }, "Drag over the chart to zoom, double-click to see all. Dotted lines mark where the run was resumed.")),
    h("div", { class: "grid" }, part("Budget", budget), part("Seconds per step", timePlot), part("Learning rate", ratePlot), part("Memory", memory)),
    part("Samples", samples),
    h("div", { class: "grid" }, part("Log", log, h("p", {}, h("a", { href: `/api/log?id=${encodeURIComponent(id)}` }, "events as JSON lines"))), part("Checkpoints", files)),
    part("Job", job),
  );
  let timer = null;
  const soon = () => { clearTimeout(timer); timer = setTimeout(readCurve, 120); };
  function zoomed(from, to) { zoom = [from, to]; readCurve(); }

  async function readCurve() {
    const [from, to] = zoom;
    const range = (from === null ? "" : `&from=${Math.max(0, from)}`) + (to === null ? "" : `&to=${Math.max(0, to)}`);
    const got = await getJson(`/api/curve?id=${encodeURIComponent(id)}&smoothing=${smoothing}${range}`).catch(() => null);
    if (!alive || !got) return;
    curve = got;
    drawCurve();
  }

  // A chart that is there already takes new values, so that neither pointer nor zoom is lost.
  function put(place, what) {
    const kind = JSON.stringify([what.lines.map((line) => line.label), what.logarithmic, what.marks]);
    const known = plots.get(place);
    if (known && known.kind === kind) {
      known.plot.set(what.x, what.lines);
      place.setAttribute("aria-label", what.label);
      return;
    }
    if (known) known.plot.destroy();
    place.replaceChildren();
    plots.set(place, { kind, plot: chart(place, what) });
  }

  function drawCurve() {
    if (!curve || !curve.step.length) {
      if (!plots.size) lossPlot.replaceChildren(h("p", { class: "dim" }, "No step is done yet."));
      return;
    }
    const held = new Map(curve.validation), errors = new Map(detail ? detail.history.errors.map(([s, e]) => [s, e]) : []);
    const x = [...new Set([...curve.step, ...held.keys(), ...errors.keys()])].sort((a, b) => a - b);
    const place = new Map(curve.step.map((step, n) => [step, n]));
    const at = (values) => x.map((step) => (place.has(step) ? values[place.get(step)] : null));
    const lines = [
      { label: "loss", values: at(curve.loss), colour: colour("--raw") },
      { label: "smoothed", values: at(curve.smoothed), colour: colour("--smooth"), width: 2 },
    ];
    if (held.size) lines.push({ label: "validation", values: x.map((s) => held.get(s) ?? null), colour: colour("--held"), width: 2, points: true });
    if (errors.size) lines.push({ label: "held-out error", values: x.map((s) => errors.get(s) ?? null), colour: colour("--held"), width: 2, points: true, dash: [4, 3] });
    const last = curve.smoothed[curve.smoothed.length - 1];
    const label = `Loss over ${plural(curve.of, "step")}, smoothed now ${loss(last)}`;
    const marks = detail ? detail.history.resumes : [];
    put(lossPlot, { x, lines, logarithmic, zoomed, label, height: 320, marks });
    put(ratePlot, { x: curve.step, label: "Learning rate over the steps", lines: [{ label: "learning rate", values: curve.lr, colour: colour("--smooth") }] });
    const time = [{ label: "s/step", values: curve.step_s, colour: colour("--smooth") }];
    const planned = detail && detail.history.planned && detail.history.planned.step_s;
    if (isNumber(planned)) time.push({ label: "forecast", values: curve.step.map(() => planned), colour: colour("--held"), dash: [6, 4] });
    put(timePlot, { x: curve.step, label: `Seconds per step, forecast ${perStep(planned)}`, lines: time, unit: " s" });
    drawMemory();
  }

  function drawMemory() {
    const known = detail ? detail.history.memory : [];
    if (!known.length) { memory.replaceChildren(h("p", { class: "dim" }, "Not measured yet.")); return; }
    const gb = (v) => (isNumber(v) ? v / 1e9 : null);
    const lines = [{ label: "process", values: known.map((m) => gb(m.host_bytes)), colour: colour("--smooth") }];
    if (known.some((m) => isNumber(m.device_bytes))) lines.push({ label: "GPU", values: known.map((m) => gb(m.device_bytes)), colour: colour("--held") });
    put(memory, { x: known.map((m) => m.at_s), xLabel: "second", label: "Memory over time", lines, unit: " GB" });
  }

  // Whatever changes while an answer is on its way is asked for after it.
  async function refresh() {
    if (busy) { again = true; return; }
    busy = true;
    do {
      again = false;
      await show();
    } while (again && alive);
    busy = false;
  }

  async function show() {
    const got = await getJson(`/api/run?id=${encodeURIComponent(id)}`).catch((e) => ({ error: e.message }));
    if (!alive) return;
    trouble.hidden = !got.error;
    trouble.textContent = got.error || "";
    if (got.error) return;
    const isFirst = detail === null;
    detail = got;
    document.title = `${detail.name} · tenggat`;
    drawHead();
    budget.replaceChildren(timeline(detail), h("p", { class: "dim" }, budgetText(detail)));
    drawLog();
    drawFiles();
    if (isFirst) readJob();
    drawSamples();
    await readCurve();
  }

  function drawHead() {
    const r = detail;
    head.replaceChildren(h("h1", {}, r.name, " ", h("span", { class: `state ${r.state}` }, r.state)), r.reason ? h("p", { class: r.state === "failed" ? "bad" : "dim" }, r.reason) : "");
    const entry = (name, value) => [h("dt", {}, name), h("dd", {}, value)];
    const pairs = [["Steps", steps(r)], [r.state === "running" ? "Ends" : "Ended", ends(r)], ["Deadline", moment(r.deadline_unix_s)],
      ["Budget", isNumber(r.budget_s) ? `${span(r.spent_s)} of ${span(r.budget_s)}` : "–"], ["Loss", loss(r.loss)], ["Time per step", perStep(r.step_s)],
      ["Phase", r.phase ? r.phase.replaceAll("_", " ") + (r.progress ? ` ${r.progress[0]}/${r.progress[1]}` : "") : "–"]];
    facts.replaceChildren(...pairs.map(([name, value]) => h("div", {}, ...entry(name, value))));
    if (r.total) share.value = Math.min(1, r.step / r.total);
    share.hidden = !r.total;
    // Requests are answered between two steps; another trainer generates no samples when asked.
    controls.hidden = r.state !== "running" || r.phase !== "train" || !token.value;
    controls.querySelector(".sample").hidden = r.program === "drive";
  }

  function drawLog() {
    const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
    log.replaceChildren(...detail.history.log.map((line) => h("li", { class: line.is_warning ? "bad" : null }, h("time", {}, moment(line.unix_s)), " ", line.text)));
    if (atEnd) log.scrollTop = log.scrollHeight;
  }

  function drawFiles() {
    const row = (c) => h("tr", {}, h("td", {}, h("a", { href: fileUrl(id, c.file), download: c.file }, c.file)), h("td", { class: "number" }, bytes(c.bytes)), h("td", { class: "number" }, moment(c.unix_s)));
    files.replaceChildren(detail.checkpoints.length
      ? h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "File"), h("th", { scope: "col" }, "Size"), h("th", { scope: "col" }, "Written"))), h("tbody", {}, ...detail.checkpoints.map(row)))
      : h("p", { class: "dim" }, "None yet."));
  }

  // It is asked for once: it does not change.
  async function readJob() {
    const got = await getJson(`/api/job?id=${encodeURIComponent(id)}`).catch((e) => ({ error: e.message }));
    if (!alive) return;
    if (got.error) { job.replaceChildren(h("p", { class: "bad" }, got.error)); return; }
    drawJob(got);
  }

  function drawJob({ config, given }) {
    if (!config) { job.replaceChildren(h("p", { class: "dim" }, "Its folder has no config.yaml.")); return; }
    const row = (g) => h("tr", { class: g.is_default === false ? "changed" : null }, h("td", {}, g.key), h("td", {}, g.value), h("td", {}, g.is_default === null ? "–" : g.is_default ? "default" : "set here"));
    job.replaceChildren(h("table", { class: "jobkeys" }, h("thead", {}, h("tr", {}, ["Key", "Value", ""].map((t) => h("th", { scope: "col" }, t || h("span", {}, "Default?"))))), h("tbody", {}, ...given.map(row))),
      h("details", {}, h("summary", {}, "config.yaml"), h("pre", { tabindex: 0 }, config)));
  }

  function drawSamples() {
    const key = JSON.stringify(detail.samples.map((s) => s.file));
    if (key === shownSamples) return;
    shownSamples = key;
    samples.replaceChildren(...(detail.samples.length ? sampleParts(id, detail.samples) : [h("p", { class: "dim" }, "None yet.")]));
  }

  refresh();
  return { changed: (run) => run.id === id && refresh(), leave() { alive = false; plots.forEach(({ plot }) => plot.destroy()); } };
}

function budgetText(run) {
  const expected = run.history.expected;
  if (!isNumber(run.history.deadline_s)) return expected && expected.steps_total ? `No deadline; target: ${plural(expected.steps_total, "step")}.` : "No deadline.";
  const margin = expected ? `, ${span(expected.margin_s)} kept free` : "";
  return `Deadline ${moment(run.deadline_unix_s)}, ${span(run.spent_s)} of ${span(run.budget_s)} used${margin}.`;
}

// A grid of all samples, and any two of one prompt on top of each other.
function sampleParts(id, samples) {
  const prompts = [...new Set(samples.map((s) => s.prompt))].sort((a, b) => a - b);
  const rounds = [...new Set(samples.map((s) => s.step))].sort((a, b) => a - b);
  const find = (step, prompt) => samples.find((s) => s.step === step && s.prompt === prompt);
  const image = (s) => h("img", { src: fileUrl(id, s.file), alt: `Prompt ${s.prompt + 1} after ${plural(s.step, "step")}`, loading: "lazy" });
  const grid = h("div", { class: "samples", tabindex: 0, role: "region", "aria-label": "All samples" }, h("table", {},
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Step"), ...rounds.map((step) => h("th", { scope: "col" }, String(step))))),
    h("tbody", {}, ...prompts.map((p) => h("tr", {}, h("th", { scope: "row" }, `Prompt ${p + 1}`), ...rounds.map((step) => h("td", {}, find(step, p) ? image(find(step, p)) : "–")))))));
  const choose = (name, values, chosen) => h("select", { id: `sample-${name}`, onchange: draw }, ...values.map((v) => h("option", { value: v, selected: v === chosen }, name === "prompt" ? `Prompt ${v + 1}` : `Step ${v}`)));
  const prompt = choose("prompt", prompts, prompts[0]), before = choose("before", rounds, rounds[0]), after = choose("after", rounds, rounds[rounds.length - 1]);
  const under = h("img", { alt: "" }), over = h("img", { alt: "", class: "over" });
  const slider = h("input", { type: "range", id: "sample-slider", min: 0, max: 100, value: 50, oninput: cut, "aria-label": "Share of the later sample that is shown" });
  function draw() {
    for (const [img, step] of [[under, before.value], [over, after.value]]) {
      const sample = find(Number(step), Number(prompt.value));
      img.hidden = !sample;
      if (sample) { img.src = fileUrl(id, sample.file); img.alt = `Prompt ${sample.prompt + 1} after ${plural(sample.step, "step")}`; }
    }
  }
  function cut() { over.style.clipPath = `inset(0 0 0 ${slider.value}%)`; }
  draw();
  cut();
  const labelled = (name, control) => h("label", {}, `${name} `, control);
  return [h("div", { class: "row" }, labelled("Compare", prompt), labelled("left", before), labelled("right", after)),
    h("div", { class: "compare" }, under, over), h("div", { class: "compare" }, slider), grid];
}

// What may be asked of a run, by whoever has the token.
function controlsOf(id) {
  const said = h("span", { role: "status" });
  const tell = (promise, done) => promise.then(() => { said.textContent = done; said.className = ""; }, (e) => { said.textContent = e.message; said.className = "bad"; });
  const ask = (what, done) => () => tell(post("/api/ask", { id, what }), done);
  const by = h("input", { id: "extend-by", value: "+30m", size: 6, "aria-label": "Move the deadline by" });
  return h("div", { class: "row", id: "controls" },
    h("button", { type: "button", onclick: ask("save", "A save was asked for.") }, "Save now"),
    h("button", { type: "button", class: "sample", onclick: ask("sample", "Samples were asked for.") }, "Sample now"),
    h("button", { type: "button", onclick: () => confirm("Stop this run? What was trained is saved.") && ask("stop", "The end was asked for.")() }, "Save and stop"),
    by, h("button", { type: "button", onclick: () => tell(post("/api/extend", { id, by: by.value }), "Another deadline was asked for.") }, "Move the deadline"), said);
}
