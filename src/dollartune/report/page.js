"use strict";
// Draws each chart when it comes near the screen. Everything it needs is in the page; nothing is fetched.
(() => {
  let charts;
  const soft = "var(--ink-soft)", rule = "var(--rule)";
  const font = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif';

  // Colors are style-sheet variables, so that charts follow the page from light to dark and onto paper.
  const look = (width) => ({
    background: "transparent", font, padding: 2,
    view: { stroke: null },
    axis: {
      labelColor: soft, titleColor: soft, gridColor: rule, domainColor: "var(--rule-strong)", tickColor: "var(--rule-strong)",
      titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 12,
    },
    axisY: { labelLimit: Math.max(90, Math.min(230, 0.34 * width)) },
    legend: { labelColor: soft, titleColor: soft, labelFontSize: 12, columns: Math.max(1, Math.floor(width / 150)), rowPadding: 4 },
    header: { labelColor: "var(--ink)", titleColor: soft, labelFontSize: 12, labelPadding: 4 },
    text: { color: "var(--ink)" },
  });

  // Small charts side by side: as many columns as fit.
  const fitted = (spec, width) => {
    const copy = structuredClone(spec);
    const { panels, datasets } = copy.usermeta;
    copy.datasets = Object.fromEntries(datasets.map((name) => [name, charts.datasets[name]]));
    if (!panels) {
      copy.autosize = { type: "fit-x", contains: "padding" };
      return copy;
    }
    const most = Math.max(1, Math.min(panels, Math.floor(width / 210)));
    const columns = Math.ceil(panels / Math.ceil(panels / most));
    copy.columns = columns;
    copy.spec.width = Math.min(320, Math.floor((width - 64 - (columns - 1) * 16) / columns));
    return copy;
  };

  const drawn = new Map();
  const draw = async (place) => {
    const width = place.clientWidth;
    if (!width || drawn.get(place) === width) return;
    drawn.set(place, width);
    const options = { renderer: "svg", actions: false, ast: true, config: look(width), tooltip: { theme: "custom" } };
    await window.vegaEmbed(place, fitted(charts.specs[place.dataset.chart], width), options);
    place.dataset.drawn = "yes";
  };

  const unpacked = async (name) => {
    const packed = Uint8Array.from(atob(document.getElementById(name).textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };

  const places = [...document.querySelectorAll(".plot")];
  const start = async () => {
    const script = document.createElement("script");
    script.textContent = await unpacked("libraries");
    charts = JSON.parse(await unpacked("charts"));
    document.head.append(script);
    const near = new IntersectionObserver(
      (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
      { rootMargin: "600px" },
    );
    places.forEach((place) => near.observe(place));
    let waiting;
    window.addEventListener("resize", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => [...drawn.keys()].forEach(draw), 150);
    });
    window.addEventListener("beforeprint", () => {
      document.documentElement.classList.add("printing"); // what is hidden has no width to draw for
      document.querySelectorAll("details").forEach((element) => { element.open = true; });
      places.forEach(draw);
    });
    window.addEventListener("afterprint", () => document.documentElement.classList.remove("printing"));
    document.documentElement.dataset.ready = "yes";
  };
  start().catch((error) => {
    console.error(error);
    places.forEach((place) => { place.textContent = "This chart cannot be drawn here; the tables hold the same numbers."; });
  });
})();
