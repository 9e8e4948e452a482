"use strict";
// Charts of steps: uPlot with the colours of the page.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const PALETTE = ["#2f6fde", "#d2691e", "#2a9d57", "#a24bc4", "#c2385b", "#0f8b9d", "#8a7a12", "#6b6f7c"];

// `lines`: {label, values, colour, width, dash}. Zooming is told to `zoomed(from, to)`; a double click shows all.
function chart(place, { x, xLabel, lines, logarithmic, zoomed, label, unit, height, marks }) {
  const text = colour("--text"), grid = colour("--line");
  const axis = { stroke: text, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid } };
  const fits = (v) => (v === null || v === undefined ? "–" : Number(v).toPrecision(4));
  const options = {
    width: Math.max(240, place.clientWidth), height: height || 260,
    scales: { x: { time: false }, y: { distr: logarithmic ? 3 : 1 } },
    axes: [axis, { ...axis, size: 62, values: (_, all) => all.map((v) => (v === null ? "" : String(+v.toPrecision(6)))) }],
    cursor: { drag: { x: true, y: false } },
    legend: { live: true },
    series: [{ label: xLabel || "step" }, ...lines.map((line) => ({
      label: line.label, stroke: line.colour, width: line.width || 1, dash: line.dash, spanGaps: true,
      points: { show: line.points || false, size: 6 }, value: (_, v) => fits(v) + (unit || ""),
    }))],
    hooks: {
      // Where the run was resumed.
      draw: [(u) => {
        const { ctx, bbox } = u;
        ctx.save();
        ctx.strokeStyle = colour("--dim");
        ctx.setLineDash([2, 4]);
        for (const mark of marks || []) {
          const left = u.valToPos(mark, "x", true);
          if (left < bbox.left || left > bbox.left + bbox.width) continue;
          ctx.beginPath();
          ctx.moveTo(left, bbox.top);
          ctx.lineTo(left, bbox.top + bbox.height);
          ctx.stroke();
        }
        ctx.restore();
      }],
      setSelect: [(u) => {
        if (u.select.width > 4 && zoomed) zoomed(Math.round(u.posToVal(u.select.left, "x")), Math.round(u.posToVal(u.select.left + u.select.width, "x")));
      }],
    },
  };
  const columns = (x, lines) => [x, ...lines.map((line) => (logarithmic ? line.values.map((v) => (v > 0 ? v : null)) : line.values))];
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", label);
  const plot = new uPlot(options, columns(x, lines), place);
  plot.over.addEventListener("dblclick", () => zoomed && zoomed(null, null));
  const resized = new ResizeObserver(() => plot.setSize({ width: Math.max(240, place.clientWidth), height: options.height }));
  resized.observe(place);
  return {
    set(x, lines) { plot.setData(columns(x, lines)); },
    destroy() { resized.disconnect(); plot.destroy(); },
  };
}

// The budget as two rows over time: what was planned and what was, with the deadline.
function timeline(run) {
  const past = run.history, now = isNumber(run.spent_s) ? run.spent_s : 0;
  const plan = past.planned, spans = [];
  if (plan) {
    const from = plan.at_s, train = from + (plan.training_s || 0);
    spans.push(["train", from, train, "plan"], ["final phases", train, train + plan.tail_s, "plan"]);
  }
  const actual = past.phases.map((phase) => [phase.phase.replaceAll("_", " "), phase.from_s, phase.to_s === null ? Math.max(now, phase.from_s) : phase.to_s, "actual"]);
  const end = Math.max(1, past.deadline_s || 0, ...spans.map((s) => s[2]), ...actual.map((s) => s[2]));
  const at = (s) => 70 + 620 * Math.max(0, s) / end;
  const drawn = [svg("text", { x: 0, y: 20 }, "planned"), svg("text", { x: 0, y: 50 }, "actual")];
  for (const [name, from, to, kind] of [...spans, ...actual]) {
    const y = kind === "plan" ? 6 : 36, width = Math.max(1.5, at(to) - at(from) - 1);
    const bar = svg("rect", { x: at(from), y, width, height: 18, rx: 2, class: kind });
    bar.append(svg("title", {}, `${name}: ${span(to - from)}`));
    drawn.push(bar);
    if (width > 60 && kind === "plan") drawn.push(svg("text", { x: at(from) + 5, y: y + 13 }, name));
  }
  if (isNumber(past.deadline_s)) {
    drawn.push(svg("line", { x1: at(past.deadline_s), x2: at(past.deadline_s), y1: 0, y2: 60, class: "late" }));
  }
  drawn.push(svg("text", { x: 70, y: 76, class: "axis" }, "0"), svg("text", { x: 690, y: 76, class: "axis", "text-anchor": "end" }, span(end)));
  const said = actual.map(([name, from, to]) => `${name} ${span(to - from)}`).join(", ");
  const label = `Phases so far: ${said || "none"}.` + (isNumber(past.deadline_s) ? ` Deadline after ${span(past.deadline_s)}.` : "");
  return svg("svg", { viewBox: "0 0 700 82", class: "timeline", role: "img", "aria-label": label }, ...drawn);
}
