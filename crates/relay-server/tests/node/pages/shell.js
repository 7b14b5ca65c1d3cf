// What the five pages have in common: what they show, and their clock. How to reach the relay each page knows
// for itself.
//
// The page's own address says where the relay is (?api=) and which job is followed (?job=).

export const parameters = new URLSearchParams(location.search);
export const api = parameters.get("api");
export const socketApi = api.replace(/^http/, "ws");
export const job = parameters.get("job");

// A client's waits between attempts, polls and heartbeats are a tenth of what its document says, so that a run
// takes seconds. How long it waits for an answer is not shortened: that is the relay's time, not the client's.
const SCALE = 1 / 10;
export const after = (ms, then) => setTimeout(then, ms * SCALE);
export const scaled = (ms) => ms * SCALE;

document.body.insertAdjacentHTML(
  "beforeend",
  `<p id="link" data-state="connecting" data-polling="false" data-polls="0" data-pongs="0"></p>
  <p id="job"></p>
  <h2>Waits</h2><ol id="waits"></ol>
  <h2>Seen on the way</h2><ol id="milestones"></ol>
  <h2>Endings</h2><ol id="endings"></ol>`,
);
const find = (id) => document.getElementById(id);

function add(list, text) {
  find(list).append(Object.assign(document.createElement("li"), { textContent: text }));
}

export const linkIs = (state) => {
  find("link").dataset.state = state;
  find("link").textContent = state;
};
export const count = (name) => {
  find("link").dataset[name] = Number(find("link").dataset[name]) + 1;
};
export const show = (status, value) => {
  Object.assign(find("job").dataset, { status, value });
  find("job").textContent = `${status}: ${value}`;
};
export const waits = (ms) => add("waits", String(ms));
export const milestone = (text) => add("milestones", text);
export const ending = (text) => add("endings", text);

// Asks every `ms` until it is stopped. `ask` takes a body that came with 200 and says whether that was the end.
export function poller(ms, path, options, ask) {
  let timer;
  const stop = () => {
    clearInterval(timer);
    timer = undefined;
    find("link").dataset.polling = "false";
  };
  const poll = async () => {
    // the relay may be away, and the job unknown so far: the next poll will tell
    const answer = await fetch(api + path, options).catch(() => null);
    const body = answer?.ok ? await answer.json().catch(() => null) : null;
    if (body === null || timer === undefined) return;
    count("polls");
    if (ask(body)) stop();
  };
  const start = () => {
    if (timer !== undefined) return;
    timer = setInterval(poll, scaled(ms));
    find("link").dataset.polling = "true";
  };
  return { start, stop };
}
