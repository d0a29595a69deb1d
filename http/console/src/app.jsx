// The console's page. Everything from the app is text to Preact, which escapes it: no markup of records, keys or tracebacks gets in.
import { render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { bytes, count, perSecond, rate, span } from "./rates.js";
import { graph } from "./topology.js";

const pollEvery = 1000;

// The token of the admin server, if it wants one: kept until this tab is closed, and sent to nobody else.
let token = "";
try {
  token = sessionStorage.getItem("token") ?? "";
} catch { /* the browser keeps nothing */ }
let wanted = () => {}; // tells the page that a token is wanted

function keepToken(text) {
  token = text;
  try {
    sessionStorage.setItem("token", text);
  } catch { /* as above */ }
}

async function send(path, init) {
  const headers = { Accept: "application/json", ...(token && { Authorization: `Bearer ${token}` }) };
  const resp = await fetch(path, { headers, ...init });
  const body = await resp.json().catch(() => ({}));
  wanted(resp.status === 401);
  if (!resp.ok) throw Object.assign(new Error(body.error ?? `the app answered ${resp.status}`), { status: resp.status });
  return body;
}

const ask = (path, signal) => send(`api/${path}`, { signal });

// usePoll asks again and again while the page is in sight; it keeps the last two answers, and to which path the last one is.
function usePoll(path, every = pollEvery) {
  const [state, set] = useState({ now: null, before: null, error: null, of: null });
  useEffect(() => {
    const stop = new AbortController();
    let timer;
    const round = async () => {
      if (!document.hidden) {
        try {
          const now = await ask(path, stop.signal);
          set((s) => ({ now, before: s.now, error: null, of: path }));
        } catch (error) {
          if (!stop.signal.aborted) set((s) => ({ ...s, error: error.message }));
        }
      }
      if (!stop.signal.aborted) timer = setTimeout(round, every);
    };
    round();
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, [path, every]);
  return state;
}

const tabs = [
  ["overview", "Overview", Overview],
  ["partitions", "Partitions", Partitions],
  ["operations", "Operations", Operations],
  ["errors", "Errors", Errors],
  ["tables", "Tables", Tables],
  ["scheduled", "Scheduled", Scheduled],
  ["topics", "Topics", Topics],
];

function App() {
  const fromURL = () => (tabs.some(([id]) => id === location.hash.slice(1)) ? location.hash.slice(1) : "overview");
  const [tab, setTab] = useState(fromURL);
  const [locked, setLocked] = useState(false);
  const state = usePoll("overview");
  useEffect(() => {
    wanted = setLocked;
  }, []);
  useEffect(() => {
    const follow = () => setTab(fromURL());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  const choose = (id) => {
    location.hash = id;
    setTab(id);
  };
  const keys = (e) => {
    const at = tabs.findIndex(([id]) => id === tab);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1 + tabs.length, Home: 0, End: tabs.length - 1 }[e.key];
    if (to === undefined) return;
    e.preventDefault();
    const id = tabs[to % tabs.length][0];
    choose(id);
    document.getElementById(`tab-${id}`).focus();
  };
  const Panel = tabs.find(([id]) => id === tab)[2];
  const o = state.now;
  return (
    <>
      <header>
        <h1>{o ? o.app : "Kaspr"}</h1>
        {o && <State o={o} />}
        {o && <span class="soft">{o.worker} · version {o.version} · up {span(o.uptimeSeconds)}</span>}
        <div class="spread"><Theme /></div>
      </header>
      <div role="tablist" aria-label="Console" onKeyDown={keys}>
        {tabs.map(([id, name]) => (
          <button key={id} role="tab" id={`tab-${id}`} aria-selected={id === tab} aria-controls="panel" tabIndex={id === tab ? 0 : -1} onClick={() => choose(id)}>
            {name}{id === "errors" && o?.errors > 0 ? ` (${count(o.errors)})` : ""}
          </button>
        ))}
      </div>
      <main id="panel" role="tabpanel" aria-labelledby={`tab-${tab}`} tabIndex={0}>
        {locked && <Token />}
        {state.error && !locked && <p class="alert" role="alert">No answer from the app: {state.error}</p>}
        {locked ? null : o ? <Panel o={o} before={state.before} /> : !state.error && <p>Loading…</p>}
      </main>
    </>
  );
}

// Token asks for what the admin server wants to be shown. The next look, a second later, sends it.
function Token() {
  const [text, set] = useState("");
  const [sent, setSent] = useState(token);
  return (
    <form onSubmit={(e) => { e.preventDefault(); keepToken(text); setSent(text); }}>
      <label>Token of the admin server (adminToken)
        <input type="password" autocomplete="off" value={text} onInput={(e) => set(e.currentTarget.value)} />
      </label>
      <button type="submit">Open</button>
      {sent && <span class="bad" role="alert">This token is not the one.</span>}
    </form>
  );
}

function State({ o }) {
  const mood = { running: "good", stopping: "bad" }[o.state] ?? "warn";
  return <span class={`badge ${mood}`} role="status" title={o.reason}>{o.state}{o.reason ? `: ${o.reason}` : ""}</span>;
}

function Theme() {
  const [theme, set] = useState(() => {
    try {
      return localStorage.getItem("theme") ?? "system";
    } catch {
      return "system"; // the browser keeps nothing
    }
  });
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("theme", theme);
    } catch { /* as above */ }
  }, [theme]);
  return (
    <label>Colours
      <select value={theme} onChange={(e) => set(e.currentTarget.value)}>
        <option value="system">as the system</option>
        <option value="light">light</option>
        <option value="dark">dark</option>
      </select>
    </label>
  );
}

// Grid is a table of rows; numbers says which columns hold some. With keys a row stays the same one, with the focus in it, when others come and go.
function Grid({ caption, head, rows, keys, numbers = [], none }) {
  if (rows.length === 0) return <p class="soft">{none}</p>;
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={caption}>
      <table>
        <caption class="hidden">{caption}</caption>
        <thead><tr>{head.map((h, i) => <th key={h} scope="col" class={numbers.includes(i) ? "n" : ""}>{h}</th>)}</tr></thead>
        <tbody>
          {rows.map((r, at) => <tr key={keys ? keys[at] : at}>{r.map((c, i) => <td key={i} class={numbers.includes(i) ? "n" : ""}>{c}</td>)}</tr>)}
        </tbody>
      </table>
    </div>
  );
}

const find = (list, key, value) => list?.find((x) => x[key] === value);

function rateOf(now, before, list, key, name, member) {
  return rate(find(now[list], key, name)?.[member], find(before?.[list], key, name)?.[member], before ? now.now - before.now : 0);
}

function Overview({ o, before }) {
  const agents = o.parts.map((p) => {
    const r = (member) => rateOf(o, before, "parts", "agent", p.agent, member);
    return [
      p.agent, count(p.records), perSecond(r("records")), perSecond(r("outputs")),
      <span class={p.failed > 0 ? "bad" : ""}>{count(p.failed)}</span>,
      r("calls") ? count(r("records") / r("calls")) : "–", r("calls") ? `${count((r("seconds") / r("calls")) * 1000)} ms` : "–",
      p.instances ? `${p.instances}, ${bytes(p.memory)}` : "–", count(p.limits.deadline + p.limits.memory + p.limits.trap),
    ];
  });
  const commits = rate(o.commits.commits, before?.commits.commits, before ? o.now - before.now : 0);
  return (
    <>
      <h2>Topology</h2>
      <Topology o={o} before={before} />
      <h2>Agents</h2>
      <Grid caption="Agents" numbers={[1, 2, 3, 4, 5, 6, 8]} rows={agents} none="This app has no agents."
        head={["Agent", "Records", "Rate", "Outputs", "Failed", "Records a call", "Time a call", "Instances", "Limits hit"]} />
      {o.views.length > 0 && (
        <>
          <h2>Web views</h2>
          <Grid caption="Web views" numbers={[3, 4, 5, 6, 7]} head={["View", "Method", "Path", "Requests", "Rate", "Failed", "Refused", "Time"]}
            rows={o.views.map((v) => {
              const r = (member) => rateOf(o, before, "views", "view", v.view, member);
              return [
                v.view, v.method, v.path, count(v.requests), perSecond(r("requests")), <span class={v.failed > 0 ? "bad" : ""}>{count(v.failed)}</span>,
                <span class={v.refused > 0 ? "warn" : ""}>{count(v.refused)}</span>, r("answered") ? `${count((r("seconds") / r("answered")) * 1000)} ms` : "–",
              ];
            })} />
        </>
      )}
      <h2>Commits</h2>
      <p>
        {count(o.commits.commits)} commits ({perSecond(commits)}), {o.commits.commits > 0 ? count((o.commits.seconds / o.commits.commits) * 1000) : 0} ms each,{" "}
        <span class={o.commits.rollbacks > 0 ? "warn" : ""}>{count(o.commits.rollbacks)} rolled back</span>
      </p>
    </>
  );
}

const box = { width: 210, height: 46, right: 90, below: 18, margin: 12 };
const kinds = { view: "web view" };
const kindOf = (n) => kinds[n.kind] ?? n.kind;
const short = (text) => (text.length > 26 ? `${text.slice(0, 25)}…` : text);

function Topology({ o, before }) {
  const g = graph(o);
  const x = (n) => box.margin + n.column * (box.width + box.right);
  const y = (n) => box.margin + n.row * (box.height + box.below);
  const label = (n) => {
    if (n.kind === "agent") return perSecond(rateOf(o, before, "parts", "agent", n.name, "records"));
    if (n.kind === "view") return perSecond(rateOf(o, before, "views", "view", n.name, "requests"));
    if (n.kind === "table") return `${count(find(o.tableList, "name", n.name)?.keys ?? 0)} keys`;
    const [read, sent] = ["received", "sent"].map((m) => rateOf(o, before, "topics", "name", n.name, m));
    return g.edges.some((e) => e.from === n) ? `read ${perSecond(read)}` : `sent ${perSecond(sent)}`;
  };
  return (
    <>
      <div class="scroll" tabIndex={0} role="region" aria-label="Topology, drawn">
        <svg role="img" aria-label={`${g.nodes.length} parts and ${g.edges.length} ways between them; the list below tells them`}
          width={2 * box.margin + g.columns * (box.width + box.right) - box.right} height={2 * box.margin + g.rows * (box.height + box.below) - box.below}>
          {g.edges.map(({ from, to }) => {
            const [x1, y1, x2, y2] = [x(from) + box.width, y(from) + box.height / 2, x(to), y(to) + box.height / 2];
            return <path key={from.id + to.id} d={`M${x1} ${y1} C${x1 + box.right / 2} ${y1} ${x2 - box.right / 2} ${y2} ${x2} ${y2}`} />;
          })}
          {g.nodes.map((n) => (
            <g key={n.id} data-node={n.id}>
              <title>{`${kindOf(n)} ${n.name}`}</title>
              <rect class={n.kind} x={x(n)} y={y(n)} width={box.width} height={box.height} rx={n.kind === "topic" ? 23 : 6} />
              <text x={x(n) + 14} y={y(n) + 19}>{short(n.name)}</text>
              <text class="soft" x={x(n) + 14} y={y(n) + 37}>{kindOf(n)} · {label(n)}</text>
            </g>
          ))}
        </svg>
      </div>
      <details>
        <summary>The same as a list</summary>
        <ul>{g.edges.map(({ from, to }) => <li key={from.id + to.id}>{kindOf(from)} {from.name} → {kindOf(to)} {to.name}</li>)}</ul>
      </details>
    </>
  );
}

function Partitions({ o, before }) {
  const at = (list, x, keys) => list?.find((y) => keys.every((k) => x[k] === y[k]));
  const lag = o.partitions.map((p) => {
    const old = at(before?.partitions, p, ["topic", "partition", "agent"]);
    return [
      p.topic, p.partition, p.agent, p.position < 0 ? "–" : p.position, p.end < 0 ? "–" : p.end,
      <span class={p.lag > 10000 ? "warn" : ""}>{p.lag < 0 ? "–" : count(p.lag)}</span>,
      perSecond(rate(p.position, old?.position, before ? o.now - before.now : 0)), count(p.queued + p.working + p.pending), p.ready ? "works" : "waits",
    ];
  });
  const tables = o.tables.map((t) => [
    t.table, t.partition, t.role, <span class={t.phase === "failed" ? "bad" : ""}>{t.error ? `${t.phase}: ${t.error}` : t.phase}</span>,
    t.left > 0 && t.end > 0
      ? <progress max={t.end} value={t.offset} aria-label={`partition ${t.partition} of table ${t.table}: ${t.left} records left`} />
      : "complete",
    count(t.left), t.left > 0 ? perSecond(t.rate) : "–", t.left > 0 && t.etaSeconds > 0 ? span(t.etaSeconds) : "–",
  ]);
  return (
    <>
      <h2>Lag</h2>
      <Grid caption="Lag by partition" numbers={[1, 3, 4, 5, 6, 7]} rows={lag} none="No partitions are assigned to this process."
        head={["Topic", "Partition", "Agent", "Position", "End", "Lag", "Rate", "In work", "State"]} />
      <h2>Tables here</h2>
      <Grid caption="Restore progress by partition" numbers={[1, 5, 6, 7]} rows={tables} none="No partitions of tables are here."
        head={["Table", "Partition", "Role", "Phase", "Restored", "Left", "Rate", "Time left"]} />
    </>
  );
}

function Operations({ o }) {
  const rows = o.parts.flatMap((p) => {
    const all = p.operations.reduce((sum, x) => sum + x.seconds, 0);
    return p.operations.map((x) => [
      p.agent, x.name, span(x.seconds), all > 0 ? `${count((x.seconds / all) * 100)} %` : "–", <span class={x.failed > 0 ? "bad" : ""}>{count(x.failed)}</span>,
    ]);
  });
  return (
    <>
      <h2>Operations</h2>
      <p class="soft">Time is where Python was found running, looked at every 5 ms: an estimate. “codec” is reading records and writing outputs.</p>
      <Grid caption="Time and errors by operation" numbers={[2, 3, 4]} rows={rows} none="This app has no operations." head={["Agent", "Operation", "Time", "Share", "Failed"]} />
    </>
  );
}

// Data is a key or a value: null, text, or bytes.
function Data({ of }) {
  if (of === null || of === undefined) return <i class="soft">null</i>;
  const cut = of.base64 === undefined ? new TextEncoder().encode(of.text ?? "").length < of.size : false;
  return (
    <code>
      {of.base64 ? <span><span class="soft">bytes, as base64: </span>{of.base64}</span> : of.text ?? ""}
      {cut && <span class="soft"> … ({bytes(of.size)} in all)</span>}
    </code>
  );
}

const time = (ms) => new Date(ms).toISOString().replace("T", " ").replace("Z", "");

function RecordOf({ r }) {
  const rows = [["Record", `${r.topic}/${r.partition}@${r.offset}`], ["Time", time(r.timestamp)], ["Key", <Data of={r.key} />], ["Value", <Data of={r.value} />]];
  for (const h of r.headers) rows.push([`Header ${h.key}`, <Data of={h.value} />]);
  if (r.moreHeaders > 0) rows.push(["Headers", `${r.moreHeaders} more`]);
  return <table><tbody>{rows.map(([name, value]) => <tr key={name}><th scope="row">{name}</th><td>{value}</td></tr>)}</tbody></table>;
}

function RequestOf({ r }) {
  return <table><tbody>{[["Request", `${r.method} ${r.path}`], ["Body", <Data of={r.body} />], ["Answered", r.status]].map(([name, value]) => <tr key={name}><th scope="row">{name}</th><td>{value}</td></tr>)}</tbody></table>;
}

function Errors() {
  const { now, error } = usePoll("failures", 2000);
  return (
    <>
      <h2>Last errors</h2>
      {error && <p class="alert" role="alert">{error}</p>}
      {now?.length === 0 && <p class="soft">No record and no request has failed since the start of this process.</p>}
      {now?.map((f) => (
        <details key={f.id}>
          <summary><span class="bad">{f.type || f.kind}</span>{f.message && `: ${f.message}`} <span class="soft">{f.agent}, {f.operation || "codec"}, {time(f.time)}, {f.request ? f.request.status : f.policy}</span></summary>
          {f.traceback && <pre aria-label="Traceback">{f.traceback}</pre>}
          {f.request ? <RequestOf r={f.request} /> : <RecordOf r={f.record} />}
        </details>
      ))}
    </>
  );
}

function Tables({ o }) {
  const [name, setName] = useState("");
  const [search, setSearch] = useState("");
  const [page, setPage] = useState(null);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const turn = useRef(0);
  const table = name || o.tableList[0]?.name;
  const load = async (from) => {
    const mine = ++turn.current;
    setBusy(true);
    try {
      const more = await ask(`table?${new URLSearchParams({ name: table, search, from })}`);
      if (mine !== turn.current) return;
      setPage((old) => (from && old ? { ...more, entries: [...old.entries, ...more.entries], looked: old.looked + more.looked } : more));
      setError(null);
    } catch (e) {
      if (mine === turn.current) setError(e.message);
    }
    if (mine === turn.current) setBusy(false);
  };
  useEffect(() => {
    setPage(null);
    if (table) load("");
  }, [table]);
  if (!table) return <p class="soft">This app has no tables.</p>;
  const plan = find(o.tableList, "name", table);
  const windowed = plan?.windowed;
  return (
    <>
      <form onSubmit={(e) => { e.preventDefault(); load(""); }}>
        <label>Table
          <select value={table} onChange={(e) => setName(e.currentTarget.value)}>{o.tableList.map((t) => <option key={t.name}>{t.name}</option>)}</select>
        </label>
        <label>Text in key or value <input type="search" value={search} onInput={(e) => setSearch(e.currentTarget.value)} /></label>
        <button type="submit">Search</button>
      </form>
      <p class="soft">{plan?.help} About {count(plan?.keys ?? 0)} keys are active here; shown is what is committed in the stores of this process.</p>
      {error && <p class="alert" role="alert">{error}</p>}
      {page && (
        <>
          <p role="status">{count(page.entries.length)} entries shown of {count(page.looked)} looked at{page.next ? "" : "; that is all"}</p>
          <Grid caption={`Entries of ${table}`} numbers={[0]} none="No entry." head={windowed ? ["Partition", "Key", "Window", "Value"] : ["Partition", "Key", "Value"]}
            rows={page.entries.map((e) => [e.partition, <Data of={e.key} />, ...(windowed ? [e.window === undefined ? "–" : time(e.window)] : []), <Data of={e.value} />])} />
          {page.next && <div class="bar"><button disabled={busy} onClick={() => load(page.next)}>{search ? "Search on" : "More"}</button></div>}
        </>
      )}
    </>
  );
}

// usePages is one page of a list of what waits, kept up to date, and the ways to its other pages.
function usePages(list) {
  const [starts, set] = useState([""]); // where each page up to this one begins
  const path = `scheduled?${new URLSearchParams({ list, after: starts.at(-1) })}`;
  const { now, error, of } = usePoll(path, 2000);
  const next = of === path && now.next; // an answer to the page before says nothing of this one's end
  return { now, error, number: starts.length, next, back: () => set((s) => s.slice(0, Math.max(1, s.length - 1))), on: () => next && set((s) => [...s, next]) };
}

// Turn turns pages. Its buttons are never taken away nor disabled while somebody is on them: the focus would be lost.
function Turn({ what, page }) {
  if (page.number === 1 && !page.next) return null;
  return (
    <div class="bar" role="group" aria-label={`Pages of ${what}`}>
      <button aria-disabled={page.number === 1} aria-label={`Previous page of ${what}`} onClick={page.back}>Previous</button>
      <span class="soft" role="status">Page {page.number}</span>
      <button aria-disabled={!page.next} aria-label={`Next page of ${what}`} onClick={page.on}>Next</button>
    </div>
  );
}

function Missing({ of }) {
  if (!of?.missing.length) return null;
  return <p class="warn">Not shown: partitions {of.missing.join(", ")}, which move or are restored.</p>;
}

// What can be done to what waits: which state of it says that it was done, or that something else came first.
const changes = {
  CANCEL: { name: "Cancel", sure: (id) => `Cancel message ${id}? It will not be delivered. This cannot be taken back.`, keep: "Keep the message", yes: "Cancel the message",
    became: { cancelled: "is cancelled", sent: "had been delivered already", failed: "had failed already", gone: "is not known any more" } },
  CRON_PAUSE: { name: "Pause", became: { paused: "is paused", gone: "does not exist any more" } },
  CRON_RESUME: { name: "Resume", became: { active: "goes on", gone: "does not exist any more" } },
  CRON_CANCEL: { name: "Cancel", sure: (id) => `Cancel cron ${id}? It will not fire any more. This cannot be taken back.`, keep: "Keep the cron", yes: "Cancel the cron",
    became: { gone: "is cancelled" } },
};
const thing = (action) => (action === "CANCEL" ? "message" : "cron");
const settleTries = 30;

// steer asks the scheduler for a change, which is a record in Kafka, and waits until the scheduler has come to it. It returns what became of it.
async function steer(action, id) {
  const { request } = await send("../schedule", { method: "POST", body: JSON.stringify({ action, requestId: id }) });
  const path = `../schedule?${new URLSearchParams({ id, list: action === "CANCEL" ? "messages" : "crons" })}`;
  for (let i = 0; i < settleTries; i++) {
    await new Promise((r) => setTimeout(r, 300));
    const state = await send(path).then((e) => e.state, (e) => (e.status === 404 ? "gone" : ""));
    const became = changes[action].became[state];
    if (became) return `The ${thing(action)} ${id} ${became}.`;
  }
  return `The scheduler has not done this yet, or has rejected it: the request is ${request}, rejections are in the app's topic of rejections.`;
}

// Confirm asks before something that cannot be taken back. Escape is no.
function Confirm({ change, id, answer }) {
  const box = useRef();
  useEffect(() => box.current.showModal(), []);
  return (
    <dialog ref={box} aria-labelledby="sure" onClose={() => answer(box.current.returnValue === "yes")}>
      <p id="sure">{change.sure(id)}</p>
      <div class="bar">
        <button autofocus onClick={() => box.current.close("no")}>{change.keep}</button>
        <button class="bad" onClick={() => box.current.close("yes")}>{change.yes}</button>
      </div>
    </dialog>
  );
}

function Scheduled({ o }) {
  if (!o.scheduler) return <p class="soft">This app has no message scheduler (schedulerEnabled).</p>;
  return <Waiting />;
}

function Waiting() {
  const messages = usePages("messages");
  const crons = usePages("crons");
  const [asked, setAsked] = useState(null); // a change that needs a yes
  const [told, tell] = useState({ text: "", bad: false });
  const notice = useRef();
  const change = async (action, id) => {
    tell({ text: `${changes[action].name} ${thing(action)} ${id}: asked for…`, bad: false });
    try {
      tell({ text: await steer(action, id), bad: false });
    } catch (e) {
      tell({ text: `The change of ${thing(action)} ${id} failed: ${e.message}`, bad: true });
    }
  };
  const button = (action, id) => (
    <button aria-label={`${changes[action].name} ${thing(action)} ${id}`} onClick={() => (changes[action].sure ? setAsked({ action, id }) : change(action, id))}>{changes[action].name}</button>
  );
  return (
    <>
      {[...new Set([messages.error, crons.error])].map((error) => error && <p key={error} class="alert" role="alert">{error}</p>)}
      <p ref={notice} class={`notice ${told.bad ? "bad" : ""}`} role="status" aria-label="What became of the change" tabIndex={-1}>{told.text}</p>
      {asked && (
        <Confirm change={changes[asked.action]} id={asked.id} answer={(yes) => {
          setAsked(null);
          if (!yes) return; // the focus is on the button again
          notice.current.focus(); // the button goes, with its row
          change(asked.action, asked.id);
        }} />
      )}
      <h2>Next messages</h2>
      <Missing of={messages.now} />
      {messages.now && (
        <Grid caption="Messages that wait" numbers={[1]} none={messages.number > 1 ? "No message waits any more on this page." : "No message waits."}
          head={["Due", "Partition", "Id", "Topic", "Key", "Value", "Change"]} keys={messages.now.messages.map((m) => m.place)}
          rows={messages.now.messages.map((m) => [
            time(m.due), m.partition, m.cron ? `cron ${m.cron}` : m.id || "–", m.topic || "–", m.topic ? <Data of={m.key} /> : "–", m.topic ? <Data of={m.value} /> : "–",
            m.id && !m.cron ? button("CANCEL", m.id) : "–",
          ])} />
      )}
      <Turn what="messages" page={messages} />
      <h2>Crons</h2>
      <Missing of={crons.now} />
      {crons.now && (
        <Grid caption="Crons" numbers={[1]} none={crons.number > 1 ? "No more crons on this page." : "No crons."}
          head={["Id", "Partition", "Expression", "Zone", "Topic", "State", "Next", "Last", "Change"]} keys={crons.now.crons.map((c) => c.id)}
          rows={crons.now.crons.map((c) => [
            c.id, c.partition, c.expression, c.zone, c.topic, c.paused ? "paused" : "active", c.next ? time(c.next) : "–", c.last ? time(c.last) : "–",
            <div class="pair">{button(c.paused ? "CRON_RESUME" : "CRON_PAUSE", c.id)}{button("CRON_CANCEL", c.id)}</div>,
          ])} />
      )}
      <Turn what="crons" page={crons} />
    </>
  );
}

const tailKept = 200;

function Topics({ o }) {
  const [name, setName] = useState("");
  const [live, setLive] = useState(true);
  const [records, setRecords] = useState([]);
  const [error, setError] = useState(null);
  const topic = name || o.topics[0]?.name;
  useEffect(() => {
    if (!topic || !live) return;
    const stop = new AbortController();
    let next = null;
    let timer;
    setRecords([]);
    const round = async () => {
      try {
        const from = next ? Object.entries(next).map(([p, at]) => `${p}:${at}`).join(",") : "";
        const page = await ask(`topic?${new URLSearchParams({ name: topic, from })}`, stop.signal);
        next = page.next;
        setRecords((old) => [...page.records.reverse(), ...old].slice(0, tailKept));
        setError(null);
      } catch (e) {
        if (!stop.signal.aborted) setError(e.message);
      }
      if (!stop.signal.aborted) timer = setTimeout(round, 1500);
    };
    round();
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, [topic, live]);
  if (!topic) return <p class="soft">This app has no topics.</p>;
  return (
    <>
      <div class="bar">
        <label>Topic
          <select value={topic} onChange={(e) => setName(e.currentTarget.value)}>{o.topics.map((t) => <option key={t.name}>{t.name}</option>)}</select>
        </label>
        <button aria-pressed={live} onClick={() => setLive(!live)}>{live ? "Pause" : "Follow"}</button>
        <span class="soft" role="status">{live ? "Committed records, newest first" : "Paused"}</span>
      </div>
      {error && <p class="alert" role="alert">{error}</p>}
      <Grid caption={`Records of ${topic}`} numbers={[1, 2]} none="No records yet." head={["Time", "Partition", "Offset", "Key", "Value", "Headers"]}
        rows={records.map((r) => [
          <span class="soft">{time(r.timestamp)}</span>, r.partition, r.offset, <Data of={r.key} />, <Data of={r.value} />,
          r.headers.map((h) => <div key={h.key}>{h.key}: <Data of={h.value} /></div>),
        ])} />
    </>
  );
}

render(<App />, document.getElementById("app"));
