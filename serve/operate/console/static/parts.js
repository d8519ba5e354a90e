// Numbers in words, and the small parts that several pages use.
const { html, useState } = htmPreact;

export const DASH = "–";
export const AWAY = "not known for a cluster at an address";

export function number(value, digits = 1) {
  if (value == null) return DASH;
  if (Math.abs(value) >= 100) digits = 0;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export const withUnit = (value, unit, digits) => (value == null ? DASH : `${number(value, digits)} ${unit}`);
export const percent = (share) => withUnit(share == null ? null : 100 * share, "%");
export const signed = (value, digits = 4) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
export const shares = (found) =>
  Object.entries(found ?? {}).map(([name, share]) => `${name} ${percent(share)}`).join(", ");

// The time of day of an ISO time or of ms since 1970; logs are in UTC too.
export function clock(time) {
  if (time == null) return DASH;
  const iso = new Date(time).toISOString();
  const isToday = iso.slice(0, 10) === new Date().toISOString().slice(0, 10);
  return `${isToday ? "" : `${iso.slice(0, 10)} `}${iso.slice(11, 19)} UTC`;
}

const TONES = {
  healthy: ["good", "✓"], degraded: ["unsure", "!"], down: ["bad", "✕"], unknown: ["neutral", "?"],
};

// The first lines of a page: what holds, why or what to do, and what that does not say.
export function Banner({ state, line, doubt, children }) {
  const [tone, sign] = TONES[state] ?? TONES.unknown;
  return html`<section class="verdict ${tone}" aria-label="Verdict">
    <span class="sign" aria-hidden="true">${sign}</span>
    <div role="status" aria-live="polite"><strong>${line}</strong></div>
    ${children}
    ${doubt && html`<p class="doubt"><b>What this does not say:</b> ${doubt}</p>`}
  </section>`;
}

// `rows` are lists of cells; columns whose head begins with # hold numbers. Empty columns are left out.
export function Table({ caption, head, rows }) {
  if (!rows.length) return null;
  const places = head.map((_, i) => i).filter((i) => rows.some((row) => row[i]));
  const kind = (i) => (head[i].startsWith("#") ? "number" : "");
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${caption}><table>
    <caption>${caption}</caption>
    <thead><tr>${places.map((i) => html`<th scope="col" class=${kind(i)}>${head[i].replace("#", "")}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => html`<tr>${places.map((i) => html`<td class=${kind(i)}>${row[i]}</td>`)}</tr>`)}</tbody>
  </table></div>`;
}

// Text with commands between backticks.
export const Words = ({ text }) => text.split("`").map((part, i) => (i % 2 ? html`<code>${part}</code>` : part));

// A command to copy. The page itself changes nothing.
export function Command({ text, about }) {
  const [copied, setCopied] = useState("");
  const copy = () => navigator.clipboard.writeText(text).then(() => setCopied(text), () => setCopied(""));
  return html`<div class="command">
    ${about && html`<span>${about}</span>`}<code>${text}</code>
    <button type="button" onClick=${copy} aria-label=${`Copy ${text}`}>${copied === text ? "Copied" : "Copy"}</button>
  </div>`;
}

// The JSON of a URL, or an object with `detail` that says what is wrong.
export async function load(url, options) {
  try {
    const response = await fetch(url, options);
    const body = await response.json();
    return response.ok ? body : { ...body, detail: body.detail ?? `${response.status} ${response.statusText}` };
  } catch {
    return { detail: "The console does not answer. Start it: python -m serve console" };
  }
}
