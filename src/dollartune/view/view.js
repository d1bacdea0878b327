"use strict";
// Asks how far the study is, and draws what has changed. Nothing is fetched but from this machine's own server.
// Numbers come as they are shown: the server writes them as the report does.
(() => {
  const $ = (id) => document.getElementById(id);
  const token = document.querySelector("meta[name=token]").content;
  const soft = "var(--ink-soft)", rule = "var(--rule)";
  const look = {
    background: "transparent", font: 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif', padding: 2,
    view: { stroke: null },
    axis: { labelColor: soft, titleColor: soft, gridColor: rule, domainColor: "var(--rule-strong)", tickColor: "var(--rule-strong)", titleFontWeight: "normal" },
    legend: { labelColor: soft, titleColor: soft, labelLimit: 200 }, text: { color: "var(--ink)" },
    autosize: { type: "fit-x", contains: "padding" },
  };
  let state = null, version = "", page = 0, drawing = new Map();

  const ask = async (path, options) => {
    const answer = await fetch(path, options);
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error || answer.statusText);
    return found;
  };
  const query = (values) => "?" + new URLSearchParams(Object.entries(values).filter(([, value]) => value !== "" && value != null));
  const element = (name, text, attributes = {}) => {
    const made = document.createElement(name);
    if (text != null) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const board = () => state.boards.find((one) => one.key === $("boards").value) || state.boards[0];

  // Keeps what was chosen while options come and go.
  const choices = (id, options) => {
    const select = $(id), before = select.value;
    const wanted = JSON.stringify(options);
    if (select.dataset.options === wanted) return;
    select.dataset.options = wanted;
    select.replaceChildren(...options.map(([value, text]) => element("option", text, { value })));
    if (options.some(([value]) => value === before)) select.value = before;
  };

  const draw = async (name, values = {}) => {
    const place = document.querySelector(`[data-chart=${name}]`);
    const turn = (drawing.get(name) || 0) + 1;
    drawing.set(name, turn);
    try {
      const spec = await ask(`/chart/${name}${query({ board: $("boards").value, ...values })}`);
      if (drawing.get(name) !== turn) return null; // a later one is on its way
      if (!window.vegaEmbed) throw new Error("Charts need: pip install 'dollartune[report]'");
      if (spec.nothing) throw new Error(spec.nothing);
      const usermeta = spec.usermeta;
      delete spec.usermeta;
      place.classList.remove("empty");
      await window.vegaEmbed(place, spec, { renderer: "svg", actions: false, ast: true, config: { ...look, legend: { ...look.legend, columns: Math.max(1, Math.floor(place.clientWidth / 150)) } }, tooltip: { theme: "custom" } });
      place.dataset.drawn = "yes";
      return usermeta;
    } catch (error) {
      if (drawing.get(name) === turn) {
        place.replaceChildren(error.message);
        place.classList.add("empty");
        place.dataset.drawn = "empty";
      }
      return null;
    }
  };

  const showRunning = () => {
    const live = state.live, fresh = live && live.running && Date.now() / 1000 - live.at < 30;
    const running = fresh ? live.trials : [];
    $("running").replaceChildren(...running.map((one) => {
      const row = element("div", null, { class: "run" });
      const steps = one.steps ? `, step ${one.step} of ${one.steps}` : "";
      row.append(element("span", `${one.doing} ${one.label}, seed ${one.seed}${steps}`));
      if (one.doing === "tuning") {
        const stop = element("button", "Stop it", { type: "button", "aria-label": `Stop ${one.label}, seed ${one.seed}` });
        stop.addEventListener("click", async () => {
          stop.disabled = true;
          stop.textContent = "stops at its next validation";
          await ask(`/stop${query({ trial: one.trial })}`, { method: "POST", headers: { "X-Token": token } }).catch((error) => { stop.textContent = error.message; });
        });
        const bar = element("progress", null, { max: one.steps || 1, value: Math.min(one.step, one.steps || 1), "aria-label": `progress of ${one.label}` });
        row.append(stop, bar);
      }
      return row;
    }));
  };

  const showState = () => {
    const status = state.status;
    document.title = `${state.name} · DollarTune`;
    $("name").textContent = state.name;
    const tried = status.tried ? `, ${status.tried} settings tried` : "";
    $("spent").replaceChildren(...status.spent_of_budget.map((one) => element("li", one.sentence)));
    $("summary").textContent = `${status.done} of ${Math.max(status.planned, status.done + status.failed)} trials done, ${status.failed} failed${tried}.`;
    if (state.extending) $("extend-said").textContent = state.extending.words;
    choices("boards", state.boards.map((one) => [one.key, `${one.task}, ${one.rows ? one.rows.toLocaleString("en") : "all"} rows`]));
    showRunning();
  };

  const showTrials = () => {
    const here = board();
    const rows = here ? here.trials : [];
    $("trials").tBodies[0].replaceChildren(...rows.map((one) => {
      const row = element("tr");
      row.append(element("th", one.label, { scope: "row" }));
      const cells = [one.seed, one.status, one.shown.validation, one.shown.test, one.shown.seconds, one.shown.dollars];
      cells.forEach((cell, index) => row.append(element("td", cell, index === 1 ? { class: "text", title: one.error || "" } : {})));
      return row;
    }));
    const further = rows.filter((one) => one.steps);
    choices("extend-trial", further.map((one) => [one.trial, `${one.label}, seed ${one.seed}`]));
    $("extend").hidden = !further.length;
    if (!$("extend-steps").value) suggestSteps();
    const done = rows.filter((one) => one.status === "done");
    // The best first: its predictions are shown until another one is chosen.
    const ranked = [...done].sort((a, b) => (b.validation ?? -1e9) - (a.validation ?? -1e9));
    const named = ranked.map((one) => [one.trial, `${one.label}, seed ${one.seed}`]);
    choices("first", named);
    choices("other", [["", "nothing"], ...named]);
    // A method of one setting has nothing to compare.
    const settings = new Map();
    for (const one of rows.filter((one) => !one.baseline)) settings.set(one.method, (settings.get(one.method) || new Set()).add(one.label));
    const several = [...settings].filter(([, labels]) => labels.size > 1).map(([name]) => [name, name]);
    choices("method", several);
    $("tries").hidden = !several.length;
  };

  // As many as it has had.
  const suggestSteps = () => {
    const chosen = board() && board().trials.find((one) => one.trial === $("extend-trial").value);
    $("extend-steps").value = chosen ? chosen.steps : "";
  };

  const showRows = async () => {
    const trial = $("first").value;
    if (!trial) { $("rows-summary").textContent = "No trial has ended yet."; return; }
    let found;
    try {
      found = await ask(`/predictions${query({ trial, other: $("other").value, only: $("only").value, page })}`);
    } catch (error) { $("rows-summary").textContent = error.message; return; }
    const two = $("other").value !== "";
    const heads = ["Row", ...(found.rows.some((row) => row.input) || found.pictures ? ["Input"] : []), "Expected", "Predicted", ...(two ? ["Beside it"] : [])];
    $("rows").tHead.replaceChildren((() => { const row = element("tr"); heads.forEach((text) => row.append(element("th", text, { scope: "col", class: "text" }))); return row; })());
    const answer = (text, sure, correct) => element("td", `${text ?? "other"}${sure == null ? "" : ` (${sure})`}`, { class: `text ${correct == null ? "" : correct ? "right-answer" : "wrong-answer"}` });
    $("rows").tBodies[0].replaceChildren(...found.rows.map((one) => {
      const row = element("tr");
      row.append(element("th", one.id, { scope: "row" }));
      if (heads.includes("Input")) {
        const cell = element("td", one.input, { class: "input" });
        if (found.pictures) cell.append(element("img", null, { src: `/picture${query({ task: found.task, id: one.id })}`, alt: `test row ${one.id}`, loading: "lazy" }));
        row.append(cell);
      }
      row.append(element("td", one.expected, { class: "text" }), answer(one.predicted, one.sure, one.correct));
      if (two) row.append(answer(one.other, one.other_sure, one.other_correct));
      return row;
    }));
    const differ = two ? ` The two differ on ${found.differ} of ${found.all} rows.` : "";
    $("rows-summary").textContent = found.pages ? `${found.chosen} rows, page ${found.page + 1} of ${found.pages}.${differ}` : `No such row.${differ}`;
    $("back").disabled = page === 0;
    $("next").disabled = page + 1 >= found.pages;
  };

  const showClasses = async () => {
    const trial = $("first").value;
    if (!trial) return;
    const [confusion, calibration] = await Promise.all([draw("confusion", { trial }), draw("calibration", { trial })]);
    const facts = confusion || calibration || { classes: [], calibration_error: null };
    $("ece").textContent = facts.calibration_error == null ? "" : `Expected calibration error: ${facts.calibration_error}.`;
    $("classes").tBodies[0].replaceChildren(...facts.classes.map((one) => {
      const row = element("tr");
      row.append(element("th", one.label, { scope: "row" }), element("td", one.precision), element("td", one.recall), element("td", one.f1), element("td", one.rows));
      return row;
    }));
  };

  const showAll = async () => {
    showTrials();
    await draw("money");
    document.documentElement.dataset.first = "yes";
    await Promise.all([draw("curves", { over: $("over").value }), draw("pareto"), showRows(), showClasses(), showTries()]);
    document.documentElement.dataset.ready = "yes";
  };
  const showTries = () => Promise.all([draw("tries", { method: $("method").value }), draw("importance", { method: $("method").value })]);

  $("boards").addEventListener("change", () => { page = 0; $("extend-steps").value = ""; showAll(); });
  $("extend-trial").addEventListener("change", suggestSteps);
  $("extend").addEventListener("submit", async (event) => {
    event.preventDefault();
    const asked = query({ trial: $("extend-trial").value, steps: $("extend-steps").value });
    const answer = await ask(`/extend${asked}`, { method: "POST", headers: { "X-Token": token } }).catch((error) => ({ said: error.message }));
    $("extend-said").textContent = answer.words;
  });
  $("over").addEventListener("change", () => draw("curves", { over: $("over").value }));
  $("method").addEventListener("change", showTries);
  $("first").addEventListener("change", () => { page = 0; showRows(); showClasses(); });
  for (const id of ["other", "only"]) $(id).addEventListener("change", () => { page = 0; showRows(); });
  $("back").addEventListener("click", () => { page -= 1; showRows(); });
  $("next").addEventListener("click", () => { page += 1; showRows(); });

  const look_again = async () => {
    try {
      state = await ask("/state");
      showState();
      if (state.version !== version) {
        version = state.version;
        await showAll();
      } else if (state.live && state.live.running && state.live.trials.length) {
        await draw("curves", { over: $("over").value });
      }
    } catch (error) {
      $("summary").textContent = `The server does not answer: ${error.message}`;
    }
    setTimeout(look_again, 1000);
  };
  look_again();
})();
