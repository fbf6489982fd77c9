// Keeps a page fresh: asks for it again every three seconds while it is in front, and no form on it is being filled in.
"use strict";
const EVERY = 3000;
let failed = false;

// Whoever has the focus somewhere in the page keeps it, and no line moves away under a key that is about to be pressed.
function isBusy() {
  const focused = document.activeElement?.matches("main *");
  const asked = [...document.querySelectorAll("main .filter input")].some((each) => each.value !== each.defaultValue);
  return focused || asked || document.querySelector("main input:checked, main details.form[open]") !== null;
}

function isAway() {
  return document.hidden || document.getSelection()?.type === "Range"; // somebody copies
}

// What has not changed stays the same element, so that a screen reader does not read it again.
function renew(main, fresh) {
  const told = main.querySelector(":scope > .told"); // what came of an action stays until the next page
  const wanted = [...(told && !fresh.querySelector(".told") ? [told] : []), ...fresh.children];
  wanted.forEach((each, index) => {
    const old = main.children[index];
    if (old === each || old?.isEqualNode(each)) return;
    if (old && old !== told) old.replaceWith(each); else main.insertBefore(each, old || null);
  });
  while (main.children.length > wanted.length) main.lastElementChild.remove();
}

async function refresh() {
  const main = document.querySelector("main[data-live]");
  if (!main) return;
  document.querySelector("#waiting").hidden = !isBusy();
  if (isBusy() || isAway()) return;
  try {
    const answer = await fetch(location.href, {headers: {"x-refresh": "1"}});
    if (answer.redirected) { location.reload(); return; }
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.querySelector("main");
    if (!fresh || isBusy()) return;
    for (const details of main.querySelectorAll("details[open][id]")) {
      fresh.querySelector(`#${CSS.escape(details.id)}`)?.setAttribute("open", "");
    }
    renew(main, fresh);
    failed = false;
  } catch (error) {
    failed = true;
  }
  document.querySelector("#connection").hidden = !failed;
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && document.activeElement?.matches("main *")) document.activeElement.blur();
});

document.addEventListener("submit", (event) => {
  const question = event.submitter?.dataset.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});

document.addEventListener("change", (event) => {
  if (!event.target.matches("input[data-all]")) return;
  for (const box of event.target.closest("form").querySelectorAll("input[name=id]")) box.checked = event.target.checked;
});

setInterval(refresh, EVERY);
