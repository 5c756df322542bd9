"use strict";
document.documentElement.className = "js";
document.addEventListener("DOMContentLoaded", () => {
  const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));

  // What changed, said once to who does not see it: the last of what comes within half a second.
  const told = document.getElementById("told");
  let waiting = 0;
  const tell = (words) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { told.textContent = words(); }, 500);
  };

  // Opening a prompt: by its button, or by a click on its row that selects nothing.
  const open = (body) => body.classList.contains("opened");
  const turn = (body, opened) => {
    body.classList.toggle("opened", opened);
    body.querySelector(".open").setAttribute("aria-expanded", String(opened));
  };
  all(".prompts > tbody").forEach((body) => {
    body.rows[0].addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button && (event.detail > 1 || String(getSelection()))) return;
      turn(body, !open(body));
      relabel.forEach((label) => label());
    });
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
        tell(() => `Sorted by ${button.textContent.trim()}, ${now}`);
      });
    });
  });

  // The chosen rate, as 1e-6, 0.001, 0,001, 1/1000, 1/1,000, 10^-3 or 2*10^-3; NaN where it is none of these.
  const number = (said) => {
    const whole = /^\d{1,3}(,\d{3})+$/.test(said) ? said.replaceAll(",", "") : said;
    return /^(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(whole) ? Number(whole) : NaN;
  };
  const rate = (typed) => {
    const said = typed.replaceAll(/\s/g, "").replaceAll("\u2212", "-").replace(/^0?,(\d+)$/, "0.$1");
    const power = /^(?:(.+)[*x\u00d7\u00b7])?10\^(-?\d+)$/i.exec(said);
    if (power) return (power[1] === undefined ? 1 : number(power[1])) * 10 ** Number(power[2]);
    const [part, whole, ...more] = said.split("/");
    return more.length ? NaN : number(part) / (whole === undefined ? 1 : number(whole));
  };
  const text = document.getElementById("risk");
  const slide = document.getElementById("slide");
  const said = document.getElementById("risk-said");
  let risk = rate(text.value);
  let written = text.value;
  const above = (body) => Number(body.dataset.rate) > risk;
  const count = () => {
    all("[data-run]").forEach((section) => {
      const table = section.nextElementSibling.querySelector(".prompts");
      const bodies = Array.from(table.tBodies);
      const surely = bodies.filter((b) => Number(b.dataset.low) > risk).length;
      const not = bodies.filter((b) => Number(b.dataset.high) <= risk).length;
      const found = { estimated: bodies.filter(above).length, surely, not, undecided: bodies.length - surely - not };
      all("[data-count]", section).forEach((place) => { place.textContent = found[place.dataset.count]; });
      all("[data-risk]", section).forEach((place) => { place.textContent = written; });
    });
    refilter.forEach((filter) => filter());
  };
  const counts = () => all("[data-run]").map((section) => {
    const named = section.dataset.run ? `${section.dataset.run}: ` : "";
    return named + section.querySelector(".lead").textContent.replace(/\s+/g, " ");
  }).join(" ");
  const choose = (chosen) => {
    const fits = chosen > 0 && chosen <= 1;
    text.setAttribute("aria-invalid", String(!fits));
    said.textContent = fits ? "" : `a rate lies between 0 and 1, as 1e-6 or 1/1000; counted is still above ${written}`;
    tell(fits ? counts : () => said.textContent);
    if (!fits) return;
    risk = chosen;
    written = text.value.trim();
    count();
  };
  const place = () => {
    slide.value = String(Math.log10(risk));
    slide.setAttribute("aria-valuetext", written);
  };
  text.addEventListener("input", () => { choose(rate(text.value)); place(); });
  slide.addEventListener("input", () => {
    text.value = (10 ** Number(slide.value)).toExponential(1).replace(".0", "");
    choose(rate(text.value));
    slide.setAttribute("aria-valuetext", written);
  });

  // Filters of each table of prompts.
  const relabel = [];
  const refilter = all(".tools").map((tools) => {
    const bodies = Array.from(document.getElementById(tools.dataset.for).tBodies);
    const find = tools.querySelector("[data-find]");
    const state = tools.querySelector("[data-state]");
    const showing = tools.querySelector("[data-showing]");
    const filtered = tools.parentElement.querySelector("[data-filtered]");
    const opener = tools.querySelector("[data-all]");
    const seen = () => bodies.filter((body) => !body.classList.contains("gone"));
    const opened = () => seen().length > 0 && seen().every(open);
    const label = () => { opener.textContent = opened() ? "Close all" : "Open all"; };
    const filter = () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      bodies.forEach((body) => {
        const kind = !state.value || (state.value === "above" ? above(body) : body.dataset.state === state.value);
        body.classList.toggle("gone", !kind || !words.every((word) => body.dataset.find.includes(word)));
      });
      const shown = seen().length;
      showing.textContent = shown === bodies.length ? "" : `${shown} of ${bodies.length} shown`;
      const by = [
        ...(words.length ? [`found by \u201c${words.join(" ")}\u201d`] : []),
        ...(state.value === "above" ? [`above ${written}`] : state.value ? [state.selectedOptions[0].text] : []),
      ];
      filtered.textContent = shown < bodies.length ? `Only ${shown} of ${bodies.length} prompts: ${by.join(", ")}.` : "";
      label();
    };
    const changed = () => { filter(); tell(() => showing.textContent || `all ${bodies.length} shown`); };
    find.addEventListener("input", changed);
    state.addEventListener("change", changed);
    opener.addEventListener("click", () => {
      const wanted = !opened();
      seen().forEach((body) => turn(body, wanted));
      label();
    });
    relabel.push(label);
    return filter;
  });
  // What was typed into the filters may be back with the page, after the reader went elsewhere.
  window.addEventListener("pageshow", () => { refilter.forEach((filter) => filter()); place(); });

  // Only what scrolls is a stop for keys.
  const watch = new ResizeObserver((regions) => regions.forEach(({ target }) => {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }));
  all(".wide").forEach((region) => watch.observe(region));

  // On paper a table is whole, and what its rows open to comes after it, two across; open rows have all the width.
  // Texts that may be harmful stay folded.
  let back = [];
  window.addEventListener("beforeprint", () => {
    if (back.length) return;
    all("details.printed:not([open])").forEach((part) => {
      part.open = true;
      back.push(() => { part.open = false; });
    });
    all("[data-sheets]").forEach((sheets) => {
      all("tbody:not(.gone)", document.getElementById(sheets.dataset.sheets)).forEach((body) => {
        const sheet = body.querySelector(".sheet");
        if (!sheet) return;
        const home = sheet.parentElement;
        sheet.dataset.name = body.querySelector(".open").textContent;
        sheet.classList.toggle("broad", open(body));
        sheets.append(sheet);
        back.push(() => home.append(sheet));
      });
    });
  });
  window.addEventListener("afterprint", () => { back.forEach((undo) => undo()); back = []; });
  place();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
});
