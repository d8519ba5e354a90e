// Models and experiments: versions with their yardstick, the verdict, and the commands that change them.
import { AWAY, Banner, clock, Command, DASH, load, number, percent, signed, Table } from "./parts.js";

const { html, useEffect, useState } = htmPreact;
const MEASURES = { expected_labels: "expected labels", "ndcg@10": "NDCG@10", logloss: "logloss" };
const VERDICTS = { won: "healthy", lost: "down", invalid: "down" };

export function Models({ found }) {
  const [data, setData] = useState(null);
  // Read again when another version ranks.
  const ranking = JSON.stringify(Object.values(found?.surfaces ?? {}).map((one) => one.model));
  useEffect(() => { load("/data/models").then(setData); }, [ranking]);
  if (!data) return html`<p role="status">Reading the models …</p>`;
  if (data.detail) return html`<p class="refused" role="alert">${data.detail}</p>`;
  // Of a cluster at an address, only what it answers is known.
  const named = Object.entries(found?.surfaces ?? {}).map(([name, one]) => ({ name, experiment: one.experiment?.name }));
  return [data.applications, named, [{}]].find((some) => some.length).map((app) => html`
    <${Experiment} app=${app} declared=${found?.surfaces?.[app.name]?.experiment} seen=${found?.traffic?.arms ?? {}} />
    <${Versions} app=${app} shifts=${data.shifts.filter((one) => one.application === app.name)} />
    <${Commands} app=${app} options=${data.options} />`);
}

function Experiment({ app, declared, seen }) {
  const { report } = app;
  const out = report ? `${app.out}-${new Date().toISOString().slice(0, 10)}` : app.out;
  const command = `python -m training experiment report --log ${app.log} --config ${app.config} --experiment ${app.experiment} --out ${out}`;
  const shared = declared?.arms.filter((arm) => arm.share > 0).length !== 1;
  return html`<h2>Experiment ${app.experiment}</h2>
    ${declared ? html`<${Table} caption="Arms" head=${["arm", "scorer", "model", "#share", "#seen now"]}
      rows=${declared.arms.map((arm) => [arm.name, arm.scorer, arm.model ?? DASH, percent(arm.share), percent(seen[arm.name])])} />`
      : html`<p>The service does not answer, so its arms are not known.</p>`}
    ${report && html`<${Verdict} report=${report} />`}
    ${!shared && html`<p>One arm has all viewers: there is nothing to compare until another has a share.</p>`}
    ${shared && app.experiment && app.log && html`<${Command} text=${command}
      about=${report ? "Judge it anew" : "No report is beside the log yet; this makes one"} />`}`;
}

function Verdict({ report }) {
  const { ended } = report.window;
  const rows = report.metrics.filter((one) => one.effect?.relative != null).map((one) => {
    const interval = ended ? one.effect : one.always_valid;
    return { ...one, middle: one.effect.relative, low: interval.relative_low, high: interval.relative_high };
  }).filter((one) => one.low != null && one.high != null);
  const widest = Math.max(...rows.flatMap((one) => [Math.abs(one.low), Math.abs(one.high)]));
  const text = (value) => `${signed(100 * value, 1)} %`;
  return html`
    <${Banner} state=${VERDICTS[report.verdict] ?? "unknown"} doubt=${report.warnings.join("; ")}
      line=${`${report.treatment} against ${report.control}: ${report.verdict}`}><p>${report.reason}; ${report.outlook}.</p><//>
    <${Table} caption=${`${report.treatment} against ${report.control}, 95 % ${ended ? "at the declared end" : "valid however often you look"}`}
      head=${["metric", "#effect", "#from", "#to", "interval; dashed: no difference"]}
      rows=${rows.map((one) => [one.title, text(one.middle), text(one.low), text(one.high), html`<${Interval} ...${one} widest=${widest} />`])} />`;
}

function Interval({ low, middle, high, widest }) {
  const x = (value) => 120 + (110 * value) / widest;
  return html`<svg class="interval" viewBox="0 0 240 20" aria-hidden="true">
    <line class="zero" x1="120" x2="120" y1="0" y2="20" /><line class="span" x1=${x(low)} x2=${x(high)} y1="10" y2="10" />
    <circle cx=${x(middle)} cy="10" r="5" /></svg>`;
}

// The measure that the gate judged by, against popular, with two standard errors.
function yardstick({ metrics, measured_on, paired }) {
  const pair = paired?.["model-popular"], by = pair?.gate?.by;
  const ours = (metrics[measured_on] ?? metrics.test ?? metrics.validation)?.[by];
  if (ours == null || pair[by] == null) return DASH;
  const error = pair[by === "ndcg@10" ? "se" : `${by}_se`];
  const spread = error == null ? "" : ` ± ${(2 * error).toFixed(4)}`;
  // Logloss decides without an order, so it shows better predictions only.
  const better = by === "logloss" ? "predicts better than popular" : "beats popular";
  const outcome = { true: better, false: "does not beat popular" }[pair.gate.beats] ?? "undecided";
  return `${MEASURES[by] ?? by} ${ours.toFixed(4)}; to popular ${signed(pair[by])}${spread}: ${outcome}`;
}

function Versions({ app, shifts }) {
  const rows = app.versions?.map((one) => [
    one.version, one.state + (one.current && one.state !== "current" ? " (current)" : ""),
    clock(one.made), yardstick(one), one.reason,
  ]);
  return html`<h2>Versions</h2>
    ${!rows ? html`<p>Versions, changes and reports: ${AWAY}.</p>` : rows.length ? html`<${Table} caption=${`Versions in ${app.models}, newest first; differences with two standard errors`}
      head=${["version", "state", "made", "yardstick", "reason"]} rows=${rows} />` : html`<p>None is published in ${app.models}.</p>`}
    <${Table} caption="Trials: rows that two versions scored (shadow, canary, newly promoted)"
      head=${["new", "old", "#rows", "#mean shift", "#PSI", "#top 10 kept", "#time, new/old"]}
      rows=${shifts.map((one) => [one.new, one.old, number(one.rows, 0), number(one.mean_shift, 4), number(one.psi, 3), percent(one.top10_kept), number(one.latency_ratio, 2)])} />
    <${Table} caption="Last changes" head=${["when", "change", "version", "by", "reason"]}
      rows=${(app.changes ?? []).map((one) => [clock(one.at_ms), one.action, one.version, one.by, one.reason])} />`;
}

function Commands({ app, options }) {
  const names = (app.versions ?? []).map((one) => one.version);
  const [version, setVersion] = useState(names[0] ?? "VERSION");
  const models = `--models ${app.models ?? "FOLDER"}`;
  return html`<h2>Change them</h2>
    <p class="hint">This page changes nothing. Copy a command into a shell of the service's folder.</p>
    ${names.length > 0 && html`<label class="version">Version<select value=${version} onChange=${(event) => setVersion(event.target.value)}>
      ${names.map((one) => html`<option value=${one}>${one}</option>`)}</select></label>`}
    <${Command} about="Let this version rank" text=${`python -m serve models promote ${version} ${models}`} />
    <${Command} about="Let it rank for the arms with scorer canary" text=${`python -m serve models canary ${version} ${models}`} />
    <${Command} about="Go back to the good version before" text=${`python -m serve models rollback --reason "WHY" ${models}`} />
    <${Command} about="Every ranking in popular order, at once; --off reverts" text=${`python -m serve popular${options}`} />
    <${Command} about="Change arms and shares: edit the file, then" text=${`python -m serve diff ${app.config ?? "FILE"} --apply${options}`} />`;
}
