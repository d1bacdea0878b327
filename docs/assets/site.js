// What the theme adds after loading, made usable by keyboard and screen reader: what is wider than its frame takes the focus, so
// that it can be scrolled, and no two landmarks have one name.
const WIDE = ".md-typeset__scrollwrap, .md-typeset pre > code, .picture";
function makeUsable() {
  document.querySelectorAll(WIDE).forEach((element) => {
    if (element.scrollWidth > element.clientWidth) element.tabIndex = 0;
  });
  document.querySelectorAll("nav.md-code__nav").forEach((element) => element.setAttribute("aria-label", "Code"));
  const times = new Map();
  document.querySelectorAll("nav").forEach((element) => {
    const by = document.getElementById(element.getAttribute("aria-labelledby"));
    const name = element.dataset.name ?? (by ? by.textContent.trim() : element.getAttribute("aria-label"));
    if (!name) return;
    element.dataset.name = name; // asked again when the theme adds more
    const count = (times.get(name.toLowerCase()) ?? 0) + 1;
    times.set(name.toLowerCase(), count);
    if (count === 1) return;
    element.removeAttribute("aria-labelledby");
    element.setAttribute("aria-label", `${name} ${count}`);
  });
}
let waiting = 0;
new MutationObserver(() => {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(makeUsable);
}).observe(document.documentElement, { childList: true, subtree: true });
addEventListener("resize", makeUsable);
