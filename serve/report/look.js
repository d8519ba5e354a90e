// Plots and sortable tables of a report. The page is readable without it: plots repeat tables.
"use strict";

const THEME = {
  background: "transparent",
  font: "system-ui, sans-serif",
  aria: false,
  view: { stroke: null },
  axis: {
    labelColor: "var(--muted)", titleColor: "var(--muted)", domainColor: "var(--line)",
    tickColor: "var(--line)", gridColor: "var(--line)", gridOpacity: 0.6, labelFontSize: 12,
    titleFontSize: 12, titleFontWeight: "normal", titlePadding: 8, labelLimit: 220, labelOverlap: true,
  },
  axisX: { grid: false, labelAngle: 0 },
};

for (const place of document.querySelectorAll(".plot")) {
  const spec = JSON.parse(place.querySelector("script").textContent);
  // The label of the place describes the plot; its numbers are in the page's tables.
  const inside = document.createElement("div");
  inside.setAttribute("aria-hidden", "true");
  place.replaceChildren(inside);
  vegaEmbed(inside, spec, { actions: false, renderer: "svg", config: THEME, tooltip: { theme: "page" } });
}

// A plot inside a closed list has no width until the list opens.
for (const list of document.querySelectorAll("details")) {
  list.addEventListener("toggle", () => dispatchEvent(new Event("resize")));
}
addEventListener("beforeprint", () => {
  for (const list of document.querySelectorAll("details:not(.raw)")) list.open = true;
});

// The first number of a cell; a cell without one comes last in either direction.
function numberOf(text) {
  const found = text.replaceAll(",", "").replaceAll("−", "-").match(/[-+]?\d+(\.\d+)?(e[-+]?\d+)?/i);
  return found ? Number(found[0]) : null;
}

function sort(table, head) {
  const column = head.cellIndex;
  const ascending = head.getAttribute("aria-sort") !== "ascending";
  const numeric = head.classList.contains("number");
  const rows = [...table.tBodies[0].rows].map((row) => {
    const text = row.cells[column].textContent;
    return { row, key: numeric ? numberOf(text) : text };
  });
  rows.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
    const order = numeric ? a.key - b.key : a.key.localeCompare(b.key, "en", { numeric: true });
    return ascending ? order : -order;
  });
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  table.tBodies[0].append(...rows.map((one) => one.row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const head of table.tHead.querySelectorAll("th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, head));
    head.append(button);
  }
}
