// Unpacks Vega, draws each figure from the data in the page, and draws it again where its switch is moved.
(async () => {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);

  async function loadVega() {
    const packed = Uint8Array.from(atob(document.getElementById("vega").textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  async function draw(id, variant) {
    const figure = figures[id];
    const container = document.getElementById(`chart-${id}`);
    const spec = { ...structuredClone(figure.specs[variant]), datasets: { ...figure.specs[variant].datasets, rows: structuredClone(figure.rows) } };
    figure.drawn?.finalize();
    figure.drawn = await vegaEmbed(container.firstElementChild, spec, { actions: false, renderer: "svg", tooltip: { disableDefaultStyle: true } });
    container.setAttribute("aria-label", spec.description);
    container.querySelector("svg").setAttribute("aria-hidden", "true"); // the container is the image
    container.dataset.drawn = variant;
  }

  for (const [id, figure] of Object.entries(figures)) {
    const link = document.getElementById(`download-${id}`);
    link.href = URL.createObjectURL(new Blob([JSON.stringify(figure.rows, null, 1)], { type: "application/json" }));
    link.hidden = false;
  }
  try {
    await loadVega();
  } catch (error) {
    for (const id of Object.keys(figures)) {
      document.getElementById(`chart-${id}`).firstElementChild.textContent = `This browser cannot draw the figure (${error.message}); its data are below.`;
    }
    return;
  }
  for (const [id, figure] of Object.entries(figures)) {
    for (const input of document.querySelectorAll(`input[name="switch-${id}"]`)) {
      input.addEventListener("change", () => draw(id, input.value));
    }
    const chosen = document.querySelector(`input[name="switch-${id}"]:checked`);
    await draw(id, chosen ? chosen.value : Object.keys(figure.specs)[0]);
  }
})();
