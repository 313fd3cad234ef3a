"use strict";
const plot = document.getElementById("map-plot");
if (plot) {
  const canvas = plot.querySelector("svg");
  const points = Array.from(canvas.querySelectorAll(":scope > use"));
  const tip = plot.querySelector(".tip");
  const [label, pred, path] = ["label", "pred", "path"].map((name) => tip.querySelector(`.tip-${name}`));
  const live = plot.querySelector(".live");
  const buttons = Array.from(document.querySelectorAll(".legend button"));
  const across = points.slice().sort((a, b) => a.getBoundingClientRect().x - b.getBoundingClientRect().x);
  let current = null;
  const hide = () => {
    tip.hidden = true;
    if (current) current.classList.remove("at");
    current = null;
  };
  const show = (point) => {
    hide();
    current = point;
    point.classList.add("at");
    const { i, l, y, p } = point.dataset;
    tip.querySelector(".thumb").style.display = i ? "" : "none";
    tip.querySelector("use").setAttribute("href", i ? `#${i}` : "");
    label.textContent = l;
    pred.textContent = y && y !== l ? `predicted ${y}` : "";
    path.textContent = p;
    tip.hidden = false;
    const box = plot.getBoundingClientRect();
    const at = point.getBoundingClientRect();
    const x = at.x + at.width / 2 - box.x;
    const y0 = at.y - box.y;
    tip.style.left = `${Math.max(8, Math.min(x - tip.offsetWidth / 2, box.width - tip.offsetWidth - 8))}px`;
    tip.style.top = `${y0 > tip.offsetHeight + 12 ? y0 - tip.offsetHeight - 12 : y0 + at.height + 12}px`;
  };
  canvas.addEventListener("pointerover", (event) => {
    const point = event.target.closest("use");
    if (point) show(point);
  });
  canvas.addEventListener("pointerleave", hide);
  canvas.addEventListener("click", (event) => {
    if (!event.target.closest("use")) hide();
  });
  canvas.addEventListener("blur", hide);
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    const visible = across.filter((point) => !point.classList.contains("dim"));
    const place = visible.indexOf(current);
    const next = visible[(place < 0 ? (step > 0 ? 0 : visible.length - 1) : place + step + visible.length) % visible.length];
    if (!next) return;
    show(next);
    live.textContent = [label, pred, path].map((part) => part.textContent).filter(Boolean).join(", ");
  });
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const pressed = button.getAttribute("aria-pressed") !== "true";
      for (const other of buttons) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(pressed));
      for (const point of points) point.classList.toggle("dim", pressed && point.dataset.l !== button.dataset.l);
    });
  }
}
const reveal = () => {
  const cell = location.hash.startsWith("#cell-") && document.getElementById(location.hash.slice(1));
  if (cell) cell.focus({ preventScroll: true });
};
addEventListener("hashchange", reveal);
