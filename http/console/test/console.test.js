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
const waitMore = 70; // messages that wait beside the two that tests name
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
  const message = (id, at, note) => ({ key: "k", value: { note }, headers: { "x-scheduler-deliver-to": "rich", "x-scheduler-deliver-at": at, "x-scheduler-request-id": id } });
  const cron = (id) => ({ key: id, value: null, headers: { "x-scheduler-action": "CRON_ADD", "x-scheduler-deliver-to": "rich", "x-scheduler-cron-expr": "0 0 1 1 *", "x-scheduler-request-id": id } });
  const all = [message("tomorrow", later, evil), message(evil, later, "hostile id"), cron("yearly"), cron("other")];
  for (let i = 0; i < waitMore; i++) all.push(message(`later-${i}`, new Date(Date.now() + 90_000_000 + i * 1000).toISOString(), i));
  writeFileSync(requests, all.map((r) => `${JSON.stringify(r)}\n`).join(""));
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
  // That there is no such cron any more is an answer, which browsers tell of as an error.
  const gone = (m) => m.location().url.startsWith(`${base}/schedule?`) && m.text().includes("404");
  page.on("console", (m) => { if (m.type() === "error" && !gone(m)) violations.push(m.text()); });
  page.on("pageerror", (e) => violations.push(String(e)));
  page.on("request", (r) => { if (!r.url().startsWith(`${base}/console/`) && r.url().split("?")[0] !== `${base}/schedule`) violations.push(`a request to ${r.url()}`); });
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
  await page.evaluate(() => scrollTo(0, 0));
  await page.screenshot({ path: `${shots}/${name}.png` });
};
// Nothing that users wrote may have run, and nothing may have been asked elsewhere or broken a policy.
const unharmed = async () => {
  assert.equal(await page.evaluate(() => window.harmed), undefined);
  assert.deepEqual(violations, []);
};

test("the topology shows topics, agents and tables with their rates", async () => {
  for (const node of ["topic:orders", "agent:orders", "table:totals", "topic:totals-changed", "agent:audit", "topic:rich", "view:total", "view:place", "agent:KasprTask/report", "topic:reports"]) {
    await page.locator(`[data-node="${node}"]`).waitFor();
  }
  await page.getByText("The same as a list").click();
  const ways = await page.locator("main li").allTextContents();
  for (const way of ["topic orders → agent orders", "agent orders → table totals", "agent orders → topic totals-changed", "topic totals-changed → agent audit", "agent audit → topic rich", "web view total → table totals", "web view place → topic orders", "agent KasprTask/report → table totals", "agent KasprTask/report → topic reports"]) {
    assert.ok(ways.includes(way), `${way} in ${ways}`);
  }
  assert.equal(await page.locator('[data-node="table:_tasks"]').count(), 0, "the engine's own table is drawn");
  await until("a rate in the graph", async () => /read \d[\d.,]*\/s/.test(await page.locator('[data-node="topic:orders"]').textContent()));
  const before = await page.locator('tr:has(td:text-is("orders")) td').nth(1).textContent();
  engine.stdin.write(order("later", 1));
  await until("the counter to go up", async () => Number(await page.locator('tr:has(td:text-is("orders")) td').nth(1).textContent()) > Number(before));
  assert.match(await page.getByRole("status").first().textContent(), /running/);
  await page.getByText("The same as a list").click();
  await shot("overview");
  await unharmed();
});

test("web views show their requests", async () => {
  const cell = (n) => page.locator('tr:has(td:text-is("/totals/{customer}")) td').nth(n).textContent();
  const [requests, failed] = [Number(await cell(3)), Number(await cell(5))];
  assert.equal(await (await fetch(`${web}/totals/needle`)).text(), "1000");
  assert.equal((await fetch(`${web}/totals/nobody`)).status, 500);
  assert.equal((await fetch(`${web}/orders`, { method: "POST", body: JSON.stringify({ customer: "by-web", amount: 3 }) })).status, 200);
  await until("the order in its topic", async () => (await (await fetch(`${base}/console/api/overview`)).json()).topics.find((t) => t.name === "orders").sent === 1);
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
  const failed = page.locator("details", { hasText: "ValueError" });
  const traceback = await failed.getByLabel("Traceback").textContent();
  assert.match(traceback, /app\.yaml:\d+, in tell\n\s+raise ValueError/);
  const text = await failed.textContent();
  assert.ok(text.includes("orders/") && text.includes(JSON.stringify(evil).slice(1, -1)), text);
  assert.ok(text.includes(`Header note${evil}`), text);
  assert.equal(await page.locator("main img, main script").count(), 0);
  await shot("errors");
  await unharmed();
});

test("a failed request shows its traceback and its path", async () => {
  assert.equal((await fetch(`${web}/totals/somebody?token=secret`)).status, 500);
  await open(/^Errors/);
  const failed = page.locator("details", { hasText: "/totals/somebody" });
  await failed.locator("summary", { hasText: "KeyError" }).click();
  assert.match(await failed.getByLabel("Traceback").textContent(), /app\.yaml:\d+, in look\n\s+return totals/);
  const text = await failed.textContent();
  for (const part of ["KasprWebView/total", "GET /totals/somebody", "500"]) assert.ok(text.includes(part), `${part} in ${text}`);
  assert.ok(!(await page.locator("main").textContent()).includes("secret"));
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

const waiting = () => page.getByRole("region", { name: "Messages that wait" }).locator("tbody tr");
const notice = () => page.getByRole("status", { name: "What became of the change" });
const ids = async () => (await waiting().locator("td:nth-child(3)").allTextContents());

test("scheduled messages are listed, page after page", async () => {
  await open("Scheduled");
  await until("a page", async () => (await waiting().count()) === 50);
  const text = await waiting().filter({ hasText: "tomorrow" }).textContent();
  assert.ok(text.includes("rich") && text.includes(JSON.stringify(evil).slice(1, -1)), text);
  const first = await ids();
  const [next, back] = ["Next", "Previous"].map((name) => page.getByRole("button", { name: `${name} page of messages` }));
  assert.equal(await back.getAttribute("aria-disabled"), "true");
  await next.focus();
  await page.keyboard.press("Enter");
  await until("the rest", async () => (await waiting().count()) === waitMore + 4 - 50); // two crons fire next year
  assert.equal(await next.getAttribute("aria-disabled"), "true");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Next");
  await page.keyboard.press("Enter"); // there is no page behind
  await page.getByRole("group", { name: "Pages of messages" }).getByText("Page 2").waitFor();
  const all = [...first, ...(await ids())];
  assert.equal(new Set(all).size, all.length);
  assert.deepEqual(all.filter((id) => id.startsWith("later-")), Array.from({ length: waitMore }, (_, i) => `later-${i}`));
  assert.deepEqual(all.slice(-2).sort(), ["cron other", "cron yearly"]);
  await back.click();
  await until("the first page", async () => (await ids()).join() === first.join());
  await shot("scheduled");
  await unharmed();
});

test("a message is cancelled, by the keyboard and after a question", async () => {
  await open("Scheduled");
  const button = page.getByRole("button", { name: "Cancel message later-3", exact: true });
  await button.focus();
  await page.keyboard.press("Enter");
  const dialog = page.getByRole("dialog", { name: "Cancel message later-3?" });
  await dialog.waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Keep the message");
  await page.keyboard.press("Escape");
  await dialog.waitFor({ state: "detached" });
  assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), "Cancel message later-3");
  await page.keyboard.press("Enter");
  await dialog.waitFor();
  await page.keyboard.press("Enter"); // keeps it
  await dialog.waitFor({ state: "detached" });
  assert.equal((await (await fetch(`${base}/schedule?id=later-3`)).json()).state, "pending");
  await page.keyboard.press("Enter");
  await dialog.waitFor();
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await notice().filter({ hasText: "The message later-3 is cancelled." }).waitFor();
  assert.equal(await notice().evaluate((e) => document.activeElement === e), true);
  assert.equal((await (await fetch(`${base}/schedule?id=later-3`)).json()).state, "cancelled");
  await until("the row to go", async () => (await button.count()) === 0 && (await ids()).includes("later-4"));
  await unharmed();
});

test("a message with a hostile id is cancelled, and its id is text", async () => {
  await open("Scheduled");
  await waiting().filter({ hasText: "hostile id" }).getByRole("button").click();
  await page.getByRole("dialog").filter({ hasText: evil }).waitFor();
  assert.equal(await page.locator("main img, main script").count(), 0);
  await page.getByRole("button", { name: "Cancel the message" }).click();
  await notice().filter({ hasText: `The message ${evil} is cancelled.` }).waitFor();
  await unharmed();
});

test("a cron is paused, resumed and cancelled", async () => {
  await open("Scheduled");
  const row = page.getByRole("region", { name: "Crons" }).locator('tr:has(td:text-is("yearly"))');
  const state = (text) => until(text, async () => (await row.locator("td").nth(5).textContent()) === text);
  await state("active");
  await page.getByRole("button", { name: "Pause cron yearly" }).click();
  await notice().filter({ hasText: "The cron yearly is paused." }).waitFor();
  assert.ok(await notice().evaluate((e) => e.getBoundingClientRect().top >= 0 && e.getBoundingClientRect().bottom <= innerHeight), "it is told out of sight");
  await state("paused");
  await page.keyboard.press("Enter"); // the focus is where it was: the button says Resume now
  await notice().filter({ hasText: "The cron yearly goes on." }).waitFor();
  await state("active");
  await page.getByRole("button", { name: "Cancel cron yearly" }).click();
  await page.getByRole("button", { name: "Cancel the cron" }).click();
  await notice().filter({ hasText: "The cron yearly is cancelled." }).waitFor();
  await until("the row to go", async () => (await row.count()) === 0);
  assert.deepEqual((await (await fetch(`${base}/schedule?list=crons`)).json()).crons.map((c) => [c.requestId, c.state]), [["other", "active"]]);
  await unharmed();
});

test("what cannot be changed is said", async () => {
  await page.route(`${base}/schedule`, (r) => r.fulfill({ status: 503, json: { error: "no broker <b>here</b>" } }));
  await open("Scheduled");
  await page.getByRole("button", { name: "Pause cron other" }).click();
  await notice().filter({ hasText: "The change of cron other failed: no broker <b>here</b>" }).waitFor();
  await page.unroute(`${base}/schedule`);
  await page.route(`${base}/schedule?*`, (r) => r.fulfill({ json: { state: "sent" } })); // it leaves before the request comes
  await page.route(`${base}/schedule`, (r) => r.fulfill({ status: 202, json: { request: "requests/0@1" } }));
  await page.getByRole("button", { name: "Cancel message later-5", exact: true }).click();
  await page.getByRole("button", { name: "Cancel the message" }).click();
  await notice().filter({ hasText: "The message later-5 had been delivered already." }).waitFor();
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
