// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
// A field above each long table: only rows with all of the words stay.
function addFilters() {
  for (const table of document.querySelectorAll("article table")) {
    const rows = [...table.querySelectorAll("tbody tr")];
    if (rows.length < 12 || table.dataset.filtered) continue;
    table.dataset.filtered = "yes";
    const field = document.createElement("input");
    field.type = "search";
    field.placeholder = `Search these ${rows.length} rows`;
    field.setAttribute("aria-label", field.placeholder);
    field.style = "width: 100%; padding: 0.4em; border: 1px solid; border-radius: 4px";
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
    (table.closest(".md-typeset__scrollwrap") ?? table).before(field);
  }
}
// The theme replaces pages without loading them.
typeof document$ === "undefined"
  ? document.addEventListener("DOMContentLoaded", addFilters)
  : document$.subscribe(addFilters);
