// Now: is the service well, what to do first, and the numbers of the last ten minutes.
import { Chart } from "./chart.js";
import {
  Banner, clock, Command, DASH, number, percent, shares, Table, withUnit, Words,
} from "./parts.js";

const { html } = htmPreact;
// Places in a point, after its time.
const RATE = 1, P50 = 2, P90 = 3, P99 = 4, REFUSED = 5, ERRORS = 6, CLIENT_ERRORS = 7, NOT_FULL = 8;
const LOST = "The console does not answer.";

export function Now({ found, gone, points, lost }) {
  if (!found && !lost) return html`<p role="status">Reading the service …</p>`;
  const health = found?.health ?? { state: "unknown", line: LOST };
  const traffic = found?.traffic?.window_s ? found.traffic : {};
  const [first, ...others] = found?.causes ?? [];
  const isFirst = first && first.text === health.line;
  if (lost) {
    return html`<${Banner} state="unknown" line=${LOST}>
      <p>Last read at ${clock(lost)}. The page connects by itself once it is back.</p>
      <div><${Command} text="python -m serve console" /></div><//>`;
  }
  return html`
    <${Banner} state=${health.state} line=${health.line} doubt=${doubt(found, traffic, gone)}>
      ${health.state === "healthy" && html`<p>Nothing to do: no fault was found in its state, its answers and its metrics.</p>`}
      ${health.remedy && html`<p>${isFirst && first.where ? `${first.where}: ` : ""}<${Words} text=${health.remedy} />
        ${health.runbook && html` See <code>${health.runbook}</code>.`}</p>`}
      ${gone && html`<p>No answer since ${clock(gone.since)}, ${
        gone.seen ? `last seen ${clock(gone.seen)}` : "not seen since the console was opened"
      }. The page goes on by itself once the service answers.</p>`}
    <//>
    ${gone ? null : html`<${Tiles} found=${found} traffic=${traffic} />`}
    <${Causes} causes=${isFirst ? others : found.causes ?? []} />
    <div class="charts">
      <${Chart} title="Rankings per second" unit="/s" points=${points} lines=${[{ label: "rate", at: RATE, tone: "model", bold: true }]} />
      <${Chart} title="Latency of rankings, ms" unit="ms" top=${20} points=${points} lines=${[
        { label: "p50", at: P50, tone: "neutral", dash: [2, 3] },
        { label: "p90", at: P90, tone: "popular", dash: [6, 3] },
        { label: "p99", at: P99, tone: "model", bold: true },
      ]} />
      <${Chart} title="Answers that fall short, %" unit="%" top=${2} points=${points} lines=${[
        { label: "not full", at: NOT_FULL, factor: 100, tone: "popular" },
        { label: "refused", at: REFUSED, factor: 100, tone: "baseline", dash: [6, 3] },
        { label: "client errors", at: CLIENT_ERRORS, factor: 100, tone: "neutral", dash: [2, 3] },
        { label: "errors", at: ERRORS, factor: 100, tone: "bad", bold: true },
      ]} />
    </div>
    <div class="columns">
      <div><h2>Replicas</h2>
        ${Object.entries(found.surfaces ?? {}).map(([name, { model }]) => html`<p>${name} ranks with ${model ?? "no model"}.</p>`)}
        <${Replicas} found=${found} /></div>
      <div><h2>Last hour</h2><${Changes} found=${found} /></div>
    </div>`;
}

// One sentence on how far to trust the numbers.
function doubt(found, traffic, gone) {
  if (gone) return "how clients fare: nothing was measured since the service stopped answering.";
  const seconds = traffic.window_s;
  if (!seconds) return "how fast it ranks: no rate is known until two reads of its metrics.";
  if (!traffic.rate_rps) return `how fast it would rank: no rankings came in the last ${number(seconds, 0)} s.`;
  return `whether the rankings are good (see Models), or how long clients wait: rates and times are the service's own, of the last ${number(seconds, 0)} s.`;
}

function Tiles({ found, traffic }) {
  const rungs = traffic.rungs ?? {}, memory = found.memory ?? {};
  const short = shares(Object.fromEntries(Object.entries(rungs).filter(([name]) => name !== "full")));
  const reasons = shares(traffic.reasons);
  const full = traffic.rungs && Object.keys(rungs).length ? rungs.full ?? 0 : null;
  const tiles = [
    ["Rankings per second", number(traffic.rate_rps), `over the last ${number(traffic.window_s, 0)} s`],
    ["99 % answered within", withUnit(traffic.p99_ms, "ms"), `50 % ${withUnit(traffic.p50_ms, "ms")}, 90 % ${withUnit(traffic.p90_ms, "ms")}`],
    ["Full answers", percent(full), `as the arm says${short && `; ${short}${reasons && `, by ${reasons}`}`}`],
    ["Refused or failed", percent(sum(traffic.refused_share, traffic.error_share)), `refused ${percent(traffic.refused_share)}, client errors ${percent(traffic.client_error_share)}${traffic.client_error_share ? ` (${shares(traffic.client_errors)})` : ""}, errors ${percent(traffic.error_share)}${traffic.error_share ? ` (${shares(traffic.errors)})` : ""}`],
    ["Age of features", traffic.freshness_ms === 0 && traffic.rate_rps === 0 ? "no traffic" : withUnit(traffic.freshness_ms, "ms"), "time until an event counts"],
    ["Memory in use", withUnit(memory.used_mib, "MiB"), `of ${number(memory.limit_mib)} MiB; the service itself ${withUnit(found.memory_mib, "MiB")}`],
  ];
  return html`<dl class="tiles">${tiles.map(([label, value, note]) => html`
    <div><dt>${label}</dt><dd class="value">${value}</dd><dd class="note">${note}</dd></div>`)}</dl>`;
}

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
  return rows.length ? html`<${Table} caption="Replicas that run, of those wanted; restarts since the start"
    head=${["deployment", "status", "replicas", "restarts"]} rows=${rows} />` : html`<p>None is known.</p>`;
}

function Changes({ found }) {
  const changes = found.changes ?? [];
  return changes.length ? html`<${Table} caption="What changed, newest first" head=${["when", "what"]}
    rows=${changes.map((one) => [clock(one.at), one.what])} />` : html`<p>Nothing changed.</p>`;
}
