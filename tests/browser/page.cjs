"use strict";
// Drives the page in a real browser: node page.cjs ADDRESS RUN LONG [FOLDER OF SCREENSHOTS]
//
// ADDRESS has the token; RUN is a run under way with samples and a budget, LONG one of 50 000 steps. Modules come from
// NODE_PATH, the browser from TENGGAT_CHROMIUM. Prints what was measured; the exit code says whether all was right.

const assert = require("node:assert");
const fs = require("node:fs");
const path = require("node:path");
const { chromium } = require("playwright-core");
const axe = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const [address, run, long, shots] = process.argv.slice(2);
const base = address.split("#")[0];

async function until(what, check, seconds = 60) {
  const began = Date.now();
  for (;;) {
    const found = await check();
    if (found) return found;
    assert(Date.now() - began < seconds * 1000, `not seen within ${seconds} s: ${what}`);
    await new Promise((done) => setTimeout(done, 100));
  }
}

async function isAccessible(page, where) {
  const found = await page.evaluate(`${axe}; axe.run(document, { resultTypes: ["violations"] })`);
  const serious = found.violations.filter((v) => ["serious", "critical"].includes(v.impact));
  const said = serious.map((v) => `${v.id}: ${v.nodes.map((n) => n.html.slice(0, 120)).join(" | ")}`);
  assert.deepStrictEqual(said, [], where);
}

async function shot(page, name) {
  if (!shots) return;
  await page.evaluate(() => { document.activeElement.blur(); window.scrollTo(0, 0); });
  await page.screenshot({ path: path.join(shots, `${name}.jpg`), type: "jpeg", quality: 80 });
}

const fact = (page, name) => page.evaluate((name) => {
  const dt = [...document.querySelectorAll(".facts dt")].find((dt) => dt.textContent === name);
  return dt ? dt.nextElementSibling.textContent : null;
}, name);

// A job that is typed, checked and added; then the order of others, and cancelling.
async function queue(page) {
  const job = fs.readFileSync(process.env.TENGGAT_JOB, "utf8");
  const named = (name, steps) => job.replace("name: fox", `name: ${name}`).replace(/steps: \d+/, `steps: ${steps}`);
  const state = (name) => page.evaluate((name) => {
    const row = [...document.querySelectorAll("[data-entry]")].find((row) => row.children[1].textContent === name);
    return row ? row.querySelector(".state").textContent : null;
  }, name);
  await page.click("text=Queue");
  await page.waitForSelector("#job");
  const add = page.locator("text=Add to the queue");
  await page.fill("#job", "job: extension\nconfig: {");
  await page.waitForSelector("#found .bad");
  assert(await add.isDisabled(), "what cannot run cannot be added");
  for (const [name, steps] of [["first", 1000000], ["second", 2], ["third", 2]]) {
    await page.fill("#job", named(name, steps));
    await until(`${name} is found good`, () => add.isEnabled());
    await add.click();
    await until(`${name} is in the queue`, () => state(name));
  }
  await until("the first runs", async () => (await state("first")) === "running");
  await isAccessible(page, "queue");
  await shot(page, "queue");
  await page.click('[aria-label="Move up third"]');
  await until("another order", () => page.evaluate(() => [...document.querySelectorAll("[data-entry]")].map((row) => row.children[1].textContent).join() === "first,third,second"));
  await page.click('[aria-label="Cancel second"]');
  await until("the second is out", async () => (await state("second")) === "cancelled");
  await page.click('[aria-label="Cancel first"]');
  await until("the first is out", async () => (await state("first")) === "cancelled");
  await until("the third is done", async () => (await state("third")) === "done");
}

async function main() {
  const browser = await chromium.launch({ executablePath: process.env.TENGGAT_CHROMIUM, args: ["--no-sandbox"] });
  try {
    const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
    const wrong = [];
    page.on("console", (m) => m.type() === "error" && wrong.push(m.text()));
    page.on("pageerror", (e) => wrong.push(String(e)));
    page.on("request", (r) => r.url().startsWith(base) || wrong.push(`asked for ${r.url()}`));
    page.on("dialog", (dialog) => dialog.accept());

    // The list.
    await page.goto(address);
    await page.waitForSelector(`[data-run="${run}"] .running`);
    const paint = await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime);
    console.log(`first paint ${Math.round(paint)} ms`);
    assert(!page.url().includes("token="), "the token stays out of the address");
    await isAccessible(page, "list");
    await shot(page, "list");

    // A run under way: it moves.
    await page.click(`[data-run="${run}"] a`);
    await page.waitForSelector("#loss canvas");
    const before = Number.parseInt(await fact(page, "Steps"), 10);
    await until("more steps", async () => Number.parseInt(await fact(page, "Steps"), 10) > before);
    await isAccessible(page, "run");

    // Samples, asked for, and the slider between two rounds of them.
    await page.click("text=Sample now");
    await until("two rounds of samples", () => page.evaluate(() => document.querySelectorAll("#sample-after option").length > 1));
    await until("a sample that is shown", () => page.evaluate(() => document.querySelector(".compare img").naturalWidth > 0));
    const clip = () => page.evaluate(() => document.querySelector(".compare .over").style.clipPath);
    const half = await clip();
    await page.focus("#sample-slider");
    await page.keyboard.press("End");
    assert.notStrictEqual(await clip(), half);
    await page.keyboard.press("Home");
    await shot(page, "run");
    if (shots) {
      await page.emulateMedia({ colorScheme: "dark" });
      await page.waitForSelector("#loss canvas");
      await page.waitForTimeout(1500);
      await shot(page, "run-dark");
      await page.setViewportSize({ width: 390, height: 844 });
      await page.waitForTimeout(1500);
      await shot(page, "run-phone");
      await page.goto(`${base}#/`);
      await page.waitForSelector(`[data-run="${run}"]`);
      await shot(page, "list-phone");
      await isAccessible(page, "dark and small");
      await page.emulateMedia({ colorScheme: "light" });
      await page.setViewportSize({ width: 1280, height: 900 });
    }

    // An answer that fails is told, and what is shown stays and goes on.
    const failing = /\/api\/run\?/;
    await page.route(failing, (route) => route.fulfill({ status: 500, contentType: "application/json", body: '{"error":"out of order"}' }));
    await page.waitForSelector("text=out of order");
    assert(await page.isVisible("#loss canvas"), "the chart stays");
    await page.unroute(failing);
    await page.waitForSelector("text=out of order", { state: "hidden" });
    const since = Number.parseInt(await fact(page, "Steps"), 10);
    await until("steps after a failure", async () => Number.parseInt(await fact(page, "Steps"), 10) > since);
    // The browser itself reports such answers.
    for (const [n, text] of [...wrong.entries()].reverse()) if (text.includes("500 (")) wrong.splice(n, 1);

    // A reload loses nothing.
    await page.goto(`${base}#/run/${encodeURIComponent(run)}`);
    await page.reload();
    await page.waitForSelector("#loss canvas");

    // What may be asked.
    const said = () => page.evaluate(() => document.querySelector("#controls [role=status]").textContent);
    await page.click("text=Save now");
    await until("the save is asked for", async () => (await said()).includes("save was asked for"));
    const budget = await fact(page, "Budget");
    await page.fill("#extend-by", "+20m");
    await page.click("text=Move the deadline");
    await until("another budget", async () => (await fact(page, "Budget")).split(" of ")[1] !== budget.split(" of ")[1]);
    await page.click("text=Save and stop");
    await until("the end", () => page.evaluate(() => !!document.querySelector("h1 .stopped")));
    assert(await page.isHidden("#controls"), "nothing can be asked of a run that has ended");

    // A long run answers at once.
    await page.goto(`${base}#/run/${encodeURIComponent(long)}`);
    await page.waitForSelector("#loss canvas");
    const began = Date.now();
    const answered = page.waitForResponse((r) => r.url().includes("/api/curve") && r.url().includes("from="));
    const box = await page.locator("#loss .u-over").boundingBox();
    await page.mouse.move(box.x + box.width * 0.3, box.y + 50);
    await page.mouse.down();
    await page.mouse.move(box.x + box.width * 0.6, box.y + 60, { steps: 3 });
    await page.mouse.up();
    await answered;
    console.log(`zoom into 50 000 steps ${Date.now() - began} ms`);

    // Several runs in one chart.
    await page.goto(`${base}#/`);
    await page.check(`[data-run="${run}"] input`);
    await page.check(`[data-run="${long}"] input`);
    await page.click("text=Compare");
    await page.waitForSelector(".plot canvas");
    await isAccessible(page, "compare");
    await queue(page);
    assert.deepStrictEqual(wrong, []);
  } finally {
    await browser.close();
  }
}

main().then(() => console.log("all right"), (e) => { console.error(e); process.exit(1); });
