// Draws every figure of a page from the data beside it, when the figure comes near the window.
const draw = (box) => {
  const { data, layout, config } = JSON.parse(box.querySelector("script").textContent);
  Plotly.newPlot(box, data, layout, config);
};
const watch = new IntersectionObserver(
  (entries) =>
    entries
      .filter((entry) => entry.isIntersecting)
      .forEach((entry) => {
        watch.unobserve(entry.target);
        draw(entry.target);
      }),
  { rootMargin: "600px" },
);
document.querySelectorAll(".plot").forEach((box) => watch.observe(box));
