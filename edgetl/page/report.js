"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paint = (value, style) => {
    if (Array.isArray(value)) return value.map((one) => paint(one, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, paint(one, style)]));
    }
    const name = typeof value === "string" && /^var\((--[a-z]+)\)$/.exec(value);
    return name ? style.getPropertyValue(name[1]).trim() : value;
  };
  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    for (const place of document.querySelectorAll("[data-chart]")) {
      const figure = paint(JSON.parse(document.getElementById(place.dataset.chart).textContent), style);
      Plotly.react(place, figure.data, figure.layout, { displayModeBar: false });
    }
  };
  const fit = new ResizeObserver((seen) => seen.forEach((one) => Plotly.Plots.resize(one.target)));
  draw();
  document.querySelectorAll("[data-chart]").forEach((place) => fit.observe(place));
  dark.addEventListener("change", draw);
})();
