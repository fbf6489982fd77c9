// Runs what is in the box, and shows what comes of it until nothing more does.
"use strict";
const EVERY = 150; // milliseconds
const LONGEST = 60; // seconds after a run in which its effects are asked for
const NO_CHANGE = 3; // seconds after which a statement is taken for one without a change
const get = (id) => document.getElementById(id);
let current = 0;

// What comes from the database is text, never HTML: only this function makes elements.
function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null));
  return made;
}

function link(url, text) {
  const made = element("a", "", text);
  made.href = url;
  return made;
}

function after(seconds) {
  return element("span", "after", `after ${Math.round(seconds * 1000)} ms`);
}

function shownResult(answer) {
  const made = [element("p", answer.is_error ? "bad" : "", answer.is_error ? `The database refused: ${answer.words}` : answer.words)];
  if (answer.columns.length) {
    const head = element("tr", "", ...answer.columns.map((name) => Object.assign(element("th", "", name), {scope: "col"})));
    const rows = answer.rows.map((row) => element("tr", "", ...row.map((value) => element("td", "", value))));
    made.push(element("div", "table", element("table", "", head, ...rows)));
  }
  return made;
}

function shownColumn([name, before, now]) {
  if (before === null) return element("li", "", `${name}: ${now}`);
  if (now === null) return element("li", "", `${name}: `, element("del", "", before));
  return element("li", "", `${name}: `, element("del", "", before), ` → ${now}`);
}

function shownFate(fate) {
  if (fate.fires) return element("li", "", "fires ", element("span", "good", fate.task));
  return element("li", "quiet", `not ${fate.task}: ${fate.why}`);
}

function shownChange(change) {
  const page = `${document.body.dataset.console}/changes?table=${encodeURIComponent(change.table)}`;
  const fates = change.fates.length ? change.fates.map(shownFate) : [element("li", "quiet", "no route names this table, so it fires nothing")];
  return element("div", "card", element("p", "", `${change.event} `, link(page, change.table)),
    element("ul", "quiet", ...change.columns.map(shownColumn)), element("ul", "", ...fates));
}

function shownTask(task) {
  const page = `${document.body.dataset.flower}/task/${encodeURIComponent(task.id)}`;
  const state = task.state === "SUCCESS" ? "good" : task.state === "FAILURE" ? "bad" : "quiet";
  return element("div", "card", after(task.after), element("p", "", link(page, task.name), " ", element("span", state, task.state)),
    task.about ? element("p", "quiet", `of ${task.about}`) : null, task.outcome ? element("p", "quiet", task.outcome) : null);
}

function shownMessage(message) {
  const service = message.service === "slack" ? "Slack" : "Teams";
  return element("div", "card", after(message.after), element("p", "", element("strong", "", `${service} to ${message.to}`)), element("p", "", message.text));
}

function shownKey(each) {
  return element("div", "card", after(each.after), element("p", "", "The cache has a new ", element("code", "", each.key)));
}

function put(id, made, nothing) {
  get(id).replaceChildren(...(made.length ? made : [element("p", "quiet", nothing)]));
}

function show(effects) {
  const waits = effects.seconds < NO_CHANGE;
  put("changes", effects.changes.map(shownChange), waits ? "…" : "None: nothing was committed, or no row changed.");
  put("tasks", effects.tasks.map(shownTask), waits ? "…" : "None.");
  put("messages", [...effects.messages.map(shownMessage), ...effects.cache.map(shownKey)], waits ? "…" : "None.");
}

async function follow(run) {
  let shown = "";
  let seconds = 0;
  while (run === current && seconds < LONGEST) {
    try {
      const effects = await (await fetch(`/effects?run=${run}`)).json();
      if (run !== current) return;
      if (effects.error) throw new Error(effects.error);
      seconds = effects.seconds;
      const known = JSON.stringify([effects.changes, effects.tasks, effects.messages, effects.cache, seconds < NO_CHANGE]);
      if (known !== shown) show(effects); // what did not change keeps the focus that it has
      shown = known;
      get("connection").hidden = true;
    } catch (error) {
      get("connection").hidden = false;
    }
    await new Promise((done) => setTimeout(done, EVERY));
  }
}

async function run() {
  const headers = {"x-token": document.body.dataset.token, "content-type": "application/json"};
  put("result", [], "Running …");
  try {
    const answer = await fetch("/run", {method: "POST", headers, body: JSON.stringify({sql: get("sql").value})});
    if (!answer.ok) throw new Error(answer.status === 503 ? (await answer.json()).error : await answer.text());
    const found = await answer.json();
    get("result").replaceChildren(...shownResult(found));
    current = found.run;
    follow(found.run);
    offer();
  } catch (error) {
    get("result").replaceChildren(element("p", "bad", error.message));
  }
}

async function offer() {
  const examples = await (await fetch("/examples")).json();
  if (examples.error) return;
  const buttons = [...get("examples").children];
  examples.forEach((example, index) => { // the same buttons, so that the focus stays
    const button = buttons[index] || get("examples").appendChild(Object.assign(element("button", "", example.label), {type: "button"}));
    button.onclick = () => { get("sql").value = example.sql; get("sql").focus(); };
  });
}

get("form").addEventListener("submit", (event) => { event.preventDefault(); run(); });
get("sql").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); if (get("sql").value.trim()) run(); } });
offer();
