/** Figures as rows of Markdown, and tables in pages: `table.ts` and `capacity/tables.ts` write them. */
import { readFileSync, writeFileSync } from "node:fs"

export const figure = (value: number): string =>
  Number.isInteger(value) || value >= 100 ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2)

export const row = (cells: ReadonlyArray<string>): string => `| ${cells.join(" | ")} |`

/** A table whose first columns are text, and whose others are figures. */
export const table = (head: ReadonlyArray<string>, rows: ReadonlyArray<ReadonlyArray<string>>, texts = 1): string =>
  [row(head), row(head.map((_, index) => (index < texts ? "---" : "--:"))), ...rows.map(row)].join("\n")

/** Replaces the table of this name in a page, which stands between two comments. */
export const putTable = (page: URL, name: string, text: string): void => {
  const before = readFileSync(page, "utf8")
  const place = new RegExp(`(<!-- ${name} -->\n)[\\s\\S]*(<!-- /${name} -->)`)
  if (!place.test(before)) throw new Error(`${page.pathname} has no place for the table ${name}`)
  writeFileSync(
    page,
    before.replace(place, (_, start: string, end: string) => `${start}${text}\n${end}`)
  )
}
