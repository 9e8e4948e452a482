"use strict";
// Elements and texts. Whatever comes from files becomes text, never markup.

function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const isNumber = (x) => typeof x === "number" && Number.isFinite(x);
const or = (x, show) => (isNumber(x) ? show(x) : "–");
const plural = (n, one) => `${n} ${one}${n === 1 ? "" : "s"}`;
const loss = (x) => or(x, (v) => v.toPrecision(4));

function span(s) {
  if (!isNumber(s)) return "–";
  s = Math.max(0, Math.round(s));
  const two = (n) => String(n).padStart(2, "0");
  if (s < 100) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)}:${two(s % 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)} h`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}

function perStep(s) {
  return or(s, (v) => (v < 0.9995 ? `${Math.round(v * 1000)} ms` : `${v.toPrecision(3)} s`));
}

function bytes(n) {
  return or(n, (v) => (v >= 1e9 ? `${(v / 1e9).toFixed(2)} GB` : `${(v / 1e6).toFixed(1)} MB`));
}

// The time of day, with the date where that is not today.
function moment(unix) {
  if (!isNumber(unix)) return "–";
  const at = new Date(unix * 1000), now = new Date();
  const near = Math.abs(at - now) < 600000;
  const time = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: near ? "2-digit" : undefined });
  return at.toDateString() === now.toDateString() ? time : `${at.toLocaleDateString()} ${time}`;
}

function ends(run) {
  if (!isNumber(run.end_unix_s)) return "–";
  const text = moment(run.end_unix_s);
  return run.state === "running" ? `${text}, in ${span(run.end_unix_s - Date.now() / 1000)}` : text;
}

function steps(run) {
  return run.total ? `${run.step} of ${run.total}` : String(run.step);
}

const fileUrl = (id, name) => `/file?id=${encodeURIComponent(id)}&name=${encodeURIComponent(name)}`;

async function getJson(path) {
  const answer = await fetch(path);
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error || answer.statusText);
  return value;
}

// The token comes behind the # of the address and stays in this tab.
const token = {
  get value() { return sessionStorage.getItem("token") || ""; },
  take() {
    const found = location.hash.match(/token=([0-9a-f]+)/);
    if (!found) return;
    sessionStorage.setItem("token", found[1]);
    history.replaceState(null, "", location.pathname + "#/");
  },
};

async function post(path, value) {
  const headers = { "content-type": "application/json", "x-tenggat-token": token.value };
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(value) });
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error || answer.statusText);
  return said;
}
