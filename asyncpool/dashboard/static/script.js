"use strict";
// The page of the dashboard. Whatever comes from a pool becomes the text of a node, and never markup.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const STATES = { new: "New", starting: "Starting", open: "Open", draining: "Draining", stopping: "Stopping", closed: "Closed", elsewhere: "On another loop" };
const CHARTS = [
  { title: "Jobs per second", format: rate, series: [["throughput", "ended"], ["failing", "failed", 2]] },
  { title: "Queue", format: count, series: [["queued", "queued"]] },
  { title: "Workers", format: count, series: [["running", "busy"], ["target", "target", 1]] },
  { title: "Waiting time", format: time, series: [["wait50", "p50"], ["wait95", "p95"], ["wait99", "p99"]] },
  { title: "Running time", format: time, series: [["run50", "p50"], ["run95", "p95"], ["run99", "p99"]] },
];
// A young history fills a smaller span, so that it can be read.
const span = () => [60, 120, state.kept].find((seconds) => seconds >= state.samples.length) ?? state.kept;
const state = { run: "", tick: 0, columns: [], kept: 300, samples: [], now: null, about: {}, pool: 0, hover: null };
let token = "";
let lastEvent = 0;

// -- Small tools

function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name in node) node[name] = value; else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}
function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
function set(node, text) { text = String(text); if (node.textContent !== text) node.textContent = text; return node; }
function level(node, name) { if (name) node.dataset.level = name; else delete node.dataset.level; }
const parents = new Set();
// Make the children of a node match some items. Nodes stay, so that the focus does.
function keyed(parent, items, key, make, update) {
  parents.add(parent);
  const known = parent.known ?? (parent.known = new Map());
  const seen = new Set();
  let place = parent.firstElementChild;
  for (const item of items) {
    const id = String(key(item));
    let node = known.get(id);
    if (!node) { node = make(item); known.set(id, node); }
    seen.add(id);
    update(node, item);
    if (node === place) place = place.nextElementSibling; else parent.insertBefore(node, place);
  }
  for (const [id, node] of known) if (!seen.has(id)) { keepFocus(node); node.remove(); known.delete(id); }
}
// Before a node goes, move the focus to what it is in: not to a neighbor, which could be another job's button.
function keepFocus(node) {
  if (!node.contains(document.activeElement)) return;
  const home = node.parentElement.closest("section, article");
  home.tabIndex = -1;
  home.focus({ preventScroll: true });
}
const NUMBERS = new Intl.NumberFormat("en");
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
function count(value) { return value == null ? "–" : value < 100000 ? NUMBERS.format(Math.round(value)) : COMPACT.format(value); }
function rate(value) { return value == null ? "–" : value === 0 ? "0" : value < 10 ? value.toFixed(1) : count(value); }
function time(value) {
  if (value == null) return "–";
  if (value === 0) return "0";
  if (value < 0.001) return Math.max(1, Math.round(value * 1e6)) + " µs";
  if (value < 1) return (value < 0.01 ? (value * 1000).toFixed(1) : Math.round(value * 1000)) + " ms";
  if (value < 100) return value.toFixed(1) + " s";
  if (value < 7200) return Math.round(value / 60) + " min";
  return value < 172800 ? Math.round(value / 3600) + " h" : Math.round(value / 86400) + " d";
}
const ago = (seconds) => (seconds < 1 ? "now" : (seconds < 100 ? Math.round(seconds) + " s" : time(seconds)) + " ago");
const plural = (n, one) => count(n) + " " + one + (n === 1 ? "" : "s");

// -- Talking to the server

async function api(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers["X-Asyncpool-Token"] = token;
  if (state.run) headers["X-Asyncpool-Run"] = state.run;
  const response = await fetch("api/" + path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
  if (response.ok) return response;
  let message = "the server answered " + response.status;
  try { message = (await response.json()).error ?? message; } catch { /* a proxy's own page */ }
  const error = new Error(message);
  error.status = response.status;
  throw error;
}
let speaking = 0;
function say(text) {
  $("said").textContent = text;
  clearTimeout(speaking);
  speaking = setTimeout(() => { $("said").textContent = ""; }, 8000);
}
async function act(action, args = {}) {
  const pool = state.pool;
  try {
    const response = await api(`pools/${pool}/${action}`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(args),
    });
    say((await response.json()).message);
  } catch (error) { say("Not done: " + error.message); }
  letters.refresh();
  draw();
}
function ask(text, yes, field) {
  const dialog = $("ask");
  set($("ask-text"), text);
  set($("ask-yes"), yes);
  $("ask-field").hidden = field === undefined;
  $("ask-input").required = field !== undefined;
  if (field !== undefined) $("ask-input").value = field;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

function link(name, text) { $("link").dataset.state = name; set($("link-text"), text); document.body.classList.toggle("stale", name === "lost"); }
let connection = null;
async function connect() {
  const mine = (connection = new AbortController());
  let failures = 0;
  while (connection === mine) {
    try {
      const response = await api(`events?run=${state.run}&after=${state.tick}`, { signal: mine.signal });
      if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) throw Object.assign(new Error("something else than the dashboard answers"), { status: response.status });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done || connection !== mine) break;
        const events = (rest + value).split("\n\n");
        rest = events.pop();
        for (const event of events) if (event.startsWith("data: ")) receive(JSON.parse(event.slice(6)));
        failures = 0;
      }
      // A stream that ends is followed by the next one.
    } catch (error) {
      if (connection !== mine) return;
      if (error.status === 401) { login(error.message); return; }
      failures += 1;
      link("lost", failures > 1 || error.status ? `Not connected: ${error.status ? error.message : "no answer"}` : "Reconnecting");
    }
    await new Promise((resolve) => setTimeout(resolve, failures ? Math.min(500 * 2 ** failures, 5000) : 50));
  }
}
function disconnect() { const old = connection; connection = null; old?.abort(); }
setInterval(() => {
  if (connection && lastEvent && performance.now() - lastEvent > 4000 && $("link").dataset.state === "live")
    link("lost", "No answer: the event loop may be blocked");
}, 1000);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) disconnect();
  else if (!connection && $("login").hidden) { lastEvent = 0; connect(); }
});

function login(message) {
  disconnect();
  link("wait", "Not logged in");
  if (token) set($("login-note"), message[0].toUpperCase() + message.slice(1) + ". The program printed it with the address of the dashboard.");
  remember("");
  for (const id of ["overview", "pool", "journals-card"]) $(id).hidden = true;
  $("login").hidden = false;
  $("token").focus();
}
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  enter($("token").value.trim());
});
function enter(value) {
  remember(value);
  $("token").value = "";
  $("login").hidden = true;
  link("wait", "Connecting");
  disconnect();
  connect();
}
// A browser can forbid storage. Then the token is kept as long as the page.
function remember(value) { token = value; try { sessionStorage.setItem("asyncpool-token", value); } catch { /* forbidden */ } }
function remembered() { try { return sessionStorage.getItem("asyncpool-token") ?? ""; } catch { return ""; } }

function receive({ head, now }) {
  lastEvent = performance.now();
  if (head.run !== state.run) { state.samples = []; lastCounts.clear(); for (const parent of parents) keyed(parent, []); forget(); }
  Object.assign(state, { run: head.run, tick: head.tick, columns: head.columns, kept: head.kept, about: head.about, now: now[0] });
  state.samples.push(...head.samples);
  state.samples.splice(0, state.samples.length - head.kept);
  state.journals = now[1];
  if (state.pool >= state.now.length) state.pool = 0;
  link("live", "Live");
  draw();
}

// -- Charts

function column(pool, name) { const at = state.columns.indexOf(name); return state.samples.map((sample) => sample[pool][at]); }
function nice(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= value * 0.9999);
}
function trace(values, top, width, height, close) {
  const step = width / (span() - 1);
  let path = "", open = -1, x = width - (values.length - 1) * step;
  values.forEach((value, index) => {
    if (value != null) {
      path += `${open < 0 ? "M" : "L"}${x.toFixed(1)} ${(height - (value / top) * height).toFixed(1)}`;
      if (open < 0) open = x;
    }
    const isLast = index === values.length - 1;
    if (open >= 0 && (value == null || isLast)) {
      const end = value == null ? x - step : x;
      if (close) path += `L${end.toFixed(1)} ${height}L${open.toFixed(1)} ${height}Z`;
      else if (end === open) path += `h.5`;
      open = -1;
    }
    x += step;
  });
  return path;
}
const WIDTH = 300, HEIGHT = 92;
function makeChart(spec) {
  const area = svg("path", { class: "area" });
  const cross = svg("line", { class: "cross", y1: 0, y2: HEIGHT, visibility: "hidden" });
  const lines = spec.series.map(([, , style], index) => svg("path", { class: "c" + (style ?? index) }));
  const plot = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
    svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: HEIGHT / 2, y2: HEIGHT / 2 }), area, ...lines.toReversed(), cross);
  const top = el("span", { className: "top" }), when = el("span");
  const values = spec.series.map(() => el("b"));
  const legend = el("ul", { className: "legend" }, ...spec.series.map(([, label, style], index) =>
    el("li", {}, svg("svg", { viewBox: "0 0 20 8", "aria-hidden": "true" }, svg("path", { class: "c" + (style ?? index), d: "M0 4H20" })), label + " ", values[index])));
  const figure = el("figure", { className: "card" }, el("figcaption", {}, spec.title, when), el("div", { className: "plot" }, plot, top), legend);
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const back = Math.round((1 - (event.clientX - box.left) / box.width) * (span() - 1));
    state.hover = Math.max(0, Math.min(back, state.samples.length - 1));
    drawCharts();
  });
  plot.addEventListener("pointerleave", leaveMoment);
  return { spec, figure, plot, area, lines, top, when, values, cross };
}
function leaveMoment() { state.hover = null; $("moment").value = 0; drawCharts(); }
// What the pointer does, for the keyboard, touch and screen readers.
function showMoment() {
  state.hover = -$("moment").valueAsNumber;
  drawCharts();
  $("moment").setAttribute("aria-valuetext", `${momentText(state.hover)}: ` + charts.map(({ spec, values }) =>
    `${spec.title}: ` + spec.series.map(([, label], index) => `${label} ${values[index].textContent}`).join(", ")).join("; "));
}
$("moment").addEventListener("input", showMoment);
$("moment").addEventListener("focus", showMoment);
$("moment").addEventListener("blur", leaveMoment);
const momentText = (back) => (back ? `${back} s ago` : "now");
const charts = CHARTS.map(makeChart);
$("charts").append(...charts.map((chart) => chart.figure));
function drawCharts() {
  const back = state.hover ?? 0;
  $("moment").min = Math.min(0, 1 - state.samples.length);
  for (const { spec, plot, area, lines, top, when, values, cross } of charts) {
    const data = spec.series.map(([name]) => column(state.pool, name));
    let highest = 0;
    for (const one of data) for (const value of one) if (value > highest) highest = value;
    const max = spec.format === count ? Math.max(4, Math.ceil(nice(highest * 1.05))) : nice(highest * 1.05);
    set(top, highest ? spec.format(max) : "");
    area.setAttribute("d", trace(data[0], max, WIDTH, HEIGHT, true));
    lines.forEach((line, index) => line.setAttribute("d", trace(data[index], max, WIDTH, HEIGHT)));
    const shown = data.map((one) => one[one.length - 1 - back]);
    values.forEach((node, index) => set(node, spec.format(shown[index])));
    set(when, state.hover == null ? `${span() / 60} min` : momentText(back));
    cross.setAttribute("visibility", state.hover == null ? "hidden" : "visible");
    const x = WIDTH - (back * WIDTH) / (span() - 1);
    cross.setAttribute("x1", x); cross.setAttribute("x2", x);
    plot.setAttribute("aria-label", `${spec.title}, last minutes. Now: ` + spec.series.map(([, label], index) => `${label} ${spec.format(shown[index])}`).join(", "));
  }
}

// -- The page

function button(text, onclick, props = {}) { return el("button", { type: "button", onclick, ...props }, text); }
function draw() {
  const pools = state.now;
  if (!pools) return;
  set($("title"), state.about.title);
  document.title = state.about.title;
  $("overview").hidden = pools.length < 2;
  $("pool").hidden = false;
  drawOverview(pools);
  drawPool(pools[state.pool]);
  drawJournals(state.journals);
}
function stateOf(pool) {
  if (pool.stalled_seconds) return ["Stalled for " + time(pool.stalled_seconds), "bad"];
  if (isPaused(pool)) return ["Paused", "warn"];
  if (pool.state === "open") return ["Open", "good"];
  return [STATES[pool.state] ?? pool.state, pool.state === "draining" || pool.state === "stopping" || pool.state === "elsewhere" ? "warn" : ""];
}
function select(index) { state.pool = index; forget(); draw(); }
// Drop what was loaded of a pool, and the question about it: another pool is shown, or another program answers.
function forget() {
  letters.forget("");
  queued.forget();
  $("ask").close();
  state.hover = null;
}
function drawOverview(pools) {
  keyed($("pools"), pools.map((pool, index) => ({ pool, index })), (row) => row.index, (row) => {
    const cells = Array.from({ length: 9 }, (_, at) => el("td", { className: [0, 6].includes(at) ? "" : "n" }));
    const line = svg("path", { class: "c0" });
    cells[6].append(svg("svg", { viewBox: "0 0 140 18", preserveAspectRatio: "none", "aria-hidden": "true" }, line));
    const name = button("", () => select(row.index));
    const node = el("tr", {}, el("th", { scope: "row" }, name), ...cells);
    node.parts = { name, cells, line };
    return node;
  }, (node, { pool, index }) => {
    const { name, cells, line } = node.parts;
    set(name, pool.name);
    if (index === state.pool) node.setAttribute("aria-current", "true"); else node.removeAttribute("aria-current");
    const [text, mark] = stateOf(pool);
    set(cells[0], text); level(cells[0], mark === "good" ? "" : mark);
    if (pool.refused) return;
    [count(pool.running), `${count(pool.target_workers)} of ${count(pool.max_workers)}`, `${count(pool.queued)} of ${count(pool.queue_size)}`, count(pool.delayed), rate(pool.throughput)]
      .forEach((value, at) => set(cells[at + 1], value));
    const past = column(index, "throughput");
    line.setAttribute("d", trace(past, nice(Math.max(...past, 0) * 1.05), 140, 18));
    set(cells[7], count(pool.succeeded)); set(cells[8], count(pool.failed)); level(cells[8], pool.failed ? "bad" : "");
  });
}
function figure(label) {
  const big = el("div", { className: "big" }), fill = el("i"), bar = el("div", { className: "bar" }, fill), sub = el("div", { className: "sub" });
  $("figures").append(el("div", {}, el("dt", {}, label), el("dd", {}, big, bar, sub)));
  return (value, of, share, note, mark) => {
    const text = value + (of ? " of " + of : "");
    if (big.shown !== text) { big.shown = text; big.replaceChildren(value, ...(of ? [el("small", {}, " of " + of)] : [])); }
    bar.hidden = share == null;
    if (share != null) fill.style.width = Math.min(100, share * 100).toFixed(1) + "%";
    set(sub, note); level(big, mark);
  };
}
const figures = { workers: figure("Workers busy"), queue: figure("Queue"), rate: figure("Jobs per second"), good: figure("Succeeded"), bad: figure("Failed"), cut: figure("Cancelled") };
const isPaused = (pool) => Boolean(pool.pause) && pool.pause !== "rate limit";
const ACTIONS = [
  [(pool) => (isPaused(pool) ? "Resume" : "Pause"), (pool) => act(isPaused(pool) ? "resume" : "pause")],
  [() => "Resize…", async (pool) => {
    const note = pool.is_fixed ? "How many workers should the pool have?" : "How many workers should the pool have? A fixed number replaces its scaling policy.";
    if (await ask(note, "Resize", pool.target_workers)) act("resize", { workers: Number($("ask-input").value) });
  }],
  [() => "Drain…", async (pool) => { if (await ask(`Drain ${pool.name}? It finishes its jobs, accepts no others, and closes. This cannot be undone.`, "Drain")) act("drain"); }],
];
function drawPool(pool) {
  set($("name"), pool.name);
  const [text, mark] = stateOf(pool);
  set($("state"), text); level($("state"), mark);
  const refused = Boolean(pool.refused);
  for (const node of [$("figures"), $("charts"), document.querySelector(".columns"), $("processes-card")]) node.hidden = refused;
  const canAct = state.about.actions && !refused && !["closed", "stopping", "draining"].includes(pool.state);
  if (!canAct) keepFocus($("actions"));
  $("actions").hidden = !canAct;
  if (canAct) keyed($("actions"), ACTIONS, (action) => ACTIONS.indexOf(action), ([, run]) => button("", () => run(state.now[state.pool])), (node, [name]) => set(node, name(pool)));
  const tags = refused ? [[pool.refused, "warn"]] : tagsOf(pool);
  keyed($("tags"), tags, ([name]) => name.replace(/[\d.]+/g, ""), () => el("li"), (node, [name, mark]) => { set(node, name); level(node, mark); });
  if (refused) return;
  const idle = Math.max(0, pool.workers - pool.running);
  figures.workers(count(pool.running), count(pool.target_workers), pool.running / Math.max(1, pool.target_workers), `${count(idle)} idle, at most ${count(pool.max_workers)}`);
  const waiting = [pool.delayed ? count(pool.delayed) + " delayed" : "", pool.waiting_submitters ? plural(pool.waiting_submitters, "submitter") + " waiting" : ""].filter(Boolean).join(", ");
  figures.queue(count(pool.queued), count(pool.queue_size), pool.queued / Math.max(1, pool.queue_size), waiting || "none delayed");
  figures.rate(rate(pool.throughput), "", null, "over the last 10 s");
  figures.good(count(pool.succeeded), "", null, "of " + count(pool.submitted) + " submitted");
  figures.bad(count(pool.failed), "", null, [pool.retries ? plural(pool.retries, "retr").replace(/retr(s?)$/, (_, s) => (s ? "retries" : "retry")) : "", pool.unread_failures ? count(pool.unread_failures) + " never retrieved" : ""].filter(Boolean).join(", ") || "no retries", pool.failed ? "bad" : "");
  figures.cut(count(pool.cancelled), "", null, pool.rejected ? count(pool.rejected) + " rejected" : "none rejected");
  drawCharts();
  drawRunning(pool);
  drawHolds(pool);
  drawProcesses(pool.processes);
  keyed($("resizes"), pool.resizes.map((change, index) => ({ ...change, index })), (change) => change.index, () => el("li", {}, el("b"), el("span"), el("time")), (node, change) => {
    set(node.children[0], `${change.old} → ${change.new}`); set(node.children[1], change.reason); set(node.children[2], ago(change.seconds));
  });
  set($("resizes-note"), pool.resizes.length ? "" : pool.is_fixed ? "The number of workers is fixed." : "None yet.");
  letters.look(pool);
}
function tagsOf(pool) {
  const tags = [];
  if (pool.pause === "rate limit") tags.push(["Waiting for its rate limit", ""]);
  else if (pool.pause) tags.push(["Pause: " + pool.pause, "warn"]);
  if (pool.breaker) tags.push(["Breaker " + pool.breaker.state, pool.breaker.state === "closed" ? "" : "warn"]);
  if (pool.stuck) tags.push([plural(pool.stuck, "stuck job"), "bad"]);
  if (pool.resources?.failing) tags.push([plural(pool.resources.failing, "failing resource"), "bad"]);
  if (pool.resources?.abandoned) tags.push([plural(pool.resources.abandoned, "abandoned resource"), "bad"]);
  return tags;
}
function jobRow(columns) {
  return (item) => {
    const cells = Array.from({ length: columns }, (_, at) => el("td", { className: at === 1 ? "code" : "n" }));
    const last = el("td", { className: "act" });
    if (state.about.actions && item.id != null) last.append(button("Cancel", async () => { if (await ask(`Cancel job ${item.id}?`, "Cancel job")) act("cancel", { job: item.id }); }, { className: "small", ariaLabel: `Cancel job ${item.id}` }));
    return el("tr", {}, ...cells, last);
  };
}
function fill(row, values) { values.forEach((value, at) => set(row.children[at], value)); row.children[1].title = values[1]; }
function drawRunning(pool) {
  keyed($("running"), pool.jobs, (job) => job.id, jobRow(5), (row, job) => {
    fill(row, [job.id, job.job ?? "…", job.attempt, job.worker, time(job.seconds) + (job.is_stuck ? ", stuck" : "")]);
    level(row.children[4], job.is_stuck ? "bad" : "");
  });
  // It does not shrink for some seconds, so that what is below does not jump each second.
  const box = $("running-box"), key = state.run + state.pool, rows = pool.jobs.length;
  if (box.shows !== key || state.tick - box.at > 10) { box.shows = key; box.most = -1; }
  if (rows >= box.most) box.at = state.tick;
  if (rows > box.most) { box.most = rows; box.style.minHeight = ""; box.style.minHeight = box.offsetHeight + "px"; }
  const more = pool.running - pool.jobs.length;
  set($("running-note"), more > 0 ? `and ${plural(more, "other")}` : pool.running ? "" : "No job is running.");
}
const queued = {
  turn: 0,
  forget() { this.turn += 1; this.show([], ""); $("queued-box").open = false; },
  async load() {
    const turn = (this.turn += 1);
    try {
      const { jobs } = await (await api(`pools/${state.pool}/queued`)).json();
      if (turn === this.turn) this.show(jobs, jobs.length ? "" : "No job is waiting.");
    } catch (error) { if (turn === this.turn) this.show([], error.message); }
  },
  show(jobs, note) {
    keyed($("queued"), jobs, (job) => job.id, jobRow(4), (row, job) => fill(row, [job.id, job.job ?? "…", job.attempt, time(job.seconds) + (job.is_delayed ? ", delayed" : "")]));
    set($("queued-note"), note);
  },
};
$("queued-box").addEventListener("toggle", () => { if ($("queued-box").open) queued.load(); });
$("queued-load").addEventListener("click", () => queued.load());
function drawHolds(pool) {
  const rows = [["Pause", pool.pause || "none"]];
  pool.limits.forEach((limit, at) => rows.push([pool.limits.length > 1 ? `Limit ${at + 1}` : "Limit", limit]));
  if (!pool.limits.length) rows.push(["Limit", "none"]);
  if (pool.breaker) rows.push(["Breaker", `${pool.breaker.state}, opened ${plural(pool.breaker.openings, "time")}`]);
  if (pool.resources) {
    const { open, opening, closing, failing, replaced, abandoned, last_failure } = pool.resources;
    rows.push(["Resources", `${open} open, ${opening} opening, ${failing} failing, ${closing} closing, ${replaced} replaced, ${abandoned} abandoned`]);
    rows.push(["Last failure", last_failure ?? "none"]);
  } else rows.push(["Resources", "none"]);
  rows.push(["Peak", plural(pool.peak_running, "running job")]);
  if (pool.retries_rejected) rows.push(["Retry budget", `denied ${plural(pool.retries_rejected, "time")}`]);
  keyed($("holds"), rows, ([name]) => name, ([name]) => el("div", {}, el("dt", {}, name), el("dd")), (node, [, value]) => set(node.children[1], value));
}
function drawProcesses(processes) {
  $("processes-card").hidden = !processes;
  if (!processes) return;
  keyed($("processes"), processes.rows, (row) => row.number, () => el("tr", {}, ...Array.from({ length: 7 }, (_, at) => el("td", { className: at === 1 ? "code" : "n" }))), (row, process) => {
    fill(row, [process.number, process.name, process.running, process.workers, count(process.done), process.lost, time(process.seconds)]);
  });
  const more = processes.total - processes.rows.length;
  set($("processes-note"), [more > 0 ? `and ${plural(more, "other")}` : "", processes.lost ? `${plural(processes.lost, "process").replace("processs", "processes")} lost, ${plural(processes.reruns, "attempt")} run again` : ""].filter(Boolean).join("; "));
}
const lastCounts = new Map();
function drawJournals(journals) {
  $("journals-card").hidden = !journals.length;
  keyed($("journals"), journals.map((journal, index) => ({ ...journal, index })), (journal) => journal.index, () => el("tr", {}, el("th", { scope: "row" }), ...Array.from({ length: 5 }, (_, at) => el("td", { className: at === 4 ? "" : "n" }))), (row, journal) => {
    const now = performance.now() / 1000;
    const last = lastCounts.get(journal.index) ?? { done: null };
    if (journal.done !== last.done && journal.done != null) {
      if (last.done != null) last.speed = (journal.done - last.done) / (now - last.at);
      lastCounts.set(journal.index, { ...last, done: journal.done, at: now });
    } else if (last.at && now - last.at > 15) last.speed = 0;
    [journal.name, count(journal.done), count(journal.failed), count(journal.skipped + journal.repeated), rate(last.speed), journal.error ?? ""].forEach((value, at) => set(row.children[at], value));
  });
}

// -- Dead letters

const letters = {
  version: null, due: 0, turn: 0,
  // Letters that are not those of this pool must be neither shown nor discarded.
  forget(note) { this.turn += 1; this.refresh(); this.show({ groups: [], note }); },
  refresh() { this.version = null; this.due = 0; },
  async look(pool) {
    const summary = pool.letters;
    if (!summary) { this.forget("This pool keeps no dead letters."); return; }
    // A file can also be changed by others.
    const isCurrent = this.version === summary.version && (summary.kind !== "file" || performance.now() < this.due + 12000);
    if (isCurrent || performance.now() < this.due) return;
    this.due = performance.now() + 3000;
    const turn = (this.turn += 1);
    try {
      const found = await (await api(`pools/${state.pool}/letters`)).json();
      if (turn !== this.turn) return;
      this.version = found.version;
      this.show(found, summary);
    } catch (error) {
      if (turn !== this.turn) return;
      const due = this.due;
      this.forget(error.message);
      this.due = due;
    }
  },
  show(found, summary) {
    const total = found.groups.reduce((sum, group) => sum + group.count, 0);
    const notes = [found.note];
    if (summary && !found.note) {
      notes.push(total ? plural(found.stored ?? total, "letter") + (found.read < found.stored ? `; the newest ${count(found.read)} are grouped here` : "") : "None.");
      if (summary.dropped) notes.push(`${count(summary.dropped)} were dropped because the store is full.`);
      if (found.more) notes.push(`${plural(found.more, "smaller group")} not shown.`);
      if (found.unreplayable) notes.push(`${plural(found.unreplayable, "other")} cannot be replayed, because the job could not be written.`);
    }
    set($("letters-note"), notes.filter(Boolean).join(" "));
    const acts = state.about.actions && total ? [["Replay all", "replay"], ["Discard all…", "discard"]] : [];
    keyed($("letters-actions"), acts, ([name]) => name, ([name, action]) => button(name, () => this.act(action, { all: true }, "all letters")), () => {});
    keyed($("letters"), found.groups, (group) => group.key, (group) => this.makeGroup(group), (node, group) => this.drawGroup(node, group));
  },
  async act(action, args, what) { if (action === "replay" || (await ask(`Discard ${what}? Their jobs are lost.`, "Discard"))) act(action, args); },
  makeGroup(group) {
    const parts = { count: el("span", { className: "count" }), kind: el("span", { className: "kind" }), error: el("span"), when: el("span", { className: "note" }), body: el("tbody") };
    const node = el("details", {}, el("summary", {}, parts.count, " × ", parts.kind, " ", parts.error, " ", parts.when));
    if (state.about.actions) node.append(el("div", { className: "actions" },
      button("Replay group", () => this.act("replay", { group: group.key }), { className: "small" }),
      button("Discard group…", () => this.act("discard", { group: group.key }, "the letters of this group"), { className: "small" })));
    node.append(el("div", { className: "scroll" }, el("table", { className: "letters" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Newest jobs"), el("th", { scope: "col" }, "Error"), el("th", { scope: "col", className: "n" }, "Attempts"), el("th", { scope: "col", className: "act" }, el("span", { className: "sr" }, "Action")))), parts.body)));
    node.parts = parts;
    return node;
  },
  drawGroup({ parts }, group) {
    set(parts.count, count(group.count)); set(parts.kind, group.error_type); set(parts.error, group.error);
    set(parts.when, "last " + ago(Math.max(0, Date.now() / 1000 - group.last_at)));
    keyed(parts.body, group.letters, (letter) => letter.key, (letter) => {
      const last = el("td", { className: "act" });
      if (state.about.actions) last.append(button("Replay", () => this.act("replay", { letter: letter.key }), { className: "small" }), " ",
        button("Discard…", () => this.act("discard", { letter: letter.key }, "this letter"), { className: "small" }));
      return el("tr", {}, el("td", { className: "code" }), el("td", { title: letter.error }, letter.error), el("td", { className: "n" }, String(letter.attempts)), last);
    }, (row, letter) => {
      const job = letter.job ?? "…";
      set(row.firstChild, job).title = job;
      for (const node of row.lastChild.children) node.ariaLabel = node.textContent.replace("…", "") + " " + job;
    });
  },
};

// -- The token comes once, in the fragment, which is never sent to a server.

function given() {
  const value = new URLSearchParams(location.hash.slice(1)).get("token");
  if (value) history.replaceState(null, "", location.pathname + location.search);
  return value;
}
addEventListener("hashchange", () => { const value = given(); if (value) enter(value); });
enter(given() ?? remembered());
