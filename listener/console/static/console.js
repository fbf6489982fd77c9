// Keeps a page fresh: asks for it again every three seconds while it is in front, and no form on it is being filled in.
"use strict";
const EVERY = 3000;
let failed = false;

function isBusy() {
  const focused = document.activeElement;
  const typing = focused && focused.matches("main input, main select, main textarea");
  const asked = [...document.querySelectorAll("main .filter input")].some((each) => each.value !== each.defaultValue);
  return document.hidden || typing || asked || document.querySelector("main input:checked, main details.form[open]");
}

async function refresh() {
  const main = document.querySelector("main[data-live]");
  if (!main || isBusy()) return;
  try {
    const answer = await fetch(location.href, {headers: {"x-refresh": "1"}});
    if (answer.redirected) { location.reload(); return; }
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.querySelector("main");
    if (!fresh || isBusy()) return;
    for (const details of main.querySelectorAll("details[open][id]")) {
      fresh.querySelector(`#${CSS.escape(details.id)}`)?.setAttribute("open", "");
    }
    const told = main.querySelector(".told"); // what came of an action stays until the next page
    main.replaceChildren(...(told && !fresh.querySelector(".told") ? [told] : []), ...fresh.childNodes);
    failed = false;
  } catch (error) {
    failed = true;
  }
  document.querySelector("#connection").hidden = !failed;
}

document.addEventListener("submit", (event) => {
  const question = event.submitter?.dataset.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});

document.addEventListener("change", (event) => {
  if (!event.target.matches("input[data-all]")) return;
  for (const box of event.target.closest("form").querySelectorAll("input[name=id]")) box.checked = event.target.checked;
});

setInterval(refresh, EVERY);
