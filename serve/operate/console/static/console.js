// The frame of the console: navigation, the stream of states, and the page that the hash names.
import { Models } from "./models.js";
import { Now } from "./now.js";
import { clock } from "./parts.js";
import { Try } from "./try.js";

const { html, render, useEffect, useState } = htmPreact;
const PAGES = { now: ["Now", Now], try: ["Try", Try], models: ["Models and experiments", Models] };
const MAX_POINTS = 300;
// The console sends a state every 2 s.
const SILENT_MS = 5000;

// The last message of the console, with all points, and `lost`: since when it has been silent.
function useStream() {
  const [state, setState] = useState({ points: [], found: null, gone: null, lost: null });
  useEffect(() => {
    let heard = Date.now(), source = null;
    function open() {
      source = new EventSource("/data/stream");
      source.onmessage = (event) => {
        const news = JSON.parse(event.data);
        heard = Date.now();
        setState((old) => ({
          ...old, ...news, lost: null, points: news.points ?? (news.point ? [...old.points, news.point].slice(-MAX_POINTS) : old.points),
        }));
      };
      // A browser connects again by itself, except after an answer that is no stream.
      source.onerror = () => source.readyState === EventSource.CLOSED && setTimeout(open, 1000);
    }
    open();
    const timer = setInterval(() => {
      if (Date.now() - heard > SILENT_MS) setState((old) => ({ ...old, lost: old.lost ?? heard }));
    }, 1000);
    return () => { clearInterval(timer); source.close(); };
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
  const state = useStream(), page = usePage();
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
