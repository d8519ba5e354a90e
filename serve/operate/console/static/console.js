// The frame of the console: navigation, the states, and the page that the hash names.
import { Models } from "./models.js";
import { Now } from "./now.js";
import { clock } from "./parts.js";
import { Try } from "./try.js";

const { html, render, useEffect, useState } = htmPreact;
const PAGES = { now: ["Now", Now], try: ["Try", Try], models: ["Models and experiments", Models] };
// The console keeps an hour of points, at most one for every read.
const HISTORY_MS = 3600e3;
const EVERY_MS = 2000, SILENT_MS = 5000;

// What the console said last, with all points, and `lost`: since when it has been silent.
function useNews() {
  const [state, setState] = useState({ points: [], found: null, gone: null, lost: null });
  useEffect(() => {
    let heard = Date.now(), newest = 0, timer = null;
    async function ask() {
      try {
        const answer = await fetch(`/data/state?after=${newest}`, { signal: AbortSignal.timeout(SILENT_MS) });
        const news = await answer.json();
        heard = Date.now();
        newest = news.points.at(-1)?.[0] ?? newest;
        const recent = ([at]) => at >= newest - HISTORY_MS;
        setState((old) => ({ ...news, lost: null, points: [...old.points, ...news.points].filter(recent) }));
      } catch {
        setState((old) => ({ ...old, lost: old.lost ?? heard }));
      }
      timer = setTimeout(ask, EVERY_MS);
    }
    ask();
    return () => clearTimeout(timer);
  }, []);
  return state;
}

function usePage() {
  const named = () => (location.hash.slice(1) in PAGES ? location.hash.slice(1) : "now");
  const [page, setPage] = useState(named());
  useEffect(() => {
    const go = () => setPage(named());
    addEventListener("hashchange", go);
    return () => removeEventListener("hashchange", go);
  }, []);
  return page;
}

function Console() {
  const state = useNews(), page = usePage();
  const [title, Page] = PAGES[page];
  useEffect(() => { document.title = `${title} · tabrank console`; }, [title]);
  const link = ([name, [text]]) =>
    html`<a href=${`#${name}`} aria-current=${name === page ? "page" : null}>${text}</a>`;
  return html`
    <header>
      <h1>tabrank console</h1>
      <nav aria-label="Pages">${Object.entries(PAGES).map(link)}</nav>
      <span class="hint">${state.found?.url} ${state.found && clock(state.found.at)}</span>
    </header>
    <main><${Page} ...${state} /></main>`;
}

render(html`<${Console} />`, document.body);
