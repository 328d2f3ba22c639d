// Draw the diagrams of a page in the colors of its theme, and again when the reader changes it.
(() => {
  const diagrams = [...document.querySelectorAll("pre.mermaid")];
  const sources = diagrams.map((diagram) => diagram.textContent);
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  let drawn;

  async function draw() {
    const chosen = document.body.dataset.theme;
    const theme = chosen === "dark" || (chosen !== "light" && system.matches) ? "dark" : "default";
    if (theme === drawn) return;
    drawn = theme;
    diagrams.forEach((diagram, index) => {
      diagram.textContent = sources[index];
      diagram.removeAttribute("data-processed");
    });
    mermaid.initialize({ startOnLoad: false, theme, fontFamily: "inherit" });
    await mermaid.run({ nodes: diagrams });
  }

  draw();
  system.addEventListener("change", draw);
  new MutationObserver(draw).observe(document.body, { attributeFilter: ["data-theme"] });
})();
