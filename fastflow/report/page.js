"use strict";
for (const browse of document.querySelectorAll(".browse")) {
  const tools = browse.querySelector(".tools"), list = browse.querySelector(".cards");
  const search = tools.querySelector("input"), sort = tools.querySelector(".sort");
  const told = tools.querySelector("output");
  const cards = [...list.children];
  const texts = new Map();
  const value = (card, name) => Number(card.dataset[name]);
  const orders = {
    number: () => 0,
    gain: (a, b) => value(b, "gain") - value(a, "gain"),
    loss: (a, b) => value(a, "gain") - value(b, "gain"),
    unsolved: (a, b) => value(a, "right") - value(b, "right"),
    longest: (a, b) => value(b, "longest") - value(a, "longest"),
  };
  const holds = (card, words) => {
    if (!words.length) return true;
    if (!texts.has(card)) texts.set(card, card.textContent.toLowerCase());
    return words.every((word) => texts.get(card).includes(word));
  };
  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const card of cards) {
      card.hidden = !holds(card, words);
      count += card.hidden ? 0 : 1;
    }
    told.textContent = `${count} of ${cards.length} prompts`;
  };
  const arrange = () => {
    const order = orders[sort.value];
    list.append(...cards.sort((a, b) => order(a, b) || value(a, "number") - value(b, "number")));
  };
  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(show, 120);
  });
  sort.addEventListener("change", arrange);
  tools.hidden = false;
  arrange();
  show();
}
document.addEventListener("keydown", (event) => {
  const typing = document.activeElement.matches("input, select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey || typing) return;
  const here = document.activeElement.closest(".card");
  if (event.key === "j" || event.key === "k") {
    const cards = [...document.querySelectorAll(".card:not([hidden])")];
    const at = cards.indexOf(here);
    const next = cards[event.key === "j" ? at + 1 : Math.max(0, at - 1)];
    if (next) {
      next.focus();
      next.scrollIntoView({ block: "start" });
    }
  } else if (event.key === "/") {
    const near = (here && here.closest(".browse")) || document.querySelector(".browse");
    near.querySelector("input").focus();
    event.preventDefault();
  }
});
