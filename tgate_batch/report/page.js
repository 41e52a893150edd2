"use strict";
const one = (selector, inside = document) => inside.querySelector(selector);
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

/* Light and dark: as in the reader's system, until the button is used. */
const theme = one("#theme");
const isDark = () =>
  (document.documentElement.dataset.theme ||
    (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  nameTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
theme.hidden = false;
nameTheme();

/* Printing: opens explanations and settings, and loads all images. */
let opened = [];
addEventListener("beforeprint", () => {
  all("img").forEach((img) => { img.loading = "eager"; });
  opened = all("details:not([open])").filter((details) => !details.closest(".plot"));
  opened.forEach((details) => { details.open = true; });
});
addEventListener("afterprint", () => opened.forEach((details) => { details.open = false; }));

/* The explanation of a heading, on hover, focus and touch; Escape hides it. */
const tip = one("#tip");
const showTip = (term) => {
  tip.textContent = document.getElementById(term.getAttribute("aria-describedby")).textContent;
  tip.hidden = false;
  const box = term.getBoundingClientRect();
  const left = Math.min(Math.max(16, box.right - tip.offsetWidth), innerWidth - tip.offsetWidth - 16);
  const above = box.top - tip.offsetHeight - 8;
  tip.style.left = `${Math.max(16, left)}px`;
  tip.style.top = `${above > 8 ? above : box.bottom + 8}px`;
};
const hideTip = () => { tip.hidden = true; };
for (const term of all(".term")) {
  for (const event of ["mouseenter", "focus", "click"]) term.addEventListener(event, () => showTip(term));
  for (const event of ["mouseleave", "blur"]) term.addEventListener(event, hideTip);
}
const followTip = () => {
  const term = document.activeElement;
  if (term.matches(".term") && !tip.hidden) showTip(term);
  else hideTip();
};
addEventListener("scroll", followTip, { capture: true, passive: true });
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

/* The gallery: search, arm and order. */
for (const gallery of all(".gallery")) {
  const cards = all(".card", gallery);
  const [search, arm, order] = ["search", "arm", "order"].map((name) => one(`[name=${name}]`, gallery));
  const badness = (card, key) =>
    Math.max(...all("figure:not([hidden])", card).map((f) => (f.dataset[key] ? Number(f.dataset[key]) : -Infinity)));
  const arrange = () => {
    const words = search.value.trim().toLowerCase();
    let shown = 0;
    for (const card of cards) {
      card.hidden = !card.dataset.text.toLowerCase().includes(words);
      shown += !card.hidden;
      for (const figure of all("figure", card))
        figure.hidden = arm.value !== "" && !figure.dataset.baseline && figure.dataset.arm !== arm.value;
    }
    const key = order.value;
    let keyed = cards.map((card, place) => [card, place]);
    if (key === "random") keyed = keyed.map(([card]) => [card, Math.random()]);
    else if (key !== "prompts") keyed = keyed.map(([card]) => [card, -badness(card, key)]);
    keyed.sort((a, b) => (a[1] === b[1] ? 0 : a[1] - b[1]));
    one(".cards", gallery).append(...keyed.map(([card]) => card));
    one("output", gallery).textContent = `${shown} of ${cards.length} prompts`;
  };
  search.addEventListener("input", arrange);
  arm.addEventListener("change", arrange);
  order.addEventListener("change", arrange);
  one("[name=shuffle]", gallery).addEventListener("click", () => { order.value = "random"; arrange(); });
  one(".tools", gallery).hidden = false;
  arrange();
}

/* An image over the baseline's at full size: a slider wipes between them, F flips, N and P step. */
const dialog = one("#large");
const slider = one("[type=range]", dialog);
let current = null; /* the figure that is shown */
const split = (percent) => {
  slider.value = percent;
  const stage = one(".stage", dialog);
  stage.style.setProperty("--split", `${percent}%`);
  stage.classList.toggle("flipped", percent <= 0 || percent >= 100);
};
const show = (figure) => {
  current = figure;
  const card = figure.closest(".card");
  const images = all("figure", card).filter((f) => one("img", f));
  const baseline = images.find((f) => f.dataset.baseline) || figure;
  const other = figure === baseline ? images.find((f) => f !== baseline) || figure : figure;
  const [under, over] = all(".stage img", dialog);
  for (const [img, of] of [[under, baseline], [over, other]]) {
    img.src = one("img", of).src;
    img.alt = one("img", of).alt;
  }
  one(".stage", dialog).classList.toggle("small", one("img", other).width < 200 && one("img", other).naturalWidth <= 128);
  one("h2", dialog).textContent = one(".prompt", card).textContent;
  const [left, right] = all(".ends span", dialog);
  left.textContent = baseline.dataset.arm;
  right.textContent = other.dataset.arm;
  split(50);
};
const flip = () => split(Number(slider.value) >= 100 ? 0 : 100);
const step = (by) => {
  const gallery = current.closest(".gallery");
  const cards = all(".card:not([hidden])", gallery).filter((card) => one(`figure[data-arm="${CSS.escape(current.dataset.arm)}"] img`, card));
  const next = cards[(cards.indexOf(current.closest(".card")) + by + cards.length) % cards.length];
  show(one(`figure[data-arm="${CSS.escape(current.dataset.arm)}"]`, next));
};
for (const button of all(".zoom")) button.addEventListener("click", () => { show(button.closest("figure")); dialog.showModal(); slider.focus(); });
slider.addEventListener("input", () => split(slider.value));
one(".stage", dialog).addEventListener("click", flip);
one("[name=flip]", dialog).addEventListener("click", flip);
one("[name=previous]", dialog).addEventListener("click", () => step(-1));
one("[name=next]", dialog).addEventListener("click", () => step(1));
one("[name=close]", dialog).addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => { if (current) one(".zoom", current).focus(); });
dialog.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const action = { f: flip, n: () => step(1), p: () => step(-1) }[event.key.toLowerCase()];
  if (action) { event.preventDefault(); action(); }
});
