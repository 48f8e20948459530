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

  /* the server's time: what it stamps comes late and never early, so the largest difference seen lately is the best */
  let differences = [];
  function learnTime(seconds) {
    differences.push(seconds * 1000 - Date.now());
    if (differences.length > 20) differences.shift();
  }
  const serverNow = () => (Date.now() + (differences.length ? Math.max(...differences) : 0)) / 1000;
  if (root.dataset.now) learnTime(Number(root.dataset.now));

  /* lengths of time as the server writes them */
  function minutes(seconds) {
    const whole = Math.max(0, Math.round(seconds)),
      two = (value) => String(value).padStart(2, "0"),
      hours = Math.floor(whole / 3600);
    return hours
      ? `${hours}:${two(Math.floor((whole % 3600) / 60))}:${two(whole % 60)}`
      : `${Math.floor(whole / 60)}:${two(whole % 60)}`;
  }
  function spoken(seconds) {
    const units = [
      ["d", 86400],
      ["h", 3600],
      ["min", 60],
      ["s", 1],
    ];
    let rest = Math.max(0, Math.round(seconds));
    const first = Math.max(
      0,
      units.findIndex((unit) => rest >= unit[1]),
    );
    const from = rest ? first : 3,
      parts = [];
    units.slice(from, from + 2).forEach(([name, length]) => {
      const count = Math.floor(rest / length);
      rest %= length;
      if (count || !parts.length) parts.push(`${count} ${name}`);
    });
    return parts.join(" ");
  }
  const write = (element, text) => {
    if (element && element.textContent !== text) element.textContent = text;
  };

  /* clocks, ages and countdowns go on between two messages; the title says how many things need attention */
  const title = document.title.replace(/^\(\d+\) /, "").replace(/^Down since [^·]+ · /, "");
  function tick() {
    const now = serverNow();
    let worst = "";
    all("[data-clock]").forEach((clock) => {
      const seconds = now - Number(clock.dataset.since),
        high = Number(clock.dataset.high);
      write(one("[data-time]", clock), minutes(seconds));
      clock.classList.toggle("clock-over", high > 0 && seconds > high);
      const still = one("[data-static]", clock);
      if (still) still.hidden = true;
      worst = worst || `Down ${minutes(seconds)} · `;
    });
    all("[data-age]").forEach((age) => write(age, spoken(now - Number(age.dataset.since))));
    all("[data-countdown]").forEach((wait) => {
      const left = Number(wait.dataset.at) - now;
      write(wait, left > 0 ? spoken(left) : "0 s");
    });
    const counted = one("[data-attention]"),
      wanted = (counted ? `(${counted.dataset.attention}) ` : "") + worst + title;
    if (document.title !== wanted) document.title = wanted;
    watchTheLink();
  }

  /* the live connection: live is what a beat of the last seconds proves, and nothing else */
  const STALE = 9000, // the server sends a beat every 3 s
    RETRY = 10000;
  const POLL = 30000; // a page for which the server has no live connection asks so often what has changed
  let beatAt = 0,
    renewedAt = 0,
    ended = false,
    linked = false,
    crowded = false,
    polledAt = 0;
  function connection(state, word) {
    all("[data-live]").forEach((element) => {
      element.dataset.state = state;
      write(element, word);
    });
  }
  const clockOf = (at) => new Date(at).toISOString().slice(11, 19) + " UTC";
  const tell = (name) => document.body.dispatchEvent(new CustomEvent(name, { bubbles: true }));
  function alive() {
    crowded = false;
    linked = true;
    beatAt = Date.now();
    if (!ended) connection("live", "live");
  }
  function watchTheLink() {
    if (ended) return;
    if (crowded) return poll();
    if (!beatAt) return;
    const silent = Date.now() - beatAt;
    if (silent <= STALE && linked && navigator.onLine) return;
    if (silent <= STALE && navigator.onLine) return connection("reconnecting", "reconnecting");
    const since = clockOf(serverNow() * 1000 - silent);
    connection("stale", `${navigator.onLine ? "stale" : "offline"} since ${since} (${spoken(silent / 1000)})`);
    if (silent > STALE && Date.now() - renewedAt > RETRY) renew();
  }
  /* the server has as many live connections as it takes: the page asks, and goes on trying for one */
  function poll() {
    connection("reconnecting", "busy: updated every 30 s");
    if (Date.now() - polledAt < POLL) return;
    polledAt = Date.now();
    tell("changed");
    tell("inbox");
  }
  /* a connection of which nothing is heard is given up for a new one: TCP itself would take minutes to notice */
  function renew() {
    const old = one("[hx-ws\\:connect]");
    renewedAt = Date.now();
    if (!old || !window.htmx) return;
    const fresh = old.cloneNode(true);
    fresh.removeAttribute("data-htmx-powered");
    old.replaceWith(fresh);
    window.htmx.process(fresh);
  }
  window.addEventListener("offline", tick);
  window.addEventListener("online", () => {
    renewedAt = 0;
    tick();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) tick();
  });
  document.addEventListener("htmx:ws:after:connection", () => {
    if (crowded) return; // it may be closed at once; a message proves that it is not
    linked = true;
    alive();
    tell("inbox");
  });
  document.addEventListener("htmx:ws:close", (event) => {
    const code = event.detail && event.detail.code;
    if (event.detail && event.detail.reason === "removed") return;
    linked = false;
    ended = code === 4403;
    crowded = code === 1013;
    if (crowded) {
      polledAt = polledAt || Date.now(); // the page itself has just come
      return poll();
    }
    if (ended) connection("ended", "not live: reload the page");
    else if (Date.now() - beatAt <= STALE) connection("reconnecting", "reconnecting");
    else watchTheLink();
  });

  /* `beat`, `changed` and `inbox` from the server: whatever depends on who looks is fetched again through its own view */
  document.addEventListener("htmx:ws:after:message:incoming", (event) => {
    const data = event.detail.message.data;
    alive();
    if (typeof data === "string" && data.startsWith("{")) {
      const message = JSON.parse(data);
      if ("beat" in message) return learnTime(message.beat);
      tell("inbox" in message ? "inbox" : "changed");
    }
    announce();
    draw();
    tick();
  });
  document.addEventListener("htmx:after:swap", tick);
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
  tick();
  window.setInterval(tick, 250); // every clock has its own full second
})();
