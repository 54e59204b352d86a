// Sets the chosen theme before the first paint, so that the page never flashes; the toggle itself is in main.js.
// Not a module on purpose: modules run after parsing.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("headrace.theme");
  } catch {
    // Storage that is switched off means the system's theme.
  }
  if (chosen === "light" || chosen === "dark") {
    document.documentElement.dataset.theme = chosen;
  }
})();
