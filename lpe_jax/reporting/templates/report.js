"use strict";
document.documentElement.className = "js";
document.addEventListener("DOMContentLoaded", () => {
  const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));

  // Opening a prompt.
  const turn = (body, open) => {
    body.classList.toggle("opened", open);
    body.querySelector(".open").setAttribute("aria-expanded", String(open));
  };
  all(".open").forEach((button) => {
    const body = button.closest("tbody");
    button.addEventListener("click", () => turn(body, !body.classList.contains("opened")));
  });

  // Sorting: by a cell's data-v where it has one, else by its text. Equal rows keep their order.
  const value = (body, column) => {
    const cell = body.rows[0].cells[column];
    return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent.trim();
  };
  const order = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  all(".sortable").forEach((table) => {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const bodies = Array.from(table.tBodies);
        if (!bodies.length) return;
        const numbers = typeof value(bodies[0], column) === "number";
        // What is largest is what matters, of numbers; names are read from A.
        const first = numbers ? "descending" : "ascending";
        const other = numbers ? "ascending" : "descending";
        const now = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach((h) => h.hasAttribute("aria-sort") && h.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", now);
        const keyed = bodies.map((body) => [value(body, column), body]);
        keyed.sort((a, b) => (now === "ascending" ? order(a[0], b[0]) : order(b[0], a[0])));
        table.append(...keyed.map((pair) => pair[1]));
      });
    });
  });

  // The chosen rate.
  const text = document.getElementById("risk");
  const slide = document.getElementById("slide");
  const said = document.getElementById("risk-said");
  let risk = Number(text.value);
  const above = (body) => Number(body.dataset.rate) > risk;
  const count = () => {
    all("[data-run]").forEach((section) => {
      const table = section.nextElementSibling.querySelector(".prompts");
      const bodies = Array.from(table.tBodies);
      const surely = bodies.filter((b) => Number(b.dataset.low) > risk).length;
      const not = bodies.filter((b) => Number(b.dataset.high) <= risk).length;
      const found = { estimated: bodies.filter(above).length, surely, not, undecided: bodies.length - surely - not };
      all("[data-count]", section).forEach((place) => { place.textContent = found[place.dataset.count]; });
      all("[data-risk]", section).forEach((place) => { place.textContent = text.value; });
    });
    refilter.forEach((filter) => filter());
  };
  const choose = (chosen) => {
    const fits = chosen > 0 && chosen <= 1;
    text.setAttribute("aria-invalid", String(!fits));
    said.textContent = fits ? "" : "a rate lies between 0 and 1, as 1e-6";
    if (!fits) return;
    risk = chosen;
    count();
  };
  const place = () => { slide.value = String(Math.log10(risk)); };
  text.addEventListener("input", () => { choose(Number(text.value)); place(); });
  slide.addEventListener("input", () => {
    text.value = (10 ** Number(slide.value)).toExponential(1).replace(".0", "");
    choose(Number(text.value));
  });

  // Filters of each table of prompts.
  const refilter = all(".tools").map((tools) => {
    const bodies = Array.from(document.getElementById(tools.dataset.for).tBodies);
    const find = tools.querySelector("[data-find]");
    const state = tools.querySelector("[data-state]");
    const showing = tools.querySelector("[data-showing]");
    const opener = tools.querySelector("[data-all]");
    const filter = () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      bodies.forEach((body) => {
        const kind = !state.value || (state.value === "above" ? above(body) : body.dataset.state === state.value);
        const fits = kind && words.every((word) => body.dataset.find.includes(word));
        body.classList.toggle("gone", !fits);
        shown += fits;
      });
      showing.textContent = shown === bodies.length ? "" : `${shown} of ${bodies.length} shown`;
    };
    find.addEventListener("input", filter);
    state.addEventListener("change", filter);
    opener.addEventListener("click", () => {
      const open = opener.textContent === "Open all";
      bodies.filter((body) => !body.classList.contains("gone")).forEach((body) => turn(body, open));
      opener.textContent = open ? "Close all" : "Open all";
    });
    return filter;
  });
  // Paper opens nothing; texts that may be harmful stay folded on it too.
  window.addEventListener("beforeprint", () => all("details.printed").forEach((part) => { part.open = true; }));
  place();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
});
