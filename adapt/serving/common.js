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

function say(problem) {
  add(byId("problem"), "p", problem);
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
