/* The little that pages do in the browser: colours, the word for the live connection, announcements, the rate plot.
   Everything else is htmx; without any of this the pages work on reload. */
(function () {
  "use strict";
  const root = document.documentElement;
  const one = (selector, from) => (from || document).querySelector(selector);
  const all = (selector, from) => Array.from((from || document).querySelectorAll(selector));

  /* colours: a year's cookie, so that the server can render the choice into the page */
  function showTheme() {
    const choice = root.dataset.themeChoice || "system";
    all("[data-set-theme]").forEach((button) =>
      button.setAttribute("aria-pressed", String(button.dataset.setTheme === choice)),
    );
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-set-theme]");
    if (!button) return;
    root.dataset.themeChoice = button.dataset.setTheme;
    document.cookie = `theme=${button.dataset.setTheme}; path=/; max-age=31536000; samesite=lax`;
    document.dispatchEvent(new Event("volmig:theme"));
    showTheme();
    draw();
  });

  /* the live connection: its state is a word, not only a dot */
  function connection(state, word) {
    all("[data-live]").forEach((element) => {
      element.dataset.state = state;
      element.textContent = word;
    });
  }
  const tell = (name) => document.body.dispatchEvent(new CustomEvent(name, { bubbles: true }));
  document.addEventListener("htmx:ws:after:connection", () => {
    connection("live", "live");
    tell("inbox");
  });
  document.addEventListener("htmx:ws:close", (event) => {
    const ended = event.detail && event.detail.code === 4403;
    connection(ended ? "ended" : "reconnecting", ended ? "not live: reload the page" : "reconnecting");
  });

  /* `changed` and `inbox` from the server: whatever depends on who looks is fetched again through its own view */
  document.addEventListener("htmx:ws:after:message:incoming", (event) => {
    const data = event.detail.message.data;
    if (typeof data === "string" && data.startsWith("{")) {
      tell("inbox" in JSON.parse(data) ? "inbox" : "changed");
    }
    announce();
    draw();
  });
  document.addEventListener("htmx:after:swap", draw);

  /* screen readers: a new step or state at once, percentages at most every 30 s */
  let told = "",
    toldAt = 0;
  function announce() {
    const source = one("[data-announce]");
    if (!source) return;
    const key = source.dataset.announceKey,
      now = Date.now();
    if (key === told && now - toldAt < 30000) return;
    if (told) one("#announcer").textContent = source.dataset.announce;
    told = key;
    toldAt = now;
  }

  /* the rate plot: the server's points come with the fragment as an attribute; those seen live are added to them */
  let plot = null,
    plotted = "",
    ink = "",
    points = [[], [], []];
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  function axis(extra) {
    return Object.assign(
      {
        stroke: colour("--quiet"),
        font: "11px sans-serif",
        grid: { stroke: colour("--line"), width: 1 },
        ticks: { show: false },
      },
      extra,
    );
  }
  function options(width) {
    return {
      width,
      height: 170,
      legend: { show: false },
      cursor: { show: false },
      axes: [
        axis({
          size: 24,
          space: 90,
          values: (_, ticks) => ticks.map((tick) => new Date(tick * 1000).toISOString().slice(11, 19)),
        }),
        axis({ size: 46, values: (_, ticks) => ticks.map((tick) => +tick.toFixed(1)) }),
      ],
      scales: { x: { time: true }, y: { range: (_, low, high) => [0, Math.max(1, high * 1.15)] } },
      series: [
        {},
        { stroke: colour("--run-bar"), width: 2, points: { show: false } },
        { stroke: colour("--good-bar"), width: 2, dash: [6, 4], points: { show: false } },
      ],
    };
  }
  function draw() {
    const place = one("[data-plot]"),
      sample = one("[data-sample]");
    if (!place || !sample || !window.uPlot) return;
    const step = sample.dataset.sample,
      mode = root.dataset.bsTheme + place.clientWidth;
    if (step !== plotted) {
      points = [[], [], []];
    }
    const at = Number(sample.dataset.at),
      bytes = [Number(sample.dataset.read), Number(sample.dataset.written)];
    const last = draw.last;
    if (step === plotted && last && at - last.at >= 0.5) {
      const rates = bytes.map((value, index) => Math.max(0, value - last.bytes[index]) / (at - last.at) / 1048576);
      [at, ...rates].forEach((value, index) => {
        points[index].push(value);
        if (points[index].length > 900) points[index].shift();
      });
    }
    if (step !== plotted || !last || at - last.at >= 0.5) draw.last = { at, bytes };
    plotted = step;
    place.hidden = points[0].length < 2;
    all("[data-plot-key]").forEach((key) => {
      key.hidden = place.hidden;
    });
    if (place.hidden) return;
    if (!plot || mode !== ink || !place.contains(plot.root)) {
      place.replaceChildren();
      plot = new window.uPlot(options(place.clientWidth), points, place);
      ink = mode;
    } else {
      plot.setData(points);
    }
    place.setAttribute(
      "aria-label",
      `Rate in MiB/s over the last minutes: now ${points[1].at(-1).toFixed(0)} read, ${points[2].at(-1).toFixed(0)} written`,
    );
  }
  window.addEventListener("resize", draw);

  all("[data-needs-script]").forEach((element) => {
    element.hidden = false;
  });
  showTheme();
  announce();
  draw();
})();
