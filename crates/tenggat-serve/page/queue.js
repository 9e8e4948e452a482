"use strict";
// The queue, its order, and a form for a new job that is checked as one types.

const EXAMPLE = `job: extension
config:
  name: my_lora
  process:
    - type: sd_trainer
      training_folder: output
      network: {type: lora, linear: 16, linear_alpha: 16}
      save: {dtype: bf16, save_every: 250}
      datasets:
        - {folder_path: pictures, resolution: [512]}
      train: {batch_size: 1, lr: 1e-4, optimizer: adamw8bit, steps: 1000}
      model: {name_or_path: Qwen/Qwen-Image, arch: qwen_image}
`;
// A check begins when the keys have been quiet for so long, in milliseconds.
const QUIET = 400;

let queue = { entries: [], takes_jobs: false, is_run: false, error: null };
// What was typed outlives a look at another view.
let typed = { job: EXAMPLE, budget: "", by: "" };

const runName = (entry) => entry.run.split("/").pop();

function limit(entry) {
  if (entry.state === "running" && isNumber(entry.deadline_unix_s)) return `until ${moment(entry.deadline_unix_s)}`;
  const parts = [isNumber(entry.budget_s) ? span(entry.budget_s) : null, isNumber(entry.by_unix_s) ? `by ${moment(entry.by_unix_s)}` : null];
  return parts.filter(Boolean).join(" ") || "–";
}

function queueView() {
  document.title = "Queue · tenggat";
  const body = h("tbody"), none = h("p", { class: "dim" }, "Nothing waits. Put a job in with the form below, or with tenggat queue add."), said = h("p", { role: "status" });
  const idle = h("p", { class: "bad" }, "Nobody runs the queue. Start tenggat queue run, or serve with --run-queue.");
  const heads = ["Entry", "Run", "State", "Device", "Limit", "Why", "Change"];
  const table = h("table", { class: "runs" }, h("thead", {}, h("tr", {}, ...heads.map((name) => h("th", { scope: "col" }, name)))), body);
  const form = token.value && queue.takes_jobs ? jobForm() : h("p", { class: "dim" }, "Open the control page that tenggat serve printed to change the queue or to add jobs.");
  main.replaceChildren(h("h1", {}, "Queue"), idle, none, table, said, form.element || form);
  const tell = (path, value) => post(path, value).then(() => { said.textContent = ""; }, (e) => { said.textContent = e.message; });
  function changes(entry, places) {
    if (!token.value) return [];
    const button = (text, label, go) => h("button", { type: "button", "aria-label": `${label} ${runName(entry)}`, onclick: go }, text);
    const move = (to) => () => tell("/api/queue/move", { entry: entry.id, to });
    const all = [];
    if (entry.state === "waiting" && places.get(entry.id) > 0) all.push(button("↑", "Move up", move("up")));
    if (entry.state === "waiting" && places.get(entry.id) < places.size - 1) all.push(button("↓", "Move down", move("down")));
    if (entry.state === "waiting" || (entry.state === "running" && !entry.is_cancelled)) all.push(button("Cancel", "Cancel", () => tell("/api/queue/cancel", { entry: entry.id })));
    return all;
  }
  function draw() {
    none.hidden = queue.entries.length > 0;
    idle.hidden = queue.is_run || !queue.entries.some((entry) => entry.state === "waiting" || entry.state === "running");
    table.hidden = !none.hidden;
    if (queue.error) said.textContent = queue.error;
    const lanes = new Map();
    for (const entry of queue.entries) {
      if (entry.state !== "waiting") continue;
      const places = lanes.get(entry.lane) || new Map();
      lanes.set(entry.lane, places.set(entry.id, places.size));
    }
    // The button under the keyboard's hand is kept there.
    const held = document.activeElement && document.activeElement.getAttribute("aria-label");
    body.replaceChildren(...queue.entries.map((entry) => {
      const state = entry.state === "running" && entry.is_cancelled ? "ending" : entry.state;
      const texts = [String(entry.id), runName(entry), h("span", { class: `state ${state}` }, state), entry.lane, limit(entry), entry.reason || "", h("span", { class: "row" }, ...changes(entry, lanes.get(entry.lane) || new Map()))];
      return h("tr", { "data-entry": entry.id }, ...texts.map((text, n) => h("td", { "data-name": heads[n] }, text)));
    }));
    if (held) [...body.querySelectorAll("button")].find((button) => button.getAttribute("aria-label") === held)?.focus();
  }
  draw();
  return { queued: draw, leave() { if (form.leave) form.leave(); } };
}

function jobForm() {
  const job = h("textarea", { id: "job", rows: 16, spellcheck: "false", "aria-describedby": "found" });
  const budget = h("input", { id: "budget", size: 8, placeholder: "2h" }), by = h("input", { id: "by", size: 8, placeholder: "07:00" });
  const found = h("ul", { class: "log" }), add = h("button", { type: "submit", disabled: true }, "Add to the queue");
  job.value = typed.job; budget.value = typed.budget; by.value = typed.by;
  let timer = null, asking = false, again = false, alive = true;
  function show(lines, good) {
    found.replaceChildren(...lines.map((line) => h("li", { class: /^(error|problem)/.test(line) ? "bad" : null }, line)));
    add.disabled = !good;
  }
  async function check() {
    if (asking) { again = true; return; }
    asking = true;
    const text = job.value;
    const got = await post("/api/check", { job: text }).catch((e) => ({ ok: false, lines: [e.message] }));
    asking = false;
    if (!alive) return;
    if (again || job.value !== text) { again = false; check(); return; }
    show(got.lines, got.ok);
  }
  function changed() {
    typed = { job: job.value, budget: budget.value, by: by.value };
    add.disabled = true;
    clearTimeout(timer);
    timer = setTimeout(check, QUIET);
  }
  async function submit(event) {
    event.preventDefault();
    add.disabled = true;
    try {
      const { entry } = await post("/api/queue/add", { job: job.value, budget: budget.value, by: by.value });
      show([`Entry ${entry} was added.`], true);
    } catch (e) { show(e.message.split("\n").map((line, n) => (n ? line : `error: ${line.replace(/^error: /, "")}`)), true); }
  }
  job.addEventListener("input", changed);
  for (const input of [budget, by]) input.addEventListener("input", () => { typed = { job: job.value, budget: budget.value, by: by.value }; });
  check();
  const element = h("section", { class: "card", "aria-label": "New job" }, h("h2", {}, "New job"), h("form", { onsubmit: submit },
    h("p", {}, h("label", { for: "job" }, "Job file (YAML)")), job, h("div", { id: "found", role: "status" }, found),
    h("p", { class: "row" }, h("label", { for: "budget" }, "Budget"), budget, h("label", { for: "by" }, "or end by"), by, add)));
  return { element, leave() { alive = false; clearTimeout(timer); } };
}
