"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const cards = [...document.querySelectorAll(".cards > li")];
  const all = new Map();
  for (const element of document.querySelectorAll("[data-place]")) {
    const place = element.dataset.place;
    if (all.has(place)) continue;
    const image = element.querySelector("img");
    all.set(place, { place, src: image ? image.src : "", ...element.querySelector(".about").dataset });
  }
  const ticked = new Set();

  const filter = () => {
    const byClass = byId("by-class") ? byId("by-class").value : "";
    const byCluster = byId("by-cluster").value;
    for (const card of cards) {
      card.hidden = (byClass && card.dataset.class !== byClass)
        || (byCluster && card.dataset.cluster !== byCluster);
    }
    for (const list of document.querySelectorAll(".cards")) {
      list.nextElementSibling.hidden = [...list.children].some((card) => !card.hidden);
    }
  };

  const show = () => {
    for (const card of cards) {
      const on = ticked.has(card.dataset.place);
      card.classList.toggle("ticked", on);
      card.querySelector("input").checked = on;
    }
    byId("count").textContent = `${ticked.size} ticked`;
    byId("save").disabled = byId("clear").disabled = ticked.size === 0;
  };

  const tick = (place, on) => {
    if (on) ticked.add(place); else ticked.delete(place);
    show();
  };

  // A leading apostrophe keeps spreadsheets from reading a name as a formula.
  const cell = (text) => `"${(/^[=+\-@\t\r]/.test(text) ? "'" : "") + text.replaceAll('"', '""')}"`;

  const csv = () => {
    const rows = [...ticked].map((place) => all.get(place)).sort((a, b) => a.rank - b.rank);
    const lines = rows.map((r) => [r.path, r.name, r.rank, r.score, r.cluster].map(cell).join(","));
    return ["path,class,rank,score,cluster", ...lines, ""].join("\n");
  };

  const save = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    link.download = byId("save").dataset.name;
    link.click();
    URL.revokeObjectURL(link.href);
  };

  let open = null;
  let order = [];

  const detail = (place) => {
    const found = all.get(place);
    open = place;
    const image = byId("detail-image");
    image.src = found.large || found.src;
    image.alt = found.name || found.path;
    byId("detail-path").textContent = found.path;
    const facts = [["Class", found.name], ["Rank", found.rank && `${found.rank} (1 is the rarest)`],
      ["Score", found.score], ["Cluster", found.cluster]];
    byId("detail-facts").replaceChildren(...facts.filter(([, value]) => value).flatMap(([name, value]) => {
      const term = document.createElement("dt");
      const text = document.createElement("dd");
      term.textContent = name;
      text.textContent = value;
      return [term, text];
    }));
    const near = found.near.split(" ").filter(Boolean);
    byId("detail-near").replaceChildren(...near.map((other) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      const picture = document.createElement("img");
      const text = document.createElement("span");
      const { src, name, path, rank } = all.get(other);
      button.type = "button";
      picture.src = src;
      picture.alt = name || path;
      button.title = path;
      text.textContent = name || `#${rank}`;
      button.append(picture, text);
      button.addEventListener("click", () => detail(other));
      item.append(button);
      return item;
    }));
    byId("detail-near").previousElementSibling.hidden = near.length === 0;
    byId("detail-tick").checked = ticked.has(place);
    if (!byId("detail").open) byId("detail").showModal();
  };

  const step = (by) => {
    const at = order.indexOf(open);
    if (order.length) detail(order[(Math.max(at, 0) + by + order.length) % order.length]);
  };

  for (const card of cards) {
    card.querySelector(".enlarge").addEventListener("click", () => {
      order = [...card.parentElement.children].filter((c) => !c.hidden).map((c) => c.dataset.place);
      detail(card.dataset.place);
    });
    card.querySelector("input").addEventListener("change", (event) => {
      tick(card.dataset.place, event.target.checked);
    });
  }
  for (const id of ["by-class", "by-cluster"]) {
    if (byId(id)) byId(id).addEventListener("change", filter);
  }
  byId("save").addEventListener("click", save);
  byId("clear").addEventListener("click", () => { ticked.clear(); show(); });
  byId("close").addEventListener("click", () => byId("detail").close());
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("detail-tick").addEventListener("change", (event) => tick(open, event.target.checked));
  byId("detail").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  show();
})();
