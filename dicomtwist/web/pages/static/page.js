// The pages work without this script. It refreshes what is live, filters the elements of an instance, and tells about trouble.
"use strict";

(() => {
  const trouble = document.getElementById("trouble");
  const tell = (text) => {
    trouble.textContent = text;
    trouble.hidden = !text;
  };

  // --- what is live: a part of a page asks for itself again when the body gets a "tick"

  const pause = document.querySelector("[data-pause]");
  const live = () => document.getElementById("live");
  const isBusy = () => {
    // What a person has marked or is at is not replaced under their hands.
    const part = live();
    const selection = document.getSelection();
    return part.contains(document.activeElement) || (!selection.isCollapsed && part.contains(selection.anchorNode));
  };
  const tick = () => {
    const part = live();
    if (part && !document.hidden && pause.getAttribute("aria-pressed") !== "true" && !isBusy()) {
      document.body.dispatchEvent(new Event("tick"));
    }
  };
  if (live()) {
    window.setInterval(tick, Number(live().dataset.every) * 1000);
    document.addEventListener("visibilitychange", tick);
    pause.addEventListener("click", () => {
      const isPaused = pause.getAttribute("aria-pressed") !== "true";
      pause.setAttribute("aria-pressed", String(isPaused));
      pause.textContent = isPaused ? "Paused" : "Pause";
      tick();
    });
  }

  document.body.addEventListener("htmx:afterRequest", (event) => {
    if (event.detail.successful) tell("");
  });
  document.body.addEventListener("htmx:responseError", (event) => {
    tell(`The server answered with ${event.detail.xhr.status}. Load the page again to see why.`);
  });
  document.body.addEventListener("htmx:sendError", () => tell("The server does not answer."));

  // --- the search: no empty values in its URL

  document.body.addEventListener("htmx:configRequest", (event) => {
    const parameters = event.detail.parameters;
    for (const name of Object.keys(parameters)) if (parameters[name] === "") delete parameters[name];
  });
  const search = document.getElementById("search");
  if (search) {
    search.addEventListener("formdata", (event) => {
      for (const [name, value] of [...event.formData]) if (value === "") event.formData.delete(name);
    });
  }

  // --- the elements of an instance

  const filter = document.getElementById("filter");
  if (filter) {
    const rows = [...document.querySelectorAll("#tags tbody tr")].map((row) => [row, row.textContent.toLowerCase() + " " + (row.cells[1] ? row.cells[1].title.toLowerCase() : "")]);
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const [row, text] of rows) row.hidden = !words.every((word) => text.includes(word));
    });
  }

  // --- a thumbnail that cannot be made

  document.addEventListener(
    "error",
    (event) => {
      const image = event.target;
      if (image instanceof HTMLImageElement && image.closest(".thumb")) {
        const none = document.createElement("span");
        none.className = "none";
        none.textContent = "No image";
        image.replaceWith(none);
      }
    },
    true,
  );
})();
