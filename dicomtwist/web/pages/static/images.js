// The images of a series: wheel, keys, slider and fingers go through them, and change the window.
"use strict";

(() => {
  const viewer = document.getElementById("viewer");
  if (!viewer) return;
  const byId = (id) => document.getElementById(id);
  const stage = byId("stage");
  const data = viewer.dataset;
  const slices = JSON.parse(data.slices).flatMap(([uid, frames]) => Array.from({ length: frames }, (_, i) => [uid, i + 1]));
  const total = slices.length;
  const hasWindow = "center" in data;
  const first = { center: Number(data.center), width: Number(data.width) };
  // Each step of the slider for the width is the same factor: narrow windows need finer steps.
  const most = hasWindow ? Math.log(Number(byId("width").dataset.max)) : 0;
  const widthAt = (position) => Math.exp((most * position) / 100);
  const placeOf = (width) => (100 * Math.log(Math.max(1, width))) / most;
  // A page has a part of a very long series; its links stay within that.
  const within = data.offset === "0" ? "" : `?offset=${data.offset}`;
  const atUrl = within ? `${within}&at=` : "?at=";
  let at = Number(data.at) - 1;
  let view = null; // the window, null for that of the image
  let shown = "";
  let isLoading = false;

  const MOST_KEPT = 80;
  const kept = new Map(); // URL: image element

  const url = (index) => {
    const [uid, frame] = slices[index];
    const query = [];
    if (data.side !== "0") query.push(`viewport=${data.side},${data.side}`);
    if (view) query.push(`window=${view.center},${view.width},linear`);
    return `${data.root}/instances/${uid}/frames/${frame}/rendered${query.length ? "?" + query.join("&") : ""}`;
  };

  const load = (source) => {
    const known = kept.get(source);
    if (known) {
      kept.delete(source);
      kept.set(source, known);
      return known;
    }
    const image = new Image();
    image.src = source;
    kept.set(source, image);
    if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
    return image;
  };

  // One image is asked for at a time; the one that is wanted when it has come is the next. So a slow server is never behind.
  const show = () => {
    describe();
    if (isLoading) return;
    const source = url(at);
    if (source === shown) return prefetch();
    isLoading = true;
    const late = window.setTimeout(() => stage.classList.add("late"), 250);
    const image = load(source);
    image
      .decode()
      .then(() => {
        image.id = "image";
        image.alt = `Image ${at + 1} of ${total}`;
        byId("image").replaceWith(image);
        byId("position").classList.remove("bad");
      })
      .catch(() => {
        kept.delete(source);
        byId("position").classList.add("bad");
      })
      .finally(() => {
        window.clearTimeout(late);
        stage.classList.remove("late");
        shown = source;
        isLoading = false;
        show();
      });
  };

  let direction = 1;
  const prefetch = () => {
    for (let i = 1; i <= 3; i++) {
      const next = at + i * direction;
      if (next >= 0 && next < total) load(url(next));
    }
  };

  const number = (value) => String(Math.abs(value) >= 100 ? Math.round(value) : Math.round(value * 10) / 10);
  const describe = () => {
    byId("at").value = String(at + 1);
    byId("at").setAttribute("aria-valuetext", `${at + 1} of ${total}`);
    byId("position").textContent = `${at + 1} / ${total}`;
    byId("before").href = `${data.here}${atUrl}${Math.max(1, at)}`;
    byId("after").href = `${data.here}${atUrl}${Math.min(total, at + 2)}`;
    const uid = slices[at][0];
    byId("elements").href = `${data.here}/instances/${uid}${within}`;
    byId("file").href = `${data.root}/instances/${uid}?accept=application/dicom`;
    byId("file").download = `${uid}.dcm`;
    if (hasWindow) {
      const now = view || first;
      byId("center").value = String(now.center);
      byId("width").value = String(placeOf(now.width));
      byId("width").setAttribute("aria-valuetext", number(now.width));
      byId("center-value").textContent = number(now.center);
      byId("width-value").textContent = number(now.width);
      byId("shown-window").textContent = view ? `C ${number(now.center)}  W ${number(now.width)}` : "";
    }
  };

  let noted = 0;
  const go = (index) => {
    const next = Math.min(total - 1, Math.max(0, index));
    if (next !== at) direction = next > at ? 1 : -1;
    at = next;
    show();
    // The address of the page follows, so that it can be kept or sent; browsers allow that only so often.
    window.clearTimeout(noted);
    noted = window.setTimeout(() => history.replaceState(null, "", `${atUrl}${at + 1}`), 400);
  };
  const setWindow = (center, width) => {
    if (!hasWindow) return;
    view = {
      center: Math.round(center * 100) / 100,
      width: Math.round(Math.max(1, width) * 100) / 100,
    };
    show();
  };
  const changeWindow = (center, width) => {
    const now = view || first;
    setWindow(now.center + center, now.width + width);
  };
  const reset = () => {
    view = null;
    show();
  };

  // --- buttons and sliders

  byId("before").addEventListener("click", (event) => (event.preventDefault(), go(at - 1)));
  byId("after").addEventListener("click", (event) => (event.preventDefault(), go(at + 1)));
  byId("at").addEventListener("input", (event) => go(Number(event.target.value) - 1));
  if (hasWindow) {
    byId("center").addEventListener("input", (event) => setWindow(Number(event.target.value), (view || first).width));
    byId("width").addEventListener("input", (event) => setWindow((view || first).center, widthAt(Number(event.target.value))));
    byId("reset").addEventListener("click", reset);
    for (const button of viewer.querySelectorAll("[data-window]")) {
      button.addEventListener("click", () => setWindow(...button.dataset.window.split(",").map(Number)));
    }
    for (const mode of viewer.querySelectorAll("[name=mode]")) {
      mode.addEventListener("change", () => stage.classList.toggle("window", isWindowMode()));
    }
  }
  const isWindowMode = () => hasWindow && viewer.querySelector("[name=mode][value=window]").checked;

  // --- keys

  stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const step = hasWindow ? Math.max(1, (view || first).width / 25) : 0;
    if (event.shiftKey && hasWindow) {
      const change = { ArrowUp: [step, 0], ArrowDown: [-step, 0], ArrowRight: [0, step], ArrowLeft: [0, -step] }[event.key];
      if (change) {
        event.preventDefault();
        changeWindow(...change);
        return;
      }
    }
    const target = {
      ArrowUp: at - 1, ArrowLeft: at - 1, ArrowDown: at + 1, ArrowRight: at + 1,
      PageUp: at - 10, PageDown: at + 10, Home: 0, End: total - 1,
    }[event.key];
    if (target !== undefined) {
      event.preventDefault();
      go(target);
    } else if (event.key.toLowerCase() === "r") {
      reset();
    }
  });

  // --- the wheel: one image for each notch, and touchpads not too fast

  let rolled = 0;
  stage.addEventListener(
    "wheel",
    (event) => {
      if (event.ctrlKey) return;
      event.preventDefault();
      rolled += event.deltaMode ? event.deltaY * 40 : event.deltaY;
      const steps = Math.trunc(rolled / 40);
      if (steps) {
        rolled -= steps * 40;
        go(at + Math.sign(steps) * Math.min(3, Math.abs(steps)));
      }
    },
    { passive: false },
  );

  // --- mouse, pen and fingers

  let drag = null;
  stage.addEventListener("contextmenu", (event) => hasWindow && event.preventDefault());
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 && event.button !== 2) return;
    const now = view || first;
    stage.setPointerCapture(event.pointerId);
    drag = { id: event.pointerId, x: event.clientX, y: event.clientY, at, center: now.center, width: now.width, isWindow: hasWindow && (event.button === 2 || isWindowMode()) };
  });
  stage.addEventListener("pointermove", (event) => {
    if (!drag || event.pointerId !== drag.id) return;
    const x = event.clientX - drag.x;
    const y = event.clientY - drag.y;
    if (drag.isWindow) {
      const unit = Math.max(drag.width, 20) / 250;
      setWindow(drag.center + y * unit, drag.width + x * unit);
    } else {
      const pixels = Math.max(4, Math.min(24, stage.clientHeight / total));
      go(drag.at + Math.round(y / pixels));
    }
  });
  for (const end of ["pointerup", "pointercancel"]) {
    stage.addEventListener(end, (event) => {
      if (drag && event.pointerId === drag.id) drag = null;
    });
  }

  shown = byId("image").src ? new URL(byId("image").src).pathname + new URL(byId("image").src).search : "";
  kept.set(url(at), byId("image"));
  describe();
  prefetch();
})();
