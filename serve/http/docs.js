// A file of its own, because the page's Content-Security-Policy allows no inline script.
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

const ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  displayRequestDuration: true,
  tryItOutEnabled: true,
  defaultModelsExpandDepth: 0,
  onComplete: () => {
    for (const name of [["ranking", "rank"], ["events", "events"]]) {
      ui.layoutActions.show(["operations", ...name], true);
    }
  },
});
