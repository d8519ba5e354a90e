// Try: rank a request as test traffic, and see scores, reasons and what rules and pins moved.
import { AWAY, clock, DASH, load, number, percent, signed, Table } from "./parts.js";

const { html, useEffect, useState } = htmPreact;
const MAX_ROWS = 100;
const EMPTY = JSON.stringify({ viewer: null, candidates: [], limit: 5 }, null, 1);
// Kept while other pages are open.
let kept = { text: EMPTY, result: null };

export function Try({ found }) {
  const names = Object.keys(found?.surfaces ?? {});
  const [name, setName] = useState(names[0] ?? "");
  const [samples, setSamples] = useState([]);
  const [state, setState] = useState({ ...kept, busy: false });
  const application = name || names[0] || "";
  const update = (news) => setState((old) => (kept = { ...old, ...news }));
  const pick = (sample) => sample && update({ text: JSON.stringify(sample.request, null, 1) });
  useEffect(() => {
    load(`/data/requests?application=${encodeURIComponent(application)}`).then((found) => {
      setSamples("requests" in found ? found.requests : []);
      if (kept.text === EMPTY) pick(found.requests?.[0]);
    });
  }, [application]);

  const request = parsed(state.text);
  const change = (news) => update({ text: JSON.stringify({ ...request, ...news }, null, 1) });
  async function rank(event) {
    event.preventDefault();
    update({ busy: true });
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: state.text };
    update({ busy: false, result: await load(`/data/rank?application=${encodeURIComponent(application)}`, options) });
  }
  return html`<h2>Try a ranking</h2>
    <p class="hint">The request is sent as test traffic. The candidates do not count as shown, and training ignores them.</p>
    <form onSubmit=${rank}>
      <div>
        ${names.length > 1 && html`<label>Application<select value=${application} onChange=${(event) => setName(event.target.value)}>
          ${names.map((one) => html`<option value=${one}>${one}</option>`)}</select></label>`}
        <label>Take a logged request<select onChange=${(event) => pick(samples[event.target.value])}>
          ${samples?.length ? null : html`<option>${samples ? "the log holds no request" : AWAY}</option>`}
          ${samples?.map((one, i) => html`<option value=${i}>${titled(one)}</option>`)}</select></label>
        <label>Viewer (empty: anonymous)<input disabled=${!request} value=${request?.viewer ?? ""}
          onInput=${(event) => change({ viewer: event.target.value || null })} /></label>
        <${Lines} label="Candidates, one id a line" rows="4" disabled=${!request} placeholder=${"candidate-1\ncandidate-2"}
          value=${ids(request)} onLines=${(found) => change({ candidates: listed(found, request) })} />
        <${Lines} label="Pins, a position and an id a line" rows="2" disabled=${!request} placeholder="1 candidate-2"
          value=${Object.entries(request?.pins ?? {}).map(([id, position]) => [position, id].join(" ").trim())}
          onLines=${(found) => change({ pins: found.length ? pinned(found) : undefined })} />
      </div>
      <div>
        <label>The whole request<textarea rows="11" spellcheck="false" value=${state.text}
          onInput=${(event) => update({ text: event.target.value })} /></label>
        ${request ? null : html`<p class="refused" role="alert">This is not a request. Write JSON with a list of candidates: {"viewer": …, "candidates": […]}.</p>`}
        <div><button class="main" disabled=${!request || state.busy}>Rank</button></div>
      </div>
    </form>
    <div role="status" aria-live="polite">${state.result && html`<${Head} answer=${state.result} />`}</div>
    ${state.result?.ranking && html`<${Ranking} answer=${state.result} surface=${found?.surfaces?.[application]} />`}`;
}

function parsed(text) {
  try {
    const value = JSON.parse(text);
    return value && typeof value === "object" && Array.isArray(value.candidates) ? value : null;
  } catch {
    return null;
  }
}

// A field of lines. While somebody types, a read of the state must not tidy them.
function Lines({ label, value, onLines, ...more }) {
  const [typed, setTyped] = useState(null);
  const take = (text) => {
    setTyped(text);
    onLines(text.split("\n").map((line) => line.trim()).filter(Boolean));
  };
  return html`<label>${label}<textarea ...${more} value=${typed ?? value.join("\n")} onBlur=${() => setTyped(null)}
    onInput=${(event) => take(event.target.value)} /></label>`;
}

// The candidates of these ids; those of before keep their fields.
function listed(found, { candidates }) {
  const before = new Map(candidates.map((one) => [one?.candidate ?? one, one]));
  return found.map((id) => before.get(id) ?? id);
}

// The pins of lines such as "1 s42". Without a position the service says what is missing.
function pinned(found) {
  return Object.fromEntries(found.map((line) => {
    const [, position, id] = /^(\d+)\s+(.+)$/.exec(line) ?? [null, null, line];
    return [id, position && Number(position)];
  }));
}

const ids = (request) => (request?.candidates ?? []).map((one) => one?.candidate ?? one);

function titled({ at_ms, request }) {
  const when = at_ms == null ? "example" : clock(at_ms);
  return `${when}: ${request.viewer ?? "anonymous"}, ${request.candidates?.length ?? 0} candidates`;
}

function Head({ answer }) {
  if (!answer.ranking) {
    return html`<p class="refused">${answer.detail}${answer.pointer ? ` (at ${answer.pointer})` : ""}</p>`;
  }
  const { timing_ms: time } = answer;
  const degraded = answer.degraded.length ? ` because of ${answer.degraded.join(", ")}` : "";
  const unknown = answer.unknown_candidates.length;
  return html`<h2>Answer: ${answer.rung}${degraded}</h2>
    <p>The ranking took ${number(time.total)} ms: ${number(time.queue)} ms in the queue, ${number(time.features)} ms for features and ${
      number(time.score)} ms for scores. It was made by the arm ${answer.arm} with ${answer.model ? `model ${answer.model}` : "no model"}, from
      features that were ${number(answer.freshness_ms)} ms old.
      ${answer.unknown_viewer && " The service does not know the viewer."}
      ${unknown > 0 && ` It does not know ${unknown} of the candidates.`}</p>`;
}

// The outcome whose probability the score is: the arm's only one. An amount, such as minutes, is none.
function probableOf({ arm }, surface) {
  const weights = surface?.experiment?.arms.find((one) => one.name === arm)?.weights ?? surface?.weights ?? {};
  const [[name, weight] = [], ...others] = Object.entries(weights), outcome = surface?.outcomes?.[name];
  return weight === 1 && !others.length && outcome && !outcome.until && !outcome.sum ? name : null;
}

function Ranking({ answer, surface }) {
  const { ranking } = answer, probable = probableOf(answer, surface);
  const rows = ranking.slice(0, MAX_ROWS).map((one) => [
    one.position, before(one), one.candidate, score(one, probable), html`<${Reasons} one=${one} />`,
    one.moved && (one.moved.rules.join("; ") || "others moved"),
    one.features && html`<details><summary>${Object.keys(one.features).length} features</summary>
      ${Object.entries(one.features).map(([name, value]) => html`<div>${name}: ${shown(value)}</div>`)}</details>`,
  ]);
  const more = ranking.length > MAX_ROWS ? `, the first ${MAX_ROWS} of ${ranking.length}` : "";
  const scores = probable ? `The score is the probability of ${probable}. ` : "";
  const scale = probable ? "in log-odds" : "in units of the score";
  return html`<${Table} caption=${`Ranking${more}. ${scores}A reason says how much a value adds to the score beside a typical candidate of this request, ${scale}.`}
    head=${["#position", "#by utility", "candidate", "#score", "reasons", "moved by", "features"]} rows=${rows} />`;
}

// The position before rules and pins; none where there are neither.
const before = ({ moved, position }) => (moved === undefined ? null : moved?.position_before ?? position);

// A probability, else a utility; with several outcomes beside what is predicted of each.
function score(one, probable) {
  if (one.score == null) return DASH;
  if (!one.predictions) return probable ? percent(one.score) : number(one.score, 3);
  return `${signed(one.score, 3)} (${Object.entries(one.predictions).map(([name, amount]) => `${name} ${shown(amount)}`).join(", ")})`;
}

function Reasons({ one }) {
  if (!one.reasons?.length) return one.reasons ? "nothing sets it apart" : "none: no model scored it";
  return html`<ul class="reasons">${one.reasons.map(({ contribution }, i) => html`
    <li><b class=${contribution < 0 ? "against" : "for"}>${signed(contribution, 2)}</b> ${one.words[i]}</li>`)}</ul>`;
}

function shown(value) {
  if (typeof value === "number" && !Number.isInteger(value)) return Number(value.toPrecision(3));
  return value == null ? "missing" : Array.isArray(value) ? value.join(", ") || "none" : String(value);
}
