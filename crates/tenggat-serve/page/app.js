"use strict";
// The list of runs, several runs in one chart, and the way between the views.

let runs = [], view = null;
const main = document.getElementById("main"), connection = document.getElementById("connection");
const chosen = new Set();
// The server keeps the steps of so many runs in memory, and there are as many colours.
const MOST_COMPARED = PALETTE.length;

function listView() {
  document.title = "tenggat";
  const body = h("tbody"), compare = h("button", { type: "button", onclick: () => { location.hash = "#/compare/" + [...chosen].map(encodeURIComponent).join("&"); } }, "Compare");
  const none = h("p", { class: "dim" }, "No runs yet. They appear here as soon as one begins.");
  const heads = ["", "Run", "State", "Steps", "Loss", "Ends", "Deadline", "Budget used"];
  main.replaceChildren(h("h1", {}, "Runs"), h("p", { class: "row" }, compare), none,
    h("table", { class: "runs" }, h("thead", {}, h("tr", {}, ...heads.map((name) => h("th", { scope: "col" }, name || "Compare")))), body));
  const rows = new Map();
  function row(run) {
    const box = h("input", { type: "checkbox", "aria-label": `Choose ${run.id} to compare`, onchange: (e) => {
      if (e.target.checked) chosen.add(run.id); else chosen.delete(run.id);
      allow();
    } });
    box.checked = chosen.has(run.id);
    const cells = heads.map((name, n) => h("td", { "data-name": name || "Choose", class: n > 2 ? "number" : null }));
    cells[0].append(box);
    cells[1].append(h("a", { href: "#/run/" + encodeURIComponent(run.id) }, run.id === "." ? run.name : run.id));
    return { element: h("tr", { "data-run": run.id }, ...cells), cells };
  }
  function draw() {
    const order = [...runs].sort((a, b) => (a.state !== "running") - (b.state !== "running") || (b.updated_unix_s || 0) - (a.updated_unix_s || 0));
    none.hidden = order.length > 0;
    for (const [id, known] of rows) if (!order.some((run) => run.id === id)) { known.element.remove(); rows.delete(id); }
    order.forEach((run, n) => {
      if (!rows.has(run.id)) rows.set(run.id, row(run));
      const { element, cells } = rows.get(run.id);
      const used = isNumber(run.spent_s) && isNumber(run.budget_s) ? `${Math.round(100 * Math.min(1, run.spent_s / run.budget_s))} %` : "–";
      const state = h("span", { class: `state ${run.state}`, title: run.reason }, run.state);
      const texts = [state, run.phase && run.phase !== "train" ? run.phase.replaceAll("_", " ") : steps(run), loss(run.loss), ends(run), moment(run.deadline_unix_s), used];
      texts.forEach((text, i) => cells[i + 2].replaceChildren(text));
      if (body.children[n] !== element) body.insertBefore(element, body.children[n] || null);
    });
    allow();
  }
  function allow() {
    compare.disabled = chosen.size < 2;
    for (const [id, { cells }] of rows) cells[0].firstChild.disabled = !chosen.has(id) && chosen.size >= MOST_COMPARED;
  }
  draw();
  return { listed: draw, leave() {} };
}

function compareView(all) {
  const ids = all.slice(0, MOST_COMPARED);
  document.title = "Compare · tenggat";
  const place = h("div", { class: "plot" }), scale = h("input", { type: "checkbox", onchange: draw });
  main.replaceChildren(h("h1", {}, "Smoothed loss of several runs"), h("p", { class: "row" }, h("label", {}, scale, " logarithmic")), h("section", { class: "card", "aria-label": "Chart" }, place));
  let curves = [], plot = null, alive = true, timer = null;
  function draw() {
    if (plot) plot.destroy();
    place.replaceChildren();
    const x = [...new Set(curves.flatMap((curve) => curve.step))].sort((a, b) => a - b);
    const lines = curves.map((curve, n) => {
      const at = new Map(curve.step.map((step, i) => [step, curve.smoothed[i]]));
      return { label: ids[n], colour: PALETTE[n % PALETTE.length], width: 2, values: x.map((step) => at.get(step) ?? null) };
    });
    plot = x.length ? chart(place, { x, lines, logarithmic: scale.checked, label: `Smoothed loss of ${ids.join(", ")}`, height: 420 }) : null;
  }
  async function read() {
    const none = { step: [], smoothed: [] };
    const got = await Promise.all(ids.map((id) => getJson(`/api/curve?id=${encodeURIComponent(id)}&points=600`).catch(() => none)));
    if (alive) { curves = got; draw(); }
  }
  read();
  // Several runs change at once.
  const soon = () => { timer = timer || setTimeout(() => { timer = null; read(); }, 1000); };
  return { changed: (run) => ids.includes(run.id) && soon(), leave() { alive = false; clearTimeout(timer); if (plot) plot.destroy(); } };
}

function go() {
  token.take();
  if (view) view.leave();
  const [, kind, rest] = location.hash.match(/^#\/(run|compare)\/(.+)$/) || [];
  if (kind === "run") view = runView(main, decodeURIComponent(rest));
  else if (kind === "compare") view = compareView(rest.split("&").map(decodeURIComponent));
  else if (location.hash === "#/queue") view = queueView();
  else view = listView();
}

function listen() {
  const source = new EventSource("/api/events");
  source.addEventListener("runs", (event) => {
    const before = new Map(runs.map((run) => [run.id, JSON.stringify(run)]));
    runs = JSON.parse(event.data);
    connection.textContent = `${plural(runs.length, "run")}, live`;
    if (view.listed) view.listed();
    if (view.changed) runs.filter((run) => before.get(run.id) !== JSON.stringify(run)).forEach((run) => view.changed(run));
  });
  source.addEventListener("queue", (event) => {
    const took = queue.takes_jobs;
    queue = JSON.parse(event.data);
    // Whether there is a form is known now.
    if (view.queued && took !== queue.takes_jobs) go();
    else if (view.queued) view.queued();
  });
  // The browser tries again by itself.
  source.addEventListener("error", () => { connection.textContent = "not connected; trying again"; });
}

window.addEventListener("hashchange", go);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", go);
go();
listen();
