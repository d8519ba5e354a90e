// Models and experiments: versions beside each other, the verdict, and the commands that change them.
import { AWAY, Banner, clock, Command, DASH, load, number, percent, signed, Table } from "./parts.js";

const { html, useEffect, useState } = htmPreact;
const MEASURES = { expected_labels: "expected labels", expected_utility: "expected utility", "ndcg@10": "NDCG@10", logloss: "logloss" };
const VERDICTS = { won: "healthy", lost: "down", invalid: "down" };
const MEASURED_ON = { test: "test rows", validation: "validation rows, which also chose its calibration" };
// Settings that change neither the quality of a model nor its cost.
const SILENT = ["num_workers"];
// More names than these are shown by their number.
const FEW = 5;

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
    <${Versions} app=${app} />
    <${SideBySide} versions=${app.versions ?? []} />
    <${History} app=${app} shifts=${data.shifts.filter((one) => one.application === app.name)} />
    <${Commands} app=${app} options=${data.options} />`);
}

function Experiment({ app, declared, seen }) {
  const { report } = app;
  const out = report ? `${app.out}-${new Date().toISOString().slice(0, 10)}` : app.out;
  const command = `python -m training experiment report --log ${app.log} --config ${app.config} --experiment ${app.experiment} --out ${out}`;
  const shared = declared?.arms.filter((arm) => arm.share > 0).length !== 1;
  return html`<h2>Experiment ${app.experiment}</h2>
    ${declared ? html`<${Table} caption="Arms: the share of viewers that each is to have, and its share of the rankings now"
      head=${["arm", "scorer", "model", "#share", "#seen now"]}
      rows=${declared.arms.map((arm) => [arm.name, arm.scorer, arm.model ?? DASH, percent(arm.share), percent(seen[arm.name])])} />`
      : html`<p>The service does not answer, so its arms are not known.</p>`}
    ${report && html`<${Verdict} report=${report} />`}
    ${!shared && html`<p>One arm has all viewers. There is nothing to compare until another arm has a share.</p>`}
    ${shared && app.experiment && app.log && html`<${Command} text=${command}
      about=${report ? "Judge the experiment again, with the log as it is now" : "There is no report beside the log yet. This command writes one"} />`}`;
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
    <${Table} caption=${`${report.treatment} beside ${report.control}. The 95 % intervals are ${ended ? "those of the declared end" : "valid however often you look"}.`}
      head=${["metric", "#effect", "#from", "#to", "interval; the dashed line is no difference"]}
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
  return `${MEASURES[by] ?? by} ${ours.toFixed(4)}, beside popular ${signed(pair[by])}${spread}: ${outcome}`;
}

const stateOf = (one) => one.state + (one.current && one.state !== "current" ? " (current)" : "");

function Versions({ app }) {
  const rows = app.versions?.map((one) => [one.version, stateOf(one), clock(one.made), yardstick(one), one.reason]);
  const caption = `Versions in ${app.models}, newest first. ± is two standard errors.`;
  return html`<h2>Versions</h2>
    ${!rows ? html`<p>Versions, changes and reports: ${AWAY}.</p>` : rows.length ? html`<${Table} caption=${caption}
      head=${["version", "state", "made", "yardstick", "reason"]} rows=${rows} />` : html`<p>No version is published in ${app.models}.</p>`}`;
}

// What a version says of itself, by question, in the order in which to read: how good it is, what it
// predicts, what it has learned from, what it costs, and its settings. An answer is a text or names.
function facts({ about, metrics }) {
  const found = {}, { outcomes = {}, weights = {}, bytes = {} } = about;
  const where = about.measured_on;
  if (where) found["measured on"] = `${number(about[`${where}_rows`], 0)} ${MEASURED_ON[where]}`;
  for (const [name, value] of Object.entries(metrics?.[where] ?? {})) {
    found[MEASURES[name] ?? name.toUpperCase()] = value == null ? DASH : value.toFixed(4);
  }
  found.predicts = Object.keys(outcomes);
  for (const [name, { calibration, examination }] of Object.entries(outcomes)) {
    if (name in weights) found[`weight of ${name} when measured`] = String(weights[name]);
    if (calibration) {
      const { a, b } = calibration;
      found[`calibration of ${name}`] = a === 1 && b === 0 ? "none needed" : `a ${a.toFixed(3)}, b ${b.toFixed(3)}`;
    }
    if (examination) found[`position bias of ${name}`] = examination.source;
  }
  if (about.rows != null) {
    found["training rows"] = number(about.rows, 0);
    found["training window"] = about.span_ms.map((at) => new Date(at).toISOString().slice(0, 16).replace("T", " ")).join(" to ") + " UTC";
    found.log = String(about.log);
    found.teachers = String(about.teachers || "none");
  }
  if (about.features) found.features = about.features;
  found["scoring on one core"] = about.us_per_candidate == null ? "not measured" : `${number(about.us_per_candidate, 2)} µs a candidate`;
  found["network on disk"] = `${number(bytes["model.onnx"] / 1e3, 0)} kB`;
  found["all files on disk"] = `${number(sum(Object.values(bytes)) / 1e6, 1)} MB`;
  if (about.seconds != null) found["training took"] = `${number(about.seconds, 0)} s`;
  for (const [name, value] of Object.entries({ ...about.network, ...about.fit })) {
    if (!SILENT.includes(name)) found[`setting ${name}`] = typeof value === "number" ? String(Number(value.toPrecision(3))) : String(value);
  }
  return found;
}

const sum = (values) => values.reduce((all, one) => all + one, 0);

// The chosen versions beside each other. Rows in which they differ are marked and come first.
function SideBySide({ versions }) {
  const known = versions.filter((one) => one.about?.bytes);
  // At first the two that matter most: those that rank, the one before, then the newest.
  const weight = (one) => [one.current, one.state === "canary", one.state === "previous"].indexOf(true) + 1 || 4;
  const [chosen, setChosen] = useState(() => [...known].sort((a, b) => weight(a) - weight(b)).slice(0, 2).map((one) => one.version));
  if (known.length < 2) return null;
  const shown = known.filter((one) => chosen.includes(one.version)).map((one) => ({ ...one, facts: facts(one) }));
  const choose = ({ target }) =>
    setChosen(target.checked ? [...chosen, target.value] : chosen.filter((name) => name !== target.value));
  const rows = [...new Set(shown.flatMap((one) => Object.keys(one.facts)))].map((name) => {
    const facts = shown.map((one) => one.facts[name]);
    return { name, facts, differs: new Set(facts.map((one) => JSON.stringify(one))).size > 1 };
  });
  const cells = ({ name, facts, differs }) =>
    [differs ? html`<b title="differs">≠</b>` : "=", differs ? html`<b>${name}</b>` : name, ...facts.map((one) => told(one, facts))];
  return html`<h2>Versions side by side</h2>
    <fieldset class="chosen"><legend>Choose two or more</legend>${known.map((one) => html`
      <label><input type="checkbox" value=${one.version} checked=${chosen.includes(one.version)} onChange=${choose} />
        ${one.version} (${stateOf(one)})</label>`)}</fieldset>
    ${shown.length < 2 ? html`<p>Choose another version to compare.</p>` : html`<div class="beside"><${Table}
      caption="What each version says of itself. Rows marked ≠ differ and come first. Two versions were usually measured on different rows, so a difference between their measures may be a difference between these rows."
      head=${["", "", ...shown.map((one) => one.version)]}
      rows=${[...rows].sort((a, b) => b.differs - a.differs).map(cells)} /></div>`}`;
}

// A text; of many names their number, and those that not all versions have.
function told(one, all) {
  if (!Array.isArray(one)) return one ?? DASH;
  const own = one.filter((name) => !all.every((other) => other?.includes(name)));
  if (one.length <= FEW) return one.join(", ") || DASH;
  return own.length ? `${one.length}, of which not all versions have ${own.join(", ")}` : `${one.length}`;
}

function History({ app, shifts }) {
  return html`
    <${Table} caption="What a new version scores beside the old one, on the same rows of live requests, while it is on trial (shadow, canary) or newly promoted"
      head=${["new", "old", "#rows", "#mean shift", "#PSI", "#top 10 kept", "#time, new/old"]}
      rows=${shifts.map((one) => [one.new, one.old, number(one.rows, 0), number(one.mean_shift, 4), number(one.psi, 3), percent(one.top10_kept), number(one.latency_ratio, 2)])} />
    <${Table} caption="Last changes of the current version and the canary" head=${["when", "change", "version", "by", "reason"]}
      rows=${(app.changes ?? []).map((one) => [clock(one.at_ms), one.action, one.version, one.by, one.reason])} />`;
}

function Commands({ app, options }) {
  const names = (app.versions ?? []).map((one) => one.version);
  const [version, setVersion] = useState(names[0] ?? "VERSION");
  const models = `--models ${app.models ?? "FOLDER"}`;
  return html`<h2>Change them</h2>
    <p class="hint">This page changes nothing. Copy a command into a shell in the folder of the service.</p>
    ${names.length > 0 && html`<label class="version">Version<select value=${version} onChange=${(event) => setVersion(event.target.value)}>
      ${names.map((one) => html`<option value=${one}>${one}</option>`)}</select></label>`}
    <${Command} about="Let this version rank" text=${`python -m serve models promote ${version} ${models}`} />
    <${Command} about="Let this version rank for the arms whose scorer is canary" text=${`python -m serve models canary ${version} ${models}`} />
    <${Command} about="Go back to the last good version before the current one" text=${`python -m serve models rollback --reason "WHY" ${models}`} />
    <${Command} about="Answer every request in the popular order, from now on. The same command with --off ends it" text=${`python -m serve popular${options}`} />
    <${Command} about="Change arms and their shares: edit the file, then apply it" text=${`python -m serve diff ${app.config ?? "FILE"} --apply${options}`} />`;
}
