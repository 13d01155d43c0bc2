"use strict";
const byId = (id) => document.getElementById(id);

function add(parent, tag, text, className) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  if (className) element.className = className;
  parent.append(element);
  return element;
}

// The response to a request with the token that was typed; an error has the server's own message.
async function respond(path, more) {
  const token = byId("token").value;
  const headers = { ...more?.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const response = await fetch(path, { ...more, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("the server does not answer: check that it is running");
  });
  if (response.status === 401) byId("ask").hidden = false;
  if (response.ok) return response;
  const body = await response.json().catch(() => ({ detail: `${response.status} ${response.statusText}` }));
  throw new Error(body.error?.message ?? body.detail);
}

async function ask(path, more) {
  return (await respond(path, more)).json();
}

const cards = {}; // of adapters, by their names

function say(problem) {
  add(byId("problem"), "p", problem);
}

// Show a picture with numbered boxes, and below it their names. `turned` says whether they are of it as displayed.
async function showBoxes(figure, source, alt, boxes, turned) {
  const frame = add(figure, "div", "", "seen"), picture = add(frame, "img");
  picture.style.imageOrientation = turned ? "from-image" : "none";
  picture.alt = alt;
  picture.src = source;
  await picture.decode().catch(() => {}); // a browser does not show all that a server reads: then there are names alone
  const names = add(add(figure, "figcaption"), "ol"), sides = [picture.naturalWidth, picture.naturalHeight]; // as displayed
  const [width, height] = sides[0] > sides[1] === picture.offsetWidth > picture.offsetHeight ? sides : sides.reverse();
  for (const [at, { bbox: [left, upper, right, lower], label, probability }] of boxes.entries()) {
    add(names, "li", (label || "here") + (probability == null ? "" : ` ${(100 * probability).toFixed(1)} %`));
    if (!width) continue;
    const box = add(frame, "span");
    add(box, "b", `${at + 1}`);
    const shares = { left: left / width, top: upper / height, width: (right - left) / width, height: (lower - upper) / height };
    for (const side in shares) box.style[side] = `${100 * shares[side]}%`;
  }
}

// Call `take` with the files that are chosen, or dropped on the page's field for them.
function takeDropped(take) {
  const drop = byId("drop");
  for (const kind of ["dragenter", "dragover"]) {
    drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take([...event.dataTransfer.files]);
  });
  byId("files").addEventListener("change", (event) => { take([...event.target.files]); event.target.value = ""; });
}

// List what the server has, and again once a token was typed.
function begin(list) {
  const listed = () => list().then(() => { byId("ask").hidden = true; }).catch((error) => say(error.message));
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    byId("problem").textContent = "";
    listed();
  });
  listed();
}
