// A table that is wider than the screen scrolls: by keyboard, too. The theme puts the buttons of every block of code
// into a landmark of its own, all with one name.
function reachable() {
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((table) => table.setAttribute("tabindex", "0"));
  document.querySelectorAll(".md-code__nav").forEach((buttons, index) => {
    const name = `Buttons of block ${index + 1}`;
    if (buttons.getAttribute("aria-label") !== name) buttons.setAttribute("aria-label", name);
  });
}
window.addEventListener("load", () => {
  reachable();
  new MutationObserver(reachable).observe(document.body, { childList: true, subtree: true });
});
