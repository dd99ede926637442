// The page of the player: keys, touches and gamepads go out, pictures and counters come in.
// envs/player/remote.py describes the messages.
"use strict";

const KEYS = [
  ["W A S D / arrows", "walk and turn; hold and combine"],
  ["R", "new dream (next seed)"],
  ["P", "pause"],
  ["Backspace", "hold: rewind"],
  ["K / L", "keep a moment / go back to it (F5 and F9 of the window)"],
  ["M / N / 1-9", "mark a view / say you are back / choose a mark"],
  ["- / =", "slower or faster"],
  ["V / B", "start or stop recording a video (MP4) / a session; then it can be downloaded"],
  ["T / H / F / ?", "sharp or smooth / counters / full screen / this help"],
  ["Gamepad", "stick or cross: walk; A mark, B back, X keep, Y go to kept, LB rewind, Start pause, Select new dream"],
];
const ORDER_OF_CODE = {
  KeyR: "new_dream", KeyP: "pause", KeyM: "mark", KeyN: "come_back", KeyK: "keep", KeyL: "return_to_kept",
  KeyB: "session", KeyV: "video", Minus: "slower", Equal: "faster", NumpadSubtract: "slower", NumpadAdd: "faster",
};
const HELD_OF_CODE = { ArrowUp: "up", ArrowDown: "down", ArrowLeft: "left", ArrowRight: "right", Backspace: "rewind" };
const PAD_ORDERS = { 0: "mark", 1: "come_back", 2: "keep", 3: "return_to_kept", 8: "new_dream", 9: "pause" };
const PAD_HELD = { 4: ["rewind"], 12: ["w", "up"], 13: ["s", "down"], 14: ["a", "left"], 15: ["d", "right"] };
const STICK_OUT = 0.5, STICK_BACK = 0.35;
const NOTICE_S = 4, RETRY_MS = 2000;
const POLICY_VIOLATION = 1008;

const find = (id) => document.getElementById(id);
const canvas = find("picture"), pen = canvas.getContext("2d", { alpha: false });

let socket = null;
let state = null; // what the server said last
let wantsToPlay = true; // asked for at once, and again after a lost connection
let hasPlayed = false;
let isHudShown = true;
let notice = { text: "", untilMs: 0 }, notesTimer = 0;
const startMs = performance.now();

// --- what goes out ---

function send(order) {
  if (socket !== null && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(order));
}

function ask(name, more) {
  if (state !== null && state.plays) send({ do: name, ...more });
}

const holders = new Map(); // for each key that is held what holds it: keyboard, touches and gamepads may at once

function hold(key, holder) {
  if (state === null || !state.plays) return;
  if (!holders.has(key)) {
    holders.set(key, new Set());
    send(key === "rewind" ? { do: "start_rewind" } : { do: "press", key });
  }
  holders.get(key).add(holder);
}

function letGo(key, holder) {
  const others = holders.get(key);
  if (others === undefined || !others.delete(holder) || others.size > 0) return;
  holders.delete(key);
  send(key === "rewind" ? { do: "stop_rewind" } : { do: "release", key });
}

function letAllGo() {
  for (const [key, itsHolders] of [...holders]) for (const holder of [...itsHolders]) letGo(key, holder);
}

// --- keys, by their place on the keyboard whatever its layout ---

function heldOfCode(code) {
  if (code in HELD_OF_CODE) return HELD_OF_CODE[code];
  return /^Key[A-Z]$/.test(code) && !(code in ORDER_OF_CODE) && !(code in HERE) ? code.slice(3).toLowerCase() : null;
}

const HERE = { KeyT: toggleSharpness, KeyH: toggleHud, KeyF: toggleFullScreen, Slash: toggleHelp };

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) {
    letAllGo(); // a key that goes up while Meta is down is never told
    return;
  }
  const { code } = event, key = heldOfCode(code), digit = /^(?:Digit|Numpad)([1-9])$/.exec(code);
  if (key === null && digit === null && !(code in ORDER_OF_CODE) && !(code in HERE)) return;
  event.preventDefault();
  if (event.repeat) return;
  if (key !== null) hold(key, code);
  else if (digit !== null) ask("choose_mark", { number: Number(digit[1]) });
  else if (code in HERE) HERE[code]();
  else ask(ORDER_OF_CODE[code]);
});
addEventListener("keyup", (event) => {
  const key = heldOfCode(event.code);
  if (key !== null) letGo(key, event.code);
});
addEventListener("blur", letAllGo);
document.addEventListener("visibilitychange", () => { if (document.hidden) letAllGo(); });

// --- buttons and touches ---

for (const button of document.querySelectorAll("[data-hold]")) {
  const keys = button.dataset.hold.split(" ");
  button.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    button.setPointerCapture(event.pointerId);
    button.classList.add("held");
    for (const key of keys) hold(key, button);
  });
  for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
    button.addEventListener(name, () => {
      button.classList.remove("held");
      for (const key of keys) letGo(key, button);
    });
  }
  button.addEventListener("contextmenu", (event) => event.preventDefault());
}

function onClick(button, act) {
  button.addEventListener("click", (event) => {
    if (event.detail > 0) button.blur(); // a click by hand: the next key is for the game
    act();
  });
}

for (const button of document.querySelectorAll("[data-order]")) onClick(button, () => ask(button.dataset.order));
onClick(find("play"), () => { wantsToPlay = true; send({ do: "play" }); });
onClick(find("sharpness"), toggleSharpness);
onClick(find("counters"), toggleHud);
onClick(find("full-screen"), toggleFullScreen);
onClick(find("show-help"), toggleHelp);
find("full-screen").hidden = !document.fullscreenEnabled;
for (const kind of ["session", "video"]) find(`download-${kind}`).href = kind + location.search;

function toggleSharpness() {
  setLabel("sharpness", canvas.classList.toggle("smooth") ? "Sharp" : "Smooth");
  fit();
}

function toggleHud() {
  isHudShown = !isHudShown;
  showState();
}

function toggleFullScreen() {
  if (document.fullscreenElement !== null) document.exitFullscreen();
  else document.documentElement.requestFullscreen().catch((error) => say(`no full screen: ${error.message}`));
}

function toggleHelp() {
  if (find("help").open) find("help").close();
  else find("help").show();
}

// --- gamepads, looked at as often as the screen is drawn ---

let isLookingAtPads = false;
const padDown = new Map(); // for each gamepad the numbers of its buttons and the directions of its sticks that are down

function directionsOf(pad, before) {
  const down = new Set();
  const look = (value, name) => { if (value > (before.has(name) ? STICK_BACK : STICK_OUT)) down.add(name); };
  look(Math.max(-(pad.axes[0] ?? 0), -(pad.axes[2] ?? 0)), 14);
  look(Math.max(pad.axes[0] ?? 0, pad.axes[2] ?? 0), 15);
  look(-(pad.axes[1] ?? 0), 12);
  look(pad.axes[1] ?? 0, 13);
  return down;
}

function lookAtGamepads() {
  const pads = navigator.getGamepads().filter((pad) => pad !== null && pad.connected);
  for (const pad of pads) {
    const before = padDown.get(pad.index) ?? new Set();
    const down = directionsOf(pad, before);
    pad.buttons.forEach((button, number) => { if (button.pressed) down.add(number); });
    for (const number of down) {
      if (before.has(number)) continue;
      for (const key of PAD_HELD[number] ?? []) hold(key, `pad ${pad.index} ${number}`);
      if (number in PAD_ORDERS) ask(PAD_ORDERS[number]);
    }
    for (const number of before) {
      if (!down.has(number)) for (const key of PAD_HELD[number] ?? []) letGo(key, `pad ${pad.index} ${number}`);
    }
    padDown.set(pad.index, down);
  }
  isLookingAtPads = pads.length > 0;
  if (isLookingAtPads) requestAnimationFrame(lookAtGamepads);
}

addEventListener("gamepadconnected", () => { if (!isLookingAtPads) lookAtGamepads(); });
addEventListener("gamepaddisconnected", (event) => {
  for (const number of padDown.get(event.gamepad.index) ?? []) {
    for (const key of PAD_HELD[number] ?? []) letGo(key, `pad ${event.gamepad.index} ${number}`);
  }
  padDown.delete(event.gamepad.index);
});

// --- what comes in ---

let shown = Promise.resolve(); // messages are drawn one after the other, in their order

function connect() {
  const address = new URL("socket" + location.search, location.href);
  address.protocol = address.protocol.replace("http", "ws");
  const opened = socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => { if (wantsToPlay) send({ do: "play" }); };
  socket.onmessage = ({ data }) => { shown = shown.then(() => take(data, opened)).catch(() => opened.close()); };
  socket.onclose = ({ code, reason }) => {
    holders.clear();
    state = null;
    const willRetry = code !== POLICY_VIOLATION;
    showLoading(reason || "no connection", 0, willRetry ? "trying again; or reload the page" : "reload the page");
    if (willRetry) setTimeout(connect, RETRY_MS);
  };
}

async function take(data, from) {
  const length = new DataView(data).getUint32(0);
  const told = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  const picture = new Uint8Array(data, 4 + length);
  if (picture.length > 0) draw(await createImageBitmap(new Blob([picture], { type: "image/jpeg" })));
  if (from !== socket || from.readyState !== WebSocket.OPEN) return;
  send({ do: "seen", number: told.number });
  follow(told);
}

function follow(told) {
  if (state !== null && state.plays && !told.plays) {
    holders.clear(); // the server has released them
    wantsToPlay = false;
    say("another player has taken over");
  }
  if (told.plays) hasPlayed = wantsToPlay = true;
  // Who played when the connection was lost plays on, as soon as the server knows that it was lost.
  else if (wantsToPlay && hasPlayed && told.can_play) send({ do: "play" });
  state = told;
  if (told.hud?.notice && told.hud.notice.age_s < NOTICE_S) say(told.hud.notice.text, told.hud.notice.age_s);
  showState();
}

function draw(image) {
  if (canvas.width !== image.width || canvas.height !== image.height) {
    canvas.width = image.width;
    canvas.height = image.height;
    fit();
  }
  pen.drawImage(image, 0, 0);
  image.close();
}

// A sharp picture is enlarged by a whole number of the screen's own pixels, so that all of its pixels are equally large.
function fit() {
  const stage = find("stage"), ratio = devicePixelRatio;
  let scale = Math.min(stage.clientWidth * ratio / canvas.width, stage.clientHeight * ratio / canvas.height);
  if (!canvas.classList.contains("smooth") && scale >= 1) scale = Math.floor(scale);
  canvas.style.width = `${canvas.width * scale / ratio}px`;
  canvas.style.height = `${canvas.height * scale / ratio}px`;
}
new ResizeObserver(fit).observe(find("stage"));

// --- what is shown beside the picture ---

function say(text, age_s = 0) {
  notice = { text, untilMs: performance.now() + (NOTICE_S - age_s) * 1000 };
  showNotes();
}

function showLoading(text, share, below) {
  find("loading").hidden = false;
  find("loading-text").textContent = text;
  find("loading-bar").value = share;
  find("loading-time").textContent = below;
}

function showState() {
  if (state === null) return;
  const { hud, loading } = state;
  if (hud === undefined) {
    showLoading(loading.text, loading.share, `${Math.round((performance.now() - startMs) / 1000)} s`);
  } else {
    find("loading").hidden = true;
    showHud(hud);
    showButtons(hud);
  }
  showRole();
  showNotes();
}

function showHud(hud) {
  const lines = [
    `${hud.rate_fps.toFixed(1)} frames/s   ${hud.step_ms.toFixed(0)} ms   step ${hud.step}`,
    `action ${hud.action || "-"}   reward ${hud.reward ?? "-"}`,
  ];
  if (hud.memory_frames !== null) lines.push(`memory ${hud.memory_used ?? "-"} / ${hud.memory_frames} frames`);
  if (hud.num_steps !== null) {
    lines.push(`${hud.num_steps} denoising step${hud.num_steps === 1 ? "" : "s"}   ${hud.device ?? ""}`);
  }
  if (hud.engine !== null) lines.push(hud.engine);
  if (hud.marks.length > 0) {
    const alike = hud.likeness === null ? "" : `   ${hud.likeness.toFixed(1)} dB like mark ${hud.chosen_mark}`;
    lines.push(`marks ${hud.marks.join(" ")}${alike}`);
  }
  if (state.link_ms !== null) lines.push(`connection ${state.link_ms.toFixed(0)} ms`);
  lines.push(`seed ${hud.seed}${hud.speed === 1 ? "" : `   speed ${hud.speed}`}`);
  find("hud").textContent = lines.join("\n");
  find("hud").hidden = !isHudShown;

  const open = [hud.is_recording ? "REC" : "", hud.is_session_open ? "SESSION" : ""].filter((name) => name !== "");
  find("recording").textContent = open.join(" ");
  find("recording").hidden = open.length === 0;
}

let marksShown = "";

function showButtons(hud) {
  setLabel("pause", hud.is_paused ? "Go on" : "Pause");
  setLabel("session", hud.is_session_open ? "Stop recording" : "Record");
  setLabel("video", hud.is_recording ? "Stop video" : "Video");
  for (const [kind, name] of [["session", hud.finished_session], ["video", hud.finished_video]]) {
    find(`download-${kind}`).hidden = name === null;
    find(`download-${kind}`).title = name ?? "";
  }

  const marks = hud.marks.slice(-9);
  if (marksShown === `${marks} ${hud.chosen_mark}`) return;
  marksShown = `${marks} ${hud.chosen_mark}`;
  find("marks").replaceChildren(...marks.filter((number) => number <= 9).map((number) => {
    const button = document.createElement("button");
    button.textContent = number;
    button.title = `choose mark ${number}`;
    button.classList.toggle("chosen", number === hud.chosen_mark);
    onClick(button, () => ask("choose_mark", { number }));
    return button;
  }));
}

function setLabel(id, text) {
  const label = find(id).firstChild; // its text, before the key
  if (label.data !== `${text} `) label.data = `${text} `;
}

function showRole() {
  const others = state.num_watching - (state.plays ? 0 : 1);
  const company = others > 0 ? `${others} watching` : "";
  const watching = state.can_play ? "you watch" : "you watch: someone else plays";
  find("role").textContent = state.plays ? company : [watching, company && `${company} too`].filter(Boolean).join(", ");
  find("play").hidden = !state.can_play;
  find("orders").hidden = !state.plays;
  find("pad").hidden = !state.plays;
}

function showNotes() {
  const hud = state?.hud, notes = [];
  if (hud?.ending === "terminated") notes.push("terminated: the episode is over. R: a new dream, or walk on");
  if (hud?.ending === "truncated") notes.push("truncated: the time is over. R: a new dream, or walk on");
  if (hud?.is_paused) notes.push("paused (P goes on)");
  clearTimeout(notesTimer);
  if (performance.now() < notice.untilMs) {
    notes.push(notice.text);
    notesTimer = setTimeout(showNotes, notice.untilMs - performance.now() + 10);
  }
  const text = notes.join("\n");
  if (find("notes").textContent !== text) find("notes").textContent = text;
  find("notes").hidden = notes.length === 0;
}

for (const [key, meaning] of KEYS) {
  const row = find("keys").insertRow();
  row.insertCell().textContent = key;
  row.insertCell().textContent = meaning;
}
connect();
