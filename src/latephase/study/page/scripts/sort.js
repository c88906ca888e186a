// Makes the headings of tables buttons that sort by their column. Without this script the tables are as they were written.
"use strict";
function sortKey(row, column) {
  const cell = row.cells[column];
  const text = "value" in cell.dataset ? cell.dataset.value : cell.textContent.trim();
  const number = text === "inf" ? Infinity : Number(text);
  return { text, number, empty: text === "", numeric: text !== "" && !Number.isNaN(number) };
}
function compareKeys(a, b, sign) {
  if (a.empty || b.empty) return a.empty - b.empty; // what is not known comes last, whatever the direction
  if (a.numeric && b.numeric) return a.number === b.number ? 0 : sign * (a.number < b.number ? -1 : 1);
  return sign * a.text.localeCompare(b.text);
}
function sortBy(table, heading) {
  const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const rows = Array.from(table.tBodies[0].rows, (row) => ({ row, key: sortKey(row, heading.cellIndex) }));
  rows.sort((a, b) => compareKeys(a.key, b.key, sign));
  table.tBodies[0].append(...rows.map((entry) => entry.row));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
}
for (const table of document.querySelectorAll("table")) {
  if (!table.tHead) continue;
  for (const heading of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sortBy(table, heading));
    heading.append(button);
  }
}
