// Clicks through the console of a running engine, in a real Chromium. `make console-test` installs what it needs.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { after, before, beforeEach, test } from "node:test";
import { createServer } from "node:net";
import { mkdirSync, mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const here = fileURLToPath(new URL(".", import.meta.url));
const shots = process.env.KASPR_CONSOLE_SHOTS; // a folder for screenshots; unset: none are taken
const evil = '<script>window.harmed=1</script><img src=x onerror="window.harmed=1">';

let engine, browser, page, web, base; // base is the admin server's
let log = "";
const violations = [];

const freePort = () => new Promise((resolve) => {
  const s = createServer().listen(0, "127.0.0.1", () => {
    const { port } = s.address();
    s.close(() => resolve(port));
  });
});

async function until(what, ok, limit = 90_000) {
  for (const began = Date.now(); ; ) {
    if (await ok().catch(() => false)) return;
    assert.ok(Date.now() - began < limit, `no ${what}\n${log}`);
    await new Promise((r) => setTimeout(r, 100));
  }
}

const order = (customer, amount, headers = {}) => `${JSON.stringify({ key: customer, value: { customer, amount }, headers })}\n`;

before(async () => {
  const [port, admin] = [await freePort(), await freePort()];
  base = `http://127.0.0.1:${admin}`;
  web = `http://127.0.0.1:${port}`;
  const later = new Date(Date.now() + 86_400_000).toISOString();
  const requests = join(mkdtempSync(join(tmpdir(), "console-")), "requests.jsonl");
  writeFileSync(requests, `${JSON.stringify({ key: "k", value: { note: evil }, headers: { "x-scheduler-deliver-to": "rich", "x-scheduler-deliver-at": later, "x-scheduler-request-id": "tomorrow" } })}\n`);
  engine = spawn(process.env.KASPR_BINARY, ["dev", `${here}app.yaml`, "--http", "--input", "orders=-", "--input", `shop-app-schedule-requests=${requests}`, "--set", `webPort=${port}`, "--set", `adminListen=127.0.0.1:${admin}`, "--log-level", "warn"], { stdio: ["pipe", "pipe", "pipe"] });
  for (const s of [engine.stdout, engine.stderr]) s.on("data", (d) => { log = (log + d).slice(-20_000); });
  await until("readiness", async () => (await fetch(`http://127.0.0.1:${port}/readyz`)).ok);
  for (let i = 0; i < 60; i++) engine.stdin.write(order(`customer-${i}`, i));
  engine.stdin.write(order("needle", 1000));
  engine.stdin.write(order(evil, -1, { note: evil }));
  await until("committed records", async () => (await (await fetch(`${base}/console/api/overview`)).json()).parts[0].records === 62);
  browser = await chromium.launch({ executablePath: process.env.KASPR_CHROMIUM ?? "/usr/bin/chromium", args: process.getuid() === 0 ? ["--no-sandbox"] : [] });
});

after(async () => {
  await browser?.close();
  engine?.kill("SIGTERM");
});

beforeEach(async () => {
  await page?.close();
  page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
  page.setDefaultTimeout(30_000);
  page.on("console", (m) => { if (m.type() === "error") violations.push(m.text()); });
  page.on("pageerror", (e) => violations.push(String(e)));
  page.on("request", (r) => { if (!r.url().startsWith(`${base}/console/`)) violations.push(`a request to ${r.url()}`); });
  violations.length = 0;
  await page.goto(`${base}/console/`);
  await page.getByRole("heading", { name: "shop-app" }).waitFor();
});

const tab = (name) => page.getByRole("tab", { name });
const open = async (name) => {
  await tab(name).click();
  assert.equal(await tab(name).getAttribute("aria-selected"), "true");
};
const shot = async (name) => {
  if (!shots) return;
  mkdirSync(shots, { recursive: true });
  await page.screenshot({ path: `${shots}/${name}.png` });
};
// Nothing that users wrote may have run, and nothing may have been asked elsewhere or broken a policy.
const unharmed = async () => {
  assert.equal(await page.evaluate(() => window.harmed), undefined);
  assert.deepEqual(violations, []);
};

test("the topology shows topics, agents and tables with their rates", async () => {
  for (const node of ["topic:orders", "agent:orders", "table:totals", "topic:totals-changed", "agent:audit", "topic:rich"]) {
    await page.locator(`[data-node="${node}"]`).waitFor();
  }
  await page.getByText("The same as a list").click();
  const ways = await page.locator("main li").allTextContents();
  for (const way of ["topic orders → agent orders", "agent orders → table totals", "agent orders → topic totals-changed", "topic totals-changed → agent audit", "agent audit → topic rich"]) {
    assert.ok(ways.includes(way), `${way} in ${ways}`);
  }
  await until("a rate in the graph", async () => /read \d[\d.,]*\/s/.test(await page.locator('[data-node="topic:orders"]').textContent()));
  const before = await page.locator('tr:has(td:text-is("orders")) td').nth(1).textContent();
  engine.stdin.write(order("later", 1));
  await until("the counter to go up", async () => Number(await page.locator('tr:has(td:text-is("orders")) td').nth(1).textContent()) > Number(before));
  assert.match(await page.getByRole("status").first().textContent(), /running/);
  await shot("overview");
  await unharmed();
});

test("web views show their requests", async () => {
  const cell = (n) => page.locator('tr:has(td:text-is("/totals/{customer}")) td').nth(n).textContent();
  const [requests, failed] = [Number(await cell(3)), Number(await cell(5))];
  assert.equal(await (await fetch(`${web}/totals/needle`)).text(), "1000");
  assert.equal((await fetch(`${web}/totals/nobody`)).status, 500);
  await until("the counts to go up", async () => Number(await cell(3)) === requests + 2 && Number(await cell(5)) === failed + 1);
  await unharmed();
});

test("with adminToken the page asks for it", async () => {
  let wanted = "right";
  await page.route("**/console/api/**", (r) => (r.request().headers().authorization === `Bearer ${wanted}` ? r.continue() : r.fulfill({ status: 401, json: { error: "a token is needed" } })));
  const field = page.getByLabel("Token of the admin server");
  await field.waitFor();
  await field.fill("wrong");
  await page.getByRole("button", { name: "Open" }).click();
  await page.getByRole("alert").filter({ hasText: "not the one" }).waitFor();
  await field.fill("right");
  await field.press("Enter");
  await page.locator('[data-node="agent:audit"]').waitFor();
  await page.reload();
  await page.locator('[data-node="agent:audit"]').waitFor();
  assert.equal(await field.count(), 0);
});

test("partitions show lag and what is restored", async () => {
  await open("Partitions");
  const lag = page.getByRole("region", { name: "Lag by partition" });
  await until("no lag", async () => (await lag.locator('tr:has(td:text-is("audit")) td:nth-child(6)').allTextContents()).join() === "0,0");
  const tables = page.getByRole("region", { name: "Restore progress by partition" });
  assert.ok(await tables.getByText("complete").count() >= 2);
  await shot("partitions");
  await unharmed();
});

test("operations show time and errors", async () => {
  await open("Operations");
  const row = page.locator('tr:has(td:text-is("operation \\"tell\\", map"))');
  assert.equal(await row.locator("td").nth(4).textContent(), "1");
  await shot("operations");
  await unharmed();
});

test("an error shows its traceback and its record, as text", async () => {
  await open(/^Errors/);
  await page.locator("summary", { hasText: "ValueError" }).click();
  const traceback = await page.getByLabel("Traceback").textContent();
  assert.match(traceback, /app\.yaml:\d+, in tell\n\s+raise ValueError/);
  const text = await page.locator("details").textContent();
  assert.ok(text.includes("orders/") && text.includes(JSON.stringify(evil).slice(1, -1)), text);
  assert.ok(text.includes(`Header note${evil}`), text);
  assert.equal(await page.locator("main img, main script").count(), 0);
  await shot("errors");
  await unharmed();
});

test("tables are searched and paged", async () => {
  await open("Tables");
  await page.getByRole("combobox", { name: "Table" }).selectOption("totals");
  const entries = page.getByRole("region", { name: "Entries of totals" });
  await until("a page", async () => (await entries.locator("tbody tr").count()) === 50);
  await page.getByRole("button", { name: "More" }).click();
  await until("all", async () => (await entries.locator("tbody tr").count()) >= 61);
  await page.getByLabel("Text in key or value").fill("needle");
  await page.getByLabel("Text in key or value").press("Enter");
  await until("the one", async () => (await entries.locator("tbody tr").count()) === 1);
  assert.match(await entries.locator("tbody tr").textContent(), /"needle"1000/);
  await shot("tables");
  await unharmed();
});

test("scheduled messages are listed", async () => {
  await open("Scheduled");
  const row = page.getByRole("region", { name: "Messages that wait" }).locator("tbody tr");
  await until("the message", async () => (await row.count()) === 1);
  const text = await row.textContent();
  assert.ok(text.includes("tomorrow") && text.includes("rich") && text.includes(JSON.stringify(evil).slice(1, -1)), text);
  await page.getByText("No crons.").waitFor();
  await unharmed();
});

test("a topic is followed live, and paused", async () => {
  await open("Topics");
  await page.getByRole("combobox", { name: "Topic" }).selectOption("totals-changed");
  const rows = page.getByRole("region", { name: "Records of totals-changed" }).locator("tbody tr");
  await until("old records", async () => (await rows.count()) > 0);
  engine.stdin.write(order("just-now", 5));
  await until("the new record", async () => (await rows.allTextContents()).some((t) => t.includes("just-now")));
  assert.equal((await rows.allTextContents()).filter((t) => t.includes("just-now")).length, 1);
  await page.getByRole("button", { name: "Pause" }).click();
  await page.getByRole("status").filter({ hasText: "Paused" }).waitFor();
  await shot("topics");
  await unharmed();
});

test("the keyboard is enough", async () => {
  await tab("Overview").focus();
  await page.keyboard.press("ArrowRight");
  assert.equal(await tab("Partitions").getAttribute("aria-selected"), "true");
  assert.equal(await page.evaluate(() => document.activeElement.id), "tab-partitions");
  await page.keyboard.press("End");
  assert.equal(await tab("Topics").getAttribute("aria-selected"), "true");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.id), "panel");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.tagName), "SELECT");
  const names = await page.evaluate(() => [...document.querySelectorAll("button, select, input")].filter((e) => !e.textContent.trim() && !e.labels?.length).length);
  assert.equal(names, 0, "controls without a name");
  await unharmed();
});

test("light and dark are the system's, or chosen and kept", async () => {
  const back = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await page.emulateMedia({ colorScheme: "light" });
  const light = await back();
  await page.emulateMedia({ colorScheme: "dark" });
  const dark = await back();
  assert.notEqual(light, dark);
  await page.getByLabel("Colours").selectOption("light");
  await until("light", async () => (await back()) === light);
  await page.reload();
  await page.getByRole("heading", { name: "shop-app" }).waitFor();
  await until("the choice", async () => (await back()) === light);
  await page.getByLabel("Colours").selectOption("dark");
  await until("dark", async () => (await back()) === dark);
  await page.locator('[data-node="agent:audit"]').waitFor();
  await shot("overview-dark");
  await unharmed();
});

test("the page says when the app is gone", async () => {
  await page.route("**/console/api/overview", (r) => r.abort());
  await page.getByRole("alert").filter({ hasText: "No answer from the app" }).waitFor();
});
