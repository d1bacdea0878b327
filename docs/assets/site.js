// What the theme adds after loading, made usable by keyboard and screen reader: wide tables and blocks of code take the focus, so
// that they can be scrolled, and each copy button's landmark has a name of its own.
function name(root) {
  root.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code").forEach((element) => {
    if (element.scrollWidth > element.clientWidth) element.tabIndex = 0;
  });
  root.querySelectorAll("nav.md-code__nav").forEach((element, number) => {
    element.setAttribute("aria-label", `Code ${number + 1}`);
  });
}
let waiting = 0;
new MutationObserver(() => {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(() => name(document));
}).observe(document.documentElement, { childList: true, subtree: true });
addEventListener("resize", () => name(document));
