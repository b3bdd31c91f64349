"use strict";

const POLL_MS = 1000;
const TIMEOUT_MS = 5000;
const EVENTS_SHOWN = 10;
const TONES = { serving: "good", ready: "good", waiting: "bad", failed: "bad", joined: "idle" };

const byId = (id) => document.getElementById(id);
const tone = (word) => TONES[word] || "busy";
const hue = (stage) => (212 + stage * 67) % 360;

function element(name, options = {}, ...children) {
  const node = document.createElement(name);
  if (options.className) node.className = options.className;
  if (options.title) node.title = options.title;
  for (const [key, value] of Object.entries(options.style || {})) node.style.setProperty(key, value);
  node.append(...children);
  return node;
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = count || 0;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value.toFixed(value < 10 && unit ? 1 : 0)} ${units[unit]}`;
}

function duration(seconds) {
  if (!seconds) return "–";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${(seconds * 1e3).toFixed(seconds < 0.01 ? 2 : 1)} ms`;
  return `${seconds.toFixed(1)} s`;
}

const rate = (value) => (value ? value.toFixed(value < 10 ? 2 : 1) : "–");

/* Unit 0 is the embedding, 1 to L are the layers, L + 1 is the head. */
function units(first, end, numLayers) {
  const parts = [];
  if (first === 0) parts.push("embedding");
  const firstLayer = Math.max(first, 1) - 1;
  const lastLayer = Math.min(end, numLayers + 1) - 2;
  if (lastLayer >= firstLayer) parts.push(firstLayer === lastLayer ? `layer ${firstLayer}` : `layers ${firstLayer}–${lastLayer}`);
  if (end > numLayers + 1) parts.push("head");
  return parts.join(", ");
}

/* Tokens per second over the last seconds, from the counter. */
const samples = [];
function tokensPerSecond(total) {
  const now = performance.now() / 1000;
  if (samples.length && total < samples[samples.length - 1].total) samples.length = 0;
  samples.push({ now, total });
  while (samples.length > 2 && now - samples[0].now > 5) samples.shift();
  const elapsed = now - samples[0].now;
  return elapsed > 0 ? (total - samples[0].total) / elapsed : 0;
}

const inPlan = (shard) => shard.stage !== undefined && shard.stage !== null && shard.stage >= 0;

function showHead(state, engine) {
  const phase = (state.phase || "waiting").toLowerCase();
  byId("model").textContent = state.model || "no model";
  byId("about").textContent = [
    state.num_layers && `${state.num_layers} layers`,
    state.model_size_bytes && bytes(state.model_size_bytes),
    state.arithmetic && `arithmetic ${state.arithmetic}`,
    `epoch ${state.epoch || 0}`,
  ].filter(Boolean).join(" · ");
  document.title = `${phase} · ${state.model || "dairllm"}`;
  byId("phase").className = `phase ${tone(phase)}`;
  byId("phase-text").textContent = phase;
  const reason = state.reason || engine.ready_reason || "";
  byId("reason").hidden = !reason;
  byId("reason").className = `reason ${tone(phase)}`;
  byId("reason").textContent = reason;
  byId("versions").textContent = [state.software_version && `version ${state.software_version}`, state.coordinator_id].filter(Boolean).join(" · ");
}

function showFigures(state, engine) {
  const total = engine.kv_blocks_total || 0;
  const used = total ? Math.round((100 * (total - engine.kv_blocks_free)) / total) : 0;
  const figures = [
    ["tokens/s now", rate(tokensPerSecond(engine.generated_tokens || 0))],
    ["tokens/s of one answer", rate(state.measured_decode_tok_s)],
    ["tokens/s predicted", rate(state.predicted_decode_tok_s)],
    ["running", engine.running ?? 0],
    ["waiting", engine.waiting ?? 0],
    ["KV cache in use", total ? `${used} %` : "–"],
    ["tokens generated", (engine.generated_tokens || 0).toLocaleString("en")],
    ["prompt tokens reused", (engine.reused_tokens || 0).toLocaleString("en")],
    ["guesses that were right", engine.guessed_tokens ? `${Math.round((100 * engine.guessed_right) / engine.guessed_tokens)} % of ${engine.guessed_tokens.toLocaleString("en")}` : "–"],
  ];
  byId("figures").replaceChildren(
    ...figures.map(([label, value]) => element("div", { className: "figure" }, element("b", {}, String(value)), element("span", { className: "quiet" }, label))),
  );
}

function showPlan(state, shards) {
  const stages = shards.filter(inPlan).sort((a, b) => a.stage - b.stage);
  const bars = stages.map((shard) => {
    const what = units(shard.first_unit, shard.end_unit, state.num_layers);
    const className = shard.phase === "ready" ? "stage" : "stage unready";
    const style = { "flex-grow": String(shard.end_unit - shard.first_unit), "flex-basis": "0", "--hue": String(hue(shard.stage)) };
    return element("div", { className, style, title: `${shard.name}: ${what}` }, element("b", {}, shard.name), element("span", {}, what));
  });
  byId("plan").replaceChildren(...(bars.length ? bars : [element("div", { className: "empty" }, "no plan yet")]));
  const idle = shards.length - stages.length;
  byId("plan-note").textContent = stages.length
    ? `${stages.length} of ${shards.length} shards compute${idle ? `, ${idle} stand by` : ""}. Activations pass from left to right.`
    : "";
}

function memoryCell(shard) {
  const usage = shard.usage || {};
  const budget = (shard.capabilities || {}).memory_budget_bytes || 0;
  const used = (usage.weights_bytes || 0) + (usage.kv_cache_bytes || 0) + (usage.scratch_bytes || 0);
  const share = budget ? Math.min(100, (100 * used) / budget) : 0;
  const title = `weights ${bytes(usage.weights_bytes)}, KV cache ${bytes(usage.kv_cache_bytes)}, scratch ${bytes(usage.scratch_bytes)}`;
  const bar = element("span", { className: "bar" }, element("i", { style: { width: `${share}%`, ...(inPlan(shard) ? { "--hue": String(hue(shard.stage)) } : {}) } }));
  const notes = streamingNotes(shard, usage).map((note) => element("div", { className: "note" }, note));
  return element("td", { title }, `${bytes(used)} of ${bytes(budget)}`, bar, ...notes);
}

function streamingNotes(shard, usage) {
  const notes = [];
  if (shard.streamed_bytes) {
    const speed = shard.stream_s_per_byte ? `, ${(1e-9 / shard.stream_s_per_byte).toFixed(1)} GB/s` : "";
    notes.push(`streams ${bytes(shard.streamed_bytes)} a step${speed}`);
  }
  if (shard.expert_places) {
    const found = Number(usage.experts_found || 0);
    const chosen = found + Number(usage.experts_missed || 0);
    const hits = chosen ? `, ${((100 * found) / chosen).toFixed(0)} % of those chosen were there` : "";
    notes.push(`${shard.expert_places} experts in memory${hits}`);
  }
  if (Number(usage.streamed_bytes) && Number(usage.rows)) {
    const waited = duration((1e-6 * Number(usage.stalled_us || 0)) / usage.rows);
    notes.push(`so far, a token: ${bytes(usage.streamed_bytes / usage.rows)} read, ${waited} waited`);
  }
  return notes;
}

function stateCell(shard) {
  const cell = element("td", {}, element("span", { className: `state ${tone(shard.phase)}` }, element("span", { className: "dot" }), shard.phase || "–"));
  const load = shard.load || {};
  if (shard.phase === "loading" && load.total_bytes) {
    cell.append(element("div", { className: "note" }, `${bytes(load.loaded_bytes)} of ${bytes(load.total_bytes)}`));
  }
  if (shard.note) cell.append(element("div", { className: "note" }, shard.note));
  return cell;
}

function shardRow(shard, state) {
  const capabilities = shard.capabilities || {};
  const machine = [capabilities.num_threads && `${capabilities.num_threads} ${capabilities.num_threads === 1 ? "thread" : "threads"}`, capabilities.isa].filter(Boolean).join(", ");
  const number = (text) => element("td", { className: "number" }, text);
  return element(
    "tr",
    {},
    element("td", { title: [capabilities.cpu_model, ...(shard.addresses || [])].filter(Boolean).join("\n") }, element("b", {}, shard.name), element("div", { className: "note" }, machine)),
    stateCell(shard),
    element("td", {}, inPlan(shard) ? units(shard.first_unit, shard.end_unit, state.num_layers) : "none"),
    memoryCell(shard),
    number(duration(shard.measured_step_s)),
    number(duration(shard.predicted_step_s)),
    number(duration((shard.round_trip_us || 0) / 1e6)),
    number(shard.last_seen_s === undefined ? "–" : `${shard.last_seen_s.toFixed(1)} s ago`),
  );
}

function showShards(state, shards) {
  const place = (shard) => (inPlan(shard) ? shard.stage : Number.MAX_SAFE_INTEGER);
  const ordered = [...shards].sort((a, b) => place(a) - place(b) || a.name.localeCompare(b.name));
  byId("shards").replaceChildren(...ordered.map((shard) => shardRow(shard, state)));
}

function lostLine(shard, state) {
  const since = element("time", {}, new Date(shard.since_time).toLocaleTimeString());
  const had = units(shard.first_unit, shard.end_unit, state.num_layers);
  return element("li", {}, since, element("b", { title: (shard.addresses || []).join("\n") }, shard.name), `${shard.reason}${had ? `; it computed ${had}` : ""}`);
}

function showLost(state) {
  const lost = state.lost || [];
  byId("lost-section").hidden = lost.length === 0;
  byId("lost").replaceChildren(...lost.map((shard) => lostLine(shard, state)));
}

function seenLine(shard) {
  const since = element("time", {}, new Date(shard.since_time).toLocaleTimeString());
  return element("li", {}, since, element("b", { title: (shard.addresses || []).join("\n") }, shard.name || shard.addresses[0]), shard.reason);
}

function showSeen(state) {
  const seen = state.seen || [];
  byId("seen-section").hidden = seen.length === 0;
  byId("seen").replaceChildren(...seen.map(seenLine));
}

function eventLine(event) {
  const time = element("time", {}, new Date(event.time).toLocaleTimeString());
  return element("li", {}, time, element("b", {}, event.shard || "cluster"), event.text, event.times > 1 ? ` (${event.times} times)` : "");
}

function showEvents(state) {
  const newest = (state.events || []).slice(-EVENTS_SHOWN).reverse();
  byId("events-section").hidden = newest.length === 0;
  byId("events").replaceChildren(...newest.map(eventLine));
}

function show(state) {
  const engine = state.engine || {};
  const shards = (state.shards || []).map((shard) => ({ ...shard, phase: (shard.phase || "").toLowerCase() }));
  showHead(state, engine);
  showFigures(state, engine);
  showPlan(state, shards);
  showShards(state, shards);
  showLost(state);
  showSeen(state);
  showEvents(state);
}

async function poll() {
  try {
    const reply = await fetch("api/cluster", { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (!reply.ok) throw new Error(`status ${reply.status}`);
    show(await reply.json());
    document.body.classList.remove("stale");
  } catch (error) {
    document.body.classList.add("stale");
    byId("phase").className = "phase bad";
    byId("phase-text").textContent = "the coordinator does not answer";
  }
  setTimeout(poll, POLL_MS);
}

poll();
