"use strict";
// Draws the latencies that the live part carries; one colour a model, in the order of the legend.
(() => {
  const colours = ["#2f6fde", "#d9822b", "#1f8a4c", "#9b51e0", "#c23b3b", "#0f9aa8", "#8a6d3b", "#6b7280"];
  let plot = null, shown = "";

  function style(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

  function options(models, width) {
    const axis = { stroke: style("--soft"), grid: { stroke: style("--line") }, ticks: { stroke: style("--line") }, font: "12px system-ui" };
    const series = models.map((name, index) => ({
      label: name, stroke: colours[index % colours.length], paths: () => null, spanGaps: false,
      points: { show: true, size: 7, fill: colours[index % colours.length] },
      value: (_, value) => value == null ? "" : value.toFixed(2) + " s",
    }));
    return { width, height: 220, axes: [axis, { ...axis, label: "seconds", size: 56 }], scales: { y: { range: (_, low, high) => [0, Math.max(high * 1.1, 0.1)] } },
      series: [{ label: "time" }, ...series], legend: { live: false } };
  }

  function draw() {
    const holder = document.getElementById("points"), chart = document.getElementById("chart");
    if (!holder || !chart || holder.dataset.points === shown) return;
    shown = holder.dataset.points;
    const { at_s, models, latency_s } = JSON.parse(shown);
    if (plot) plot.destroy();
    plot = null;
    chart.replaceChildren();
    if (!at_s.length) {
      const empty = document.createElement("p");
      empty.className = "empty";
      empty.textContent = "Points appear here with the first requests.";
      chart.append(empty);
      return;
    }
    plot = new uPlot(options(models, chart.clientWidth), [at_s, ...latency_s], chart);
  }

  new MutationObserver(draw).observe(document.getElementById("live"), { subtree: true, childList: true, attributes: true, attributeFilter: ["data-points"] });
  new ResizeObserver(() => plot && plot.setSize({ width: document.getElementById("chart").clientWidth, height: 220 })).observe(document.getElementById("chart"));
  draw();
})();
