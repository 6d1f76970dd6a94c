// The maps: zoom, move, show one class alone. Without this script they stand still.
"use strict";
document.documentElement.classList.add("scripted");
for (const figure of document.querySelectorAll("figure.map")) {
  const svg = figure.querySelector("svg");
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  const thumbnail = Number(svg.dataset.thumbnail), levels = [...svg.querySelectorAll("[data-scale]")];
  const deepest = Math.max(...levels.map((level) => Number(level.dataset.scale)));
  let x = 0, y = 0, zoom = 1;

  // Thumbnails keep their size on the screen, and more come into view as there is room.
  function draw() {
    x = Math.min(Math.max(x, 0), width - width / zoom);
    y = Math.min(Math.max(y, 0), height - height / zoom);
    svg.setAttribute("viewBox", [x, y, width / zoom, height / zoom].join(" "));
    const shown = svg.clientWidth || width, pixels = Math.max(30, thumbnail * Math.min(1, shown / width));
    const scale = shown / width * zoom * thumbnail / pixels;
    svg.style.setProperty("--t", thumbnail / Math.min(scale, deepest));
    svg.style.touchAction = zoom > 1 ? "none" : "pan-y";
    for (const level of levels)
      level.style.display = Number(level.dataset.scale) <= scale * 1.05 ? "" : "none";
  }

  function unit() { return width / zoom / svg.clientWidth; }

  // The point of the map below (px, py) on the screen stays where it is.
  function zoomBy(factor, px, py) {
    const box = svg.getBoundingClientRect(), before = unit();
    const dx = (px ?? box.left + box.width / 2) - box.left, dy = (py ?? box.top + box.height / 2) - box.top;
    zoom = Math.min(Math.max(zoom * factor, 1), 20);
    x += dx * (before - unit());
    y += dy * (before - unit());
    draw();
  }

  for (const button of figure.querySelectorAll("[data-zoom]"))
    button.onclick = () => zoomBy(Number(button.dataset.zoom));
  svg.ondblclick = (event) => zoomBy(2, event.clientX, event.clientY);
  svg.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY / 200), event.clientX, event.clientY);
  }, { passive: false });
  svg.onkeydown = (event) => {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const step = steps[event.key];
    if (event.key === "+" || event.key === "-") zoomBy(event.key === "+" ? 2 : 0.5);
    else if (step && zoom > 1) {
      x += step[0] * width / zoom / 8;
      y += step[1] * height / zoom / 8;
      draw();
    } else return;
    event.preventDefault();
  };

  const fingers = new Map();
  const apart = () => {
    const [a, b] = [...fingers.values()];
    return Math.hypot(a[0] - b[0], a[1] - b[1]);
  };
  svg.onpointerdown = (event) => {
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    svg.setPointerCapture(event.pointerId);
  };
  svg.onpointermove = (event) => {
    const last = fingers.get(event.pointerId);
    if (!last) return;
    const before = fingers.size === 2 ? apart() : 0;
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (fingers.size === 2 && before) {
      const [a, b] = [...fingers.values()];
      zoomBy(apart() / before, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
    }
    x -= (event.clientX - last[0]) * unit() / fingers.size;
    y -= (event.clientY - last[1]) * unit() / fingers.size;
    draw();
  };
  svg.onpointerup = svg.onpointercancel = (event) => fingers.delete(event.pointerId);

  for (const button of figure.querySelectorAll(".legend button"))
    button.onclick = () => {
      const alone = button.getAttribute("aria-pressed") !== "true";
      for (const other of figure.querySelectorAll(".legend button"))
        other.setAttribute("aria-pressed", alone && other === button);
      for (const item of svg.querySelectorAll("[data-c]"))
        item.classList.toggle("off", alone && item.dataset.c !== button.dataset.c);
    };
  new ResizeObserver(draw).observe(svg);
}
