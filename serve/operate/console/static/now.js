// Now: is the service well, what to do first, and the numbers of the last hour.
import { Chart } from "./chart.js";
import {
  Banner, clock, Command, DASH, number, percent, shares, Table, withUnit, Words,
} from "./parts.js";

const { html, useState } = htmPreact;
// Places in a point, after its time.
const RATE = 1, P50 = 2, P90 = 3, P99 = 4, REFUSED = 5, ERRORS = 6, CLIENT_ERRORS = 7;
const UNKNOWN_CANDIDATES = 8, UNKNOWN_VIEWERS = 9, NOT_FULL = 10, ACCEPTED = 11, DUPLICATES = 12, REJECTED = 13;
const SPANS = { "10 minutes": 600e3, "1 hour": 3600e3 };
// Kept while other pages are open.
let span = "10 minutes";
const LOST = "The console does not answer.";

export function Now({ found, gone, points, lost }) {
  if (!found && !lost) return html`<p role="status">Reading the service …</p>`;
  const health = found?.health ?? { state: "unknown", line: LOST };
  const traffic = found?.traffic?.window_s ? found.traffic : {};
  const [first, ...others] = found?.causes ?? [];
  const isFirst = first && first.text === health.line;
  if (lost) {
    return html`<${Banner} state="unknown" line=${LOST}>
      <p>It answered last at ${clock(lost)}. Start it again; this page then goes on by itself.</p>
      <div><${Command} text="python -m serve console" /></div><//>`;
  }
  return html`
    <${Banner} state=${health.state} line=${health.line} doubt=${doubt(found, traffic, gone)}>
      ${health.state === "healthy" && html`<p>There is nothing to do. The console found no fault in the state of the service, in its answers and in its metrics.</p>`}
      ${health.remedy && html`<p>${isFirst && first.where ? `${first.where}: ` : ""}<${Words} text=${health.remedy} />
        ${health.runbook && html` See <code>${health.runbook}</code>.`}</p>`}
      ${gone && html`<p>No answer since ${clock(gone.since)}. ${
        gone.seen ? `It answered last at ${clock(gone.seen)}.` : "It has not answered since the console was started."
      } This page goes on by itself once the service answers.</p>`}
    <//>
    ${gone ? null : html`<${Tiles} found=${found} traffic=${traffic} />`}
    <${Causes} causes=${isFirst ? others : found.causes ?? []} />
    <${Charts} points=${points} />
    <div class="columns">
      <div><h2>Replicas</h2>
        ${Object.entries(found.surfaces ?? {}).map(([name, { model }]) => html`<p>${name} ranks with ${model ?? "no model"}.</p>`)}
        <${Replicas} found=${found} /></div>
      <div><h2>Last hour</h2><${Changes} found=${found} /></div>
    </div>`;
}

function Charts({ points }) {
  const [shown, setShown] = useState(span);
  const newest = points.at(-1)?.[0] ?? 0;
  const recent = points.filter(([at]) => at >= newest - SPANS[shown]);
  const show = (event) => setShown(span = event.target.value);
  return html`<fieldset class="spans"><legend>The last</legend>${Object.keys(SPANS).map((name) => html`
      <label><input type="radio" name="span" value=${name} checked=${name === shown} onChange=${show} />${name}</label>`)}
    </fieldset>
    <div class="charts">
      <${Chart} title="Rankings per second" unit="/s" points=${recent} lines=${[{ label: "rate", at: RATE, tone: "model", bold: true }]} />
      <${Chart} title="Latency of rankings, ms" unit="ms" top=${20} points=${recent} lines=${[
        { label: "p50", at: P50, tone: "neutral", dash: [2, 3] },
        { label: "p90", at: P90, tone: "popular", dash: [6, 3] },
        { label: "p99", at: P99, tone: "model", bold: true },
      ]} />
      <${Chart} title="Answers that fall short, %" unit="%" top=${2} points=${recent} lines=${[
        { label: "not full", at: NOT_FULL, factor: 100, tone: "popular" },
        { label: "refused", at: REFUSED, factor: 100, tone: "baseline", dash: [6, 3] },
        { label: "client errors", at: CLIENT_ERRORS, factor: 100, tone: "neutral", dash: [2, 3] },
        { label: "errors", at: ERRORS, factor: 100, tone: "bad", bold: true },
      ]} />
      <${Chart} title="Records of /v1/events per second" unit="/s" points=${recent} lines=${[
        { label: "accepted", at: ACCEPTED, tone: "model", bold: true },
        { label: "duplicates", at: DUPLICATES, tone: "neutral", dash: [2, 3] },
        { label: "rejected", at: REJECTED, tone: "bad", dash: [6, 3] },
      ]} />
      <${Chart} title="Ids that the service does not know, %" unit="%" top=${2} points=${recent} lines=${[
        { label: "candidates", at: UNKNOWN_CANDIDATES, factor: 100, tone: "model", bold: true },
        { label: "viewers", at: UNKNOWN_VIEWERS, factor: 100, tone: "popular", dash: [6, 3] },
      ]} />
    </div>`;
}

// One sentence on how far to trust the numbers.
function doubt(found, traffic, gone) {
  if (gone) return "how clients fare. Nothing was measured since the service stopped answering.";
  const seconds = traffic.window_s;
  if (!seconds) return "how fast the service ranks. A rate is known after two reads of its metrics.";
  if (!traffic.rate_rps) return `how fast the service would rank. No ranking was asked for in the last ${number(seconds, 0)} s.`;
  return `whether the rankings are good (see Models), and how long clients wait. Rates and times are measured in the service, over the last ${number(seconds, 0)} s.`;
}

function Tiles({ found, traffic }) {
  const rungs = traffic.rungs ?? {}, memory = found.memory ?? {}, records = traffic.records_rps ?? {};
  const short = shares(Object.fromEntries(Object.entries(rungs).filter(([name]) => name !== "full")));
  const reasons = shares(traffic.reasons);
  const full = traffic.rungs && Object.keys(rungs).length ? rungs.full ?? 0 : null;
  const tiles = [
    ["Rankings per second", number(traffic.rate_rps), `over the last ${number(traffic.window_s, 0)} s`],
    ["99 % answered within", withUnit(traffic.p99_ms, "ms"), `50 % within ${withUnit(traffic.p50_ms, "ms")}, 90 % within ${withUnit(traffic.p90_ms, "ms")}`],
    ["Full answers", percent(full), `ranked as their arm says${short && `; the others ${short}`}${short && reasons && `, because of ${reasons}`}`],
    ["Refused or failed", percent(sum(traffic.refused_share, traffic.error_share)), `refused ${percent(traffic.refused_share)}, errors of the service ${percent(traffic.error_share)}${traffic.error_share ? ` (${shares(traffic.errors)})` : ""}; beside them, errors of callers ${percent(traffic.client_error_share)}${traffic.client_error_share ? ` (${shares(traffic.client_errors)})` : ""}`],
    ["Records per second", number(records.accepted), `accepted by /v1/events; duplicates ${withUnit(records.duplicate, "/s")}, rejected ${withUnit(records.rejected, "/s")}`],
    ["Unknown candidates", percent(traffic.unknown_share), `${ofAll(traffic.candidates, traffic.unknown_share, traffic.window_s)} in live rankings; of the viewers ${percent(traffic.unknown_viewer_share)} are unknown`],
    ["Age of features", traffic.freshness_ms === 0 && traffic.rate_rps === 0 ? "no traffic" : withUnit(traffic.freshness_ms, "ms"), "the time until an event counts in a ranking"],
    ["Memory in use", withUnit(memory.used_mib, "MiB"), `of ${withUnit(memory.limit_mib, "MiB")} on the fullest node; the service itself uses ${withUnit(found.memory_mib, "MiB")}`],
  ];
  return html`<dl class="tiles">${tiles.map(([label, value, note]) => html`
    <div><dt>${label}</dt><dd class="value">${value}</dd><dd class="note">${note}</dd></div>`)}</dl>`;
}

// A share of a count, as a rate.
const ofAll = (count, share, seconds) => (share == null ? DASH : withUnit((count * share) / seconds, "/s"));

const sum = (...values) => values.reduce((all, one) => (one == null ? all : (all ?? 0) + one), null);

function Causes({ causes }) {
  return causes.length ? html`<h2>Also found</h2><ul class="causes">${causes.map((one) => html`
    <li class=${one.advice ? "neutral" : "unsure"}><b>${one.where ? `${one.where}: ` : ""}${one.text}</b> <${Words} text=${one.remedy} />
      ${one.runbook && html` See <code>${one.runbook}</code>.`}</li>`)}</ul>` : null;
}

function Replicas({ found }) {
  const rows = Object.entries(found.applications ?? {}).flatMap(([app, { deployments }]) =>
    Object.entries(deployments).map(([name, { status, target, replicas }]) => {
      const { RUNNING: running = 0, ...others } = replicas;
      const rest = Object.entries(others).map(([state, count]) => `, ${count} ${state.toLowerCase()}`);
      const restarts = found.restarts?.[`${app}/${name}`];
      return [
        `${app}/${name}`, status.toLowerCase(), `${running}/${target ?? DASH}${rest.join("")}`,
        restarts ? `${restarts.count} (${restarts.last})` : "none",
      ];
    }));
  return rows.length ? html`<${Table} caption="Replicas that run, of those that are wanted, and restarts since the service started"
    head=${["deployment", "status", "replicas", "restarts"]} rows=${rows} />` : html`<p>No replica is known.</p>`;
}

function Changes({ found }) {
  const changes = found.changes ?? [];
  return changes.length ? html`<${Table} caption="What changed, newest first" head=${["when", "what"]}
    rows=${changes.map((one) => [clock(one.at), one.what])} />` : html`<p>Nothing changed in the last hour.</p>`;
}
