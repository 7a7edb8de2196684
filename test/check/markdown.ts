/**
 * Reads Markdown for the checks of the documentation: fenced blocks, headings, links, and the guides themselves.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import { fileURLToPath } from "node:url"

/** A fenced block. Lines are counted from 0. */
export interface Fenced {
  readonly language: string
  /** What follows the language: the file that the block shows, or the program whose output it is. */
  readonly file: string
  /** The line of the opening fence. */
  readonly line: number
  /** The lines between the fences, with their margin. */
  readonly body: ReadonlyArray<string>
}

export const root = fileURLToPath(new URL("../..", import.meta.url))

export const read = (file: string): string => fs.readFileSync(path.join(root, file), "utf8")

/** The guides, relative to the root: `examples/README.md`, and a README.md beside each program. */
export const guides: ReadonlyArray<string> = fs
  .readdirSync(path.join(root, "examples"), { recursive: true, encoding: "utf8" })
  .map((name) => `examples/${name.replaceAll("\\", "/")}`)
  .filter((file) => file.endsWith("/README.md"))
  .sort()

/** Finds the fenced blocks of the lines. `margin` matches what precedes the text on each line. */
export const fencedBlocks = (
  lines: ReadonlyArray<string>,
  margin: RegExp = /^(?!)/
): { readonly blocks: ReadonlyArray<Fenced>; readonly isClosed: boolean } => {
  const blocks: Array<Fenced> = []
  let open: Omit<Fenced, "body"> | undefined
  lines.forEach((line, index) => {
    const fence = /^```+(\w*) *(.*?) *$/.exec(line.replace(margin, ""))
    if (fence === null) return
    if (open === undefined) {
      open = { language: fence[1] ?? "", file: fence[2] ?? "", line: index }
      return
    }
    blocks.push({ ...open, body: lines.slice(open.line + 1, index) })
    open = undefined
  })
  return { blocks, isClosed: open === undefined }
}

/** The anchors of a page's headings, as GitHub names them. */
export const anchorsOf = (text: string): ReadonlySet<string> => {
  const lines = text.split("\n")
  const inBlock = new Set(
    fencedBlocks(lines).blocks.flatMap(({ body, line }) => body.map((_, index) => line + 1 + index))
  )
  return new Set(
    lines.flatMap((line, index) => {
      const heading = inBlock.has(index) ? null : /^#+ +(.*?) *$/.exec(line)
      return heading === null
        ? []
        : [
            (heading[1] ?? "")
              .toLowerCase()
              .replace(/[^\p{L}\p{N} _-]/gu, "")
              .replaceAll(" ", "-")
          ]
    })
  )
}

/** The links of a page to other files and to headings, with their places in the text. */
export const linksOf = (
  text: string
): ReadonlyArray<{ readonly target: string; readonly anchor: string; readonly index: number }> =>
  [...text.matchAll(/\]\(([^)#\s]*)(?:#([^)\s]*))?\)/g)].flatMap(({ 1: target = "", 2: anchor = "", index }) =>
    target.includes(":") || (target === "" && anchor === "") ? [] : [{ target, anchor, index }]
  )
