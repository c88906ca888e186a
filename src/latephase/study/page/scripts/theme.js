// The button that turns a page dark or light; without it a page is as the reader's system is.
const root = document.documentElement;
const system = window.matchMedia("(prefers-color-scheme: dark)");
const repaints = [];
function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
}
function button(text, pressed, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.append(text);
  if (pressed !== null) made.setAttribute("aria-pressed", String(pressed));
  made.addEventListener("click", () => act(made));
  return made;
}
function repaint() {
  for (const each of repaints) each();
}
{
  const toggle = button("Dark page", isDark(), () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    repaint();
  });
  toggle.className = "theme";
  repaints.push(() => toggle.setAttribute("aria-pressed", String(isDark())));
  system.addEventListener("change", repaint);
  document.body.prepend(toggle);
}
