// The switch between versions of the site. Beside the folder of each version, versions.js has their pages.
"use strict";
const root = new URL(document.documentElement.dataset.content_root, location.href);

function draw() {
  const own = DOCUMENTATION_OPTIONS.VERSION;
  const page = location.href.split(/[?#]/)[0].slice(root.href.length) || "index.html";
  const choice = document.createElement("select");
  choice.className = "version-switch";
  choice.setAttribute("aria-label", "Version of these pages");
  for (const version of Object.keys(window.adaptVersions)) {
    choice.append(new Option(version, version, version === own, version === own));
  }
  choice.addEventListener("change", () => {
    const there = window.adaptVersions[choice.value].includes(page) ? page : "index.html";
    location.assign(new URL(`../${choice.value}/${there}`, root));
  });
  document.querySelector(".sidebar-brand").after(choice);
}

const list = document.createElement("script");
list.src = new URL("../versions.js", root);
list.addEventListener("load", draw); // a version that stands alone has no list, and no switch
document.head.append(list);
