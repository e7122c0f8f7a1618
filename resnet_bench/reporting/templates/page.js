"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const names = JSON.parse(document.getElementById("theme-colors").textContent);
  const drawn = new Set();
  let plotly = null;

  // --- theme ---------------------------------------------------------------------------------------

  const remembered = () => { try { return localStorage.getItem("resnet-bench-theme"); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem("resnet-bench-theme", theme); } catch { /* not allowed here */ } };

  function setTheme(theme) {
    root.dataset.theme = theme;
    button.textContent = theme === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(theme === "dark"));
    button.setAttribute("aria-label", `Switch to the ${theme === "dark" ? "light" : "dark"} theme`);
    drawn.forEach(draw);
  }

  const preferred = matchMedia("(prefers-color-scheme: dark)");
  setTheme(remembered() || (preferred.matches ? "dark" : "light"));
  preferred.addEventListener("change", (event) => { if (!remembered()) setTheme(event.matches ? "dark" : "light"); });
  button.addEventListener("click", () => {
    const theme = root.dataset.theme === "dark" ? "light" : "dark";
    remember(theme);
    setTheme(theme);
  });

  // --- plots ---------------------------------------------------------------------------------------

  function themed(spec) {
    const style = getComputedStyle(root);
    let text = JSON.stringify(spec);
    for (const [name, placeholder] of Object.entries(names)) {
      text = text.replaceAll(placeholder, style.getPropertyValue(`--${name}`).trim());
    }
    return JSON.parse(text);
  }

  function draw(element) {
    const spec = themed(specs[element.dataset.plot]);
    spec.layout.font = { ...spec.layout.font, family: getComputedStyle(document.body).fontFamily };
    // Dragging must scroll the page on a touch screen.
    spec.layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
    spec.layout.autosize = true;
    if ("printing" in root.dataset) spec.layout.width = element.clientWidth;
    // On a narrow screen every entry of the legend takes a line, which must not be taken from the plot.
    if (element.clientWidth < 480) {
      const entries = spec.data.filter((trace) => trace.name && trace.showlegend !== false).length;
      if (entries > 2) spec.layout.height += 19 * (entries - 2);
      for (const annotation of spec.layout.annotations || []) annotation.font = { ...annotation.font, size: 10 };
    }
    plotly.react(element, spec.data, spec.layout, {
      responsive: true,
      displaylogo: false,
      displayModeBar: false,
      doubleClick: "reset",
    });
    drawn.add(element);
  }

  function bytesOf(base64) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let place = 0; place < bytes.length; place += 1) bytes[place] = text.charCodeAt(place);
    return bytes;
  }

  // A script with an address is parsed beside the page, where an inline one of this size would hold it up.
  async function unpack() {
    const packed = new Blob([bytesOf(document.getElementById("plotly").textContent)]);
    const stream = packed.stream().pipeThrough(new DecompressionStream("gzip"));
    const unpacked = await new Response(stream, { headers: { "Content-Type": "text/javascript" } }).blob();
    const script = document.createElement("script");
    script.src = URL.createObjectURL(unpacked);
    await new Promise((resolve, reject) => {
      script.onload = resolve;
      script.onerror = reject;
      document.head.append(script);
    });
    URL.revokeObjectURL(script.src);
    if (!window.Plotly) throw new Error("plotly did not run");
    return window.Plotly;
  }

  const waiting = [...document.querySelectorAll("[data-plot]")];
  const queue = [];

  function drawRest() {
    if (plotly) waiting.filter((element) => !drawn.has(element)).forEach(draw);
  }

  // One plot at a time, so that the page answers in between.
  function drawNext() {
    const element = queue.shift();
    if (element && !drawn.has(element)) draw(element);
    if (queue.length) setTimeout(drawNext);
  }

  const afterPaint = () => new Promise((resolve) => { requestAnimationFrame(() => setTimeout(resolve)); });

  afterPaint().then(unpack).then((loaded) => {
    plotly = loaded;
    const observer = new IntersectionObserver((entries) => {
      const seen = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
      seen.forEach((element) => observer.unobserve(element));
      if (!queue.length && seen.length) setTimeout(drawNext);
      queue.push(...seen);
    }, { rootMargin: "400px" });
    waiting.forEach((element) => observer.observe(element));
    root.dataset.plots = "ready";
  }).catch(() => {
    document.getElementById("plots-failed").hidden = false;
    root.dataset.plots = "failed";
  });

  // --- print ---------------------------------------------------------------------------------------

  let before = null;
  addEventListener("beforeprint", () => {
    before = { theme: root.dataset.theme, closed: [...document.querySelectorAll("details.group:not([open])")] };
    before.closed.forEach((details) => { details.open = true; });
    root.dataset.printing = "";
    setTheme("light");
    drawRest();
  });
  addEventListener("afterprint", () => {
    if (!before) return;
    delete root.dataset.printing;
    setTheme(before.theme);
    before.closed.forEach((details) => { details.open = false; });
    before = null;
  });
})();
