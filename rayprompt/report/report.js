"use strict";
/* Sorts tables, reads values off charts, and holds any two prompts against each other. Text goes in as text only. */
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const SVG = "http://www.w3.org/2000/svg";
  const make = (name, text = "", className = "") => {
    const element = document.createElement(name);
    element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  document.documentElement.classList.add("scripted");

  /* Tables */
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en") : x - y;
  };
  const sortBy = (table, header, index) => {
    const down = header.getAttribute("aria-sort") !== "descending";
    for (const other of all("thead th", table)) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    for (const body of table.tBodies) {
      const rows = [...body.rows].map((row) => {
        const cell = row.cells[index];
        return [cell.dataset.v ?? cell.textContent.trim(), row];
      });
      const filled = rows.filter(([value]) => value !== "");
      filled.sort(([a], [b]) => (down ? compare(b, a) : compare(a, b)));
      body.append(...filled.map(([, row]) => row), ...rows.filter(([value]) => value === "").map(([, row]) => row));
    }
  };
  for (const table of all("table.sortable")) {
    all("thead th", table).forEach((header, index) => {
      if (!header.textContent) return;
      const button = make("button", header.textContent);
      button.type = "button";
      button.addEventListener("click", () => sortBy(table, header, index));
      header.replaceChildren(button);
    });
  }

  /* Charts: the numbers stand in the table below each */
  for (const chart of all(".chart")) {
    const plot = chart.querySelector(".plot");
    const svg = plot.querySelector("svg");
    const tip = plot.querySelector(".tip");
    const layer = svg.querySelector(".hover");
    const names = all("thead th", chart).slice(1).map((cell) => cell.textContent);
    const rows = all("tbody tr", chart).map((row) => ({
      x: Number(row.cells[0].dataset.v),
      shown: row.cells[0].textContent,
      cells: [...row.cells].slice(1).map((cell) => [cell.dataset.v, cell.textContent]),
    }));
    const [x0, x1, y0, y1] = ["x0", "x1", "y0", "y1"].map((name) => Number(svg.dataset[name]));
    const [left, top, right, bottom] = svg.dataset.box.split(" ").map(Number);
    const across = (x) => left + ((x - x0) / (x1 - x0)) * (right - left);
    const up = (y) => bottom - ((Math.min(Math.max(y, y0), y1) - y0) / (y1 - y0)) * (bottom - top);
    const keys = all(".legend svg", chart);
    let at = rows.length - 1;
    const hide = () => {
      tip.hidden = true;
      layer.replaceChildren();
    };
    const draw = (name, attributes) => {
      const element = document.createElementNS(SVG, name);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      layer.append(element);
    };
    const show = (index) => {
      at = index;
      const row = rows[at];
      layer.replaceChildren();
      draw("line", { x1: across(row.x), x2: across(row.x), y1: top, y2: bottom, class: "rule-x" });
      const title = make("p", `${row.shown} ${chart.dataset.unit}`);
      tip.replaceChildren(title);
      const said = [];
      row.cells.forEach(([value, text], i) => {
        if (value === undefined) return;
        const key = keys[i].querySelector(".series").getAttribute("class");
        draw("circle", { cx: across(row.x), cy: up(Number(value)), r: 5, class: `${key} mark` });
        const line = make("div");
        line.append(keys[i].cloneNode(true), make("bdi", names[i]), make("span", text));
        tip.append(line);
        said.push(`${names[i]} ${text}`);
      });
      tip.hidden = false;
      const place = (across(row.x) / svg.viewBox.baseVal.width) * plot.clientWidth;
      const room = plot.clientWidth - tip.offsetWidth;
      const beside = place > plot.clientWidth / 2 ? place - tip.offsetWidth - 12 : place + 12;
      tip.style.left = `${Math.max(0, Math.min(room, beside))}px`;
      plot.setAttribute("aria-valuenow", row.x);
      plot.setAttribute("aria-valuetext", `${row.shown} ${chart.dataset.unit}: ${said.join("; ")}`);
    };
    const nearest = (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      let best = 0;
      rows.forEach((row, i) => {
        if (Math.abs(across(row.x) - x) < Math.abs(across(rows[best].x) - x)) best = i;
      });
      show(best);
    };
    plot.tabIndex = 0;
    plot.setAttribute("role", "slider");
    plot.setAttribute("aria-label", chart.querySelector("figcaption strong").textContent);
    plot.setAttribute("aria-valuemin", rows[0].x);
    plot.setAttribute("aria-valuemax", rows[at].x);
    plot.setAttribute("aria-valuenow", rows[at].x);
    plot.addEventListener("pointermove", nearest);
    plot.addEventListener("pointerdown", nearest);
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", hide);
    plot.addEventListener("focus", () => plot.matches(":focus-visible") && show(at));
    plot.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, Home: 0, End: rows.length - 1 };
      if (event.key === "Escape") hide();
      if (!(event.key in steps)) return;
      event.preventDefault();
      show(Math.min(rows.length - 1, Math.max(0, steps[event.key])));
    });
  }

  /* Examples */
  const MOST = 100;
  const KINDS = { better: "first better", worse: "second better", bad: "neither right", good: "both right" };
  const held = (a, b) => (a > b ? "better" : a < b ? "worse" : a >= 0.5 ? "good" : "bad");
  const known = (value) => value !== "-" && value !== null && value !== undefined;
  const data = JSON.parse(document.getElementById("data").textContent).matrices;
  all(".compare").forEach((block, index) => {
    const matrix = data[index];
    const target = block.querySelector(".pair");
    const controls = make("div", "", "controls");
    const choose = (name, options, value, className) => {
      const label = make("label", name, className);
      const select = make("select");
      for (const [key, text] of options) {
        const option = make("option", text);
        option.value = key;
        select.append(option);
      }
      select.value = value;
      select.addEventListener("change", () => render());
      label.append(select);
      controls.append(label);
      return select;
    };
    const named = matrix.prompts.map((prompt, i) => [String(i), prompt.length > 90 ? `${prompt.slice(0, 89)}…` : prompt]);
    const first = choose("first prompt", named, block.dataset.first, "wide");
    const second = choose("second prompt", named, block.dataset.second, "wide");
    const part = choose("part", Object.keys(matrix.parts).map((name) => [name, name]), block.dataset.part, "");
    const kind = choose("examples", Object.entries(KINDS), "better", "");
    target.before(controls);
    const render = () => {
      const here = matrix.parts[part.value];
      const [i, j] = [Number(first.value), Number(second.value)];
      const [wins, losses, n] = [here.wins[i][j], here.wins[j][i], here.both[i][j]];
      const p = i === j ? 1 : here.p[Math.max(i, j)][Math.min(i, j)];
      const lead = make("p");
      const [one, other] = [matrix.prompts[i], matrix.prompts[j]].map((text) => make("strong", text));
      const missing = [i, j].some((k) => !here.scored[k]);
      const why = part.value === "test" ? "test was not opened for one of them" : "one of them has no scores here";
      const counts = `better on ${wins}, worse on ${losses}, alike on ${n - wins - losses} of ${n} examples`;
      const test = `p = ${p} (${here.binary ? "exact McNemar on right answers" : "sign test"}).`;
      lead.append(one, " against ", other, missing ? `: ${why}.` : ` on ${part.value}: ${counts}; ${test}`);
      const list = make("ol");
      list.tabIndex = 0;
      let total = 0;
      here.examples.forEach((example, at) => {
        const [a, b] = [here.values[i][at], here.values[j][at]];
        if (!known(a) || !known(b) || held(Number(a), Number(b)) !== kind.value) return;
        total += 1;
        if (total > MOST) return;
        const item = make("li");
        item.append(make("span", example.t, "text"), " ");
        if (example.g) item.append(make("span", example.g, "gold"));
        for (const [name, k] of [["first", i], ["second", j]]) {
          if (example.c && k in example.c) {
            const wrote = make("span", `${name} wrote: `, "wrote");
            wrote.append(make("span", example.c[k], "text"));
            item.append(wrote);
          }
        }
        list.append(item);
      });
      const cut = here.examples.length < here.n ? ` The page holds ${here.examples.length} of ${here.n} examples, those that divide the prompts first.` : "";
      const few = total > MOST ? ` The first ${MOST} are listed.` : "";
      const about = make("p", missing ? "" : `${KINDS[kind.value]}: ${total} examples.${few}${cut}`, "quiet");
      target.replaceChildren(lead, about, list);
    };
    render();
  });
})();
