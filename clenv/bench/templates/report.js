"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const root = document.documentElement;

  // Theme: the system's, until the button is pressed; on paper always light.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  let chosen = null;
  const paint = (theme) => {
    root.dataset.theme = theme;
    button.textContent = theme === "dark" ? "Light theme" : "Dark theme";
  };
  const current = () => chosen ?? (system.matches ? "dark" : "light");
  paint(current());
  button.hidden = false;
  button.addEventListener("click", () => { chosen = current() === "dark" ? "light" : "dark"; paint(chosen); });
  system.addEventListener("change", () => paint(current()));

  // Sorting: by the number in data-v, else by the text; what has no value comes last either way.
  const value = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.v === undefined) return cell.textContent.trim().toLowerCase();
    return cell.dataset.v === "" || cell.dataset.v === "nan" ? null : Number(cell.dataset.v.replace("inf", "Infinity"));
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b || 0 : String(a).localeCompare(String(b)));
  const sort = (head) => {
    const table = head.closest("table");
    const down = head.getAttribute("aria-sort") === "ascending";
    const sign = down ? -1 : 1;
    all("th", table).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => [value(row, head.cellIndex), row]);
    keyed.sort(([a], [b]) => (a === null) - (b === null) || (a === b ? 0 : sign * compare(a, b)));
    body.append(...keyed.map(([, row]) => row));
  };
  all("th button").forEach((item) => item.addEventListener("click", () => sort(item.closest("th"))));

  // Filters: every element that names an agent, a scenario, a seed or a state.
  const filters = document.getElementById("filters");
  const shown = document.getElementById("shown");
  const wanted = () => Object.fromEntries(new FormData(filters));
  const apply = () => {
    const want = wanted();
    const words = want.agent.toLowerCase().split(",").map((word) => word.trim()).filter(Boolean);
    const keeps = (element) => {
      const { agent, scenario, seed, state } = element.dataset;
      if (agent !== undefined && words.length && !words.some((word) => agent.toLowerCase().includes(word))) return false;
      if (scenario !== undefined && want.scenario && scenario !== want.scenario) return false;
      if (seed !== undefined && want.seed && seed !== want.seed) return false;
      return state === undefined || !want.state || state === want.state;
    };
    all("[data-agent], [data-scenario]").forEach((element) => element.classList.toggle("hidden", !keeps(element)));
    const names = JSON.parse(document.getElementById("agents").textContent);
    all("[data-line]").forEach((line) => {
      line.classList.toggle("hidden", !keeps({ dataset: { agent: names[Number(line.dataset.line)] } }));
    });
    if (want.scenario) all("details.part:not(.hidden)").forEach((part) => { part.open = true; });
    const runs = all(".run");
    shown.textContent = `${runs.filter((run) => !run.classList.contains("hidden")).length} of ${runs.length} runs`;
  };
  if (filters) {
    filters.hidden = false;
    filters.addEventListener("input", apply);
    filters.addEventListener("submit", (event) => event.preventDefault());
    filters.addEventListener("reset", () => setTimeout(apply));
    apply();
  }

  // An agent pointed at in a legend or a table stands out in the figures around.
  const point = (place) => all("[data-line]").forEach((line) => {
    line.style.opacity = place === null || line.dataset.line === place ? 1 : 0.15;
  });
  all("[data-place]").forEach((item) => {
    item.addEventListener("pointerenter", () => point(item.dataset.place));
    item.addEventListener("pointerleave", () => point(null));
  });

  // A link to a run opens it.
  const open = () => {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    if (target) target.scrollIntoView();
  };
  addEventListener("hashchange", open);
  open();

  all(".copy").forEach((item) => {
    item.hidden = false;
    item.addEventListener("click", async () => {
      await navigator.clipboard.writeText(item.closest(".command").querySelector("code").textContent);
      item.textContent = "Copied";
      setTimeout(() => { item.textContent = "Copy"; }, 1500);
    });
  });

  // On paper everything is open, and light.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details:not([open])");
    closed.forEach((item) => { item.open = true; });
    paint("light");
  });
  addEventListener("afterprint", () => { closed.forEach((item) => { item.open = false; }); paint(current()); });
})();
