"use strict";
(() => {
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const wantsDark = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem("moeracle-theme"); } catch { return null; } };
  const isDark = () => (root.dataset.theme || (wantsDark.matches ? "dark" : "light")) === "dark";
  const show = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-pressed", String(isDark()));
    theme.setAttribute("aria-label", isDark() ? "Use the light theme" : "Use the dark theme");
  };
  if (["light", "dark"].includes(stored())) root.dataset.theme = stored();
  show();
  wantsDark.addEventListener("change", show);
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("moeracle-theme", root.dataset.theme); } catch { /* a page opened from a file may not store */ }
    show();
  });

  const copyText = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      area.style.position = "fixed";
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  };
  for (const button of document.querySelectorAll("button.copy")) {
    const words = button.innerHTML;
    button.setAttribute("aria-live", "polite");
    button.addEventListener("click", async () => {
      button.textContent = (await copyText(button.dataset.copy)) ? "Copied" : "Press Ctrl+C";
      button.focus();
      setTimeout(() => { button.innerHTML = words; }, 1600);
    });
  }

  const maps = JSON.parse(document.getElementById("maps").textContent);
  const span = (cell, step, count) => {
    const first = cell * step, last = Math.min(count, first + step) - 1;
    return first === last ? `${first}` : `${first} to ${last}`;
  };
  const words = (value, unit) => {
    const plain = { wrong: ["right", "wrong"], different: ["the same", "different"] }[unit];
    if (plain) return plain[value === 0 ? 0 : 1];
    if (value === 0) return "legal";
    const error = Number(value === "inf" || value === "nan" ? NaN : value);
    if (Number.isNaN(error)) return "not finite";
    return error < 1 ? "illegal, under 1 ulp outside" : `illegal, ${Math.round(error).toLocaleString("en")} ulp outside`;
  };
  for (const svg of document.querySelectorAll("svg[data-map]")) {
    const map = maps[Number(svg.dataset.map)];
    const [left, top, wide, tall] = ["left", "top", "wide", "tall"].map((name) => Number(svg.dataset[name]));
    const height = map.cells.length, width = height ? map.cells[0].length : 0;
    const cursor = svg.querySelector(".cursor");
    const reading = svg.parentElement.querySelector(".reading");
    let at = [0, 0];
    const go = (row, column) => {
      if (!height || !width) return;
      at = [Math.max(0, Math.min(height - 1, row)), Math.max(0, Math.min(width - 1, column))];
      cursor.setAttribute("x", left + at[1] * wide);
      cursor.setAttribute("y", top + at[0] * tall);
      cursor.setAttribute("visibility", "visible");
      const where = `${map.axis} ${span(at[0], map.row_step, map.rows)}, column ${span(at[1], map.column_step, map.columns)}`;
      reading.textContent = `${where}: ${words(map.cells[at[0]][at[1]], map.unit)}`;
    };
    const leave = () => { cursor.setAttribute("visibility", "hidden"); reading.textContent = ""; };
    svg.addEventListener("keydown", (event) => {
      const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (steps) go(at[0] + steps[0], at[1] + steps[1]);
      else if (event.key === "Home") go(at[0], 0);
      else if (event.key === "End") go(at[0], width - 1);
      else if (event.key === "Escape") leave();
      else return;
      event.preventDefault();
    });
    svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) go(at[0], at[1]); });
    svg.addEventListener("blur", leave);
    svg.addEventListener("pointermove", (event) => {
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const column = Math.floor((point.x - left) / wide), row = Math.floor((point.y - top) / tall);
      if (row >= 0 && row < height && column >= 0 && column < width) go(row, column); else leave();
    });
    svg.addEventListener("pointerleave", leave);
  }
})();
