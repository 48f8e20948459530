/* Sets the colours before the first paint, so that a dark page never flashes white. */
(function () {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  function apply() {
    const choice = root.dataset.themeChoice || "system";
    root.dataset.bsTheme = choice === "system" ? (dark.matches ? "dark" : "light") : choice;
  }
  dark.addEventListener("change", apply);
  document.addEventListener("volmig:theme", apply);
  apply();
})();
