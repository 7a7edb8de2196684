/**
 * Checks the language of comments, string literals, README.md and guides. It reports words of `words.ts`, sentences
 * that are too long, modules without a comment at the head, and names of files that do not exist.
 *
 * `npx tsx test/check/prose.ts src/SqlStore.ts test` limits the check to files and folders.
 */
import * as fs from "node:fs"
import ts from "typescript"
import { forbidden } from "./words.js"

const words = forbidden.map(([pattern, instead]) => ({
  instead,
  pattern: new RegExp(
    /^\W/.test(pattern) ? pattern : `(?<![\\w$])(?:${pattern.replaceAll(" ", "\\s+")})(?![\\w$])`,
    "gi"
  )
}))

/** The rule is 25 words; the check lets a list or a name run over. */
const longestSentence = Number(process.env.PROSE_WORDS ?? 30)

interface Problem {
  readonly file: string
  readonly line: number
  readonly column: number
  readonly text: string
}
const problems: Array<Problem> = []

/** The text in which everything but the given ranges is blank, so that offsets stay those of the file. */
const only = (text: string, ranges: ReadonlyArray<ts.TextRange>): string => {
  const blank = (part: string): string => part.replaceAll(/[^\n]/g, " ")
  let end = 0
  const parts = ranges.map((range) => {
    const part = blank(text.slice(end, range.pos)) + text.slice(range.pos, range.end)
    end = range.end
    return part
  })
  return parts.join("") + blank(text.slice(end))
}

const blankOut = (text: string, pattern: RegExp): string =>
  text.replaceAll(pattern, (found) => found.replaceAll(/[^\n]/g, " "))

/** Code is no prose: `inline`, and fenced blocks apart from their comments. */
const withoutCode = (text: string): string =>
  blankOut(
    text
      .replaceAll(/^[ *]*```[\s\S]*?^[ *]*```/gm, (block) =>
        block.replaceAll(/^(.*?)(\/\/.*)?$/gm, (_, code: string, comment = "") => " ".repeat(code.length) + comment)
      )
      .replaceAll(/`[^`\n]+`/g, (code) => `x${" ".repeat(code.length - 1)}`),
    /\]\([^)\n]*\)|https?:\S+/g
  )

const report = (file: string, text: string, offset: number, message: string): void => {
  const before = text.slice(0, offset).split("\n")
  problems.push({ file, line: before.length, column: (before.at(-1)?.length ?? 0) + 1, text: message })
}

const checkWords = (file: string, prose: string): void => {
  for (const { pattern, instead } of words) {
    for (const found of prose.matchAll(pattern))
      report(file, prose, found.index, `${found[0].replaceAll(/\s+/g, " ")} → ${instead}`)
  }
}

/** A sentence ends with its mark, an empty line, a list's next item, a table's cell or a tag. */
const checkSentences = (file: string, prose: string): void => {
  let start = 0
  for (const sentence of prose.split(/((?<=[.!?])["')]*\s|\n\s*\n|\n\s*(?=[-@#|]|\d+\.)|\||:\n)/)) {
    const length = sentence.match(/\S*\w\S*/g)?.length ?? 0
    if (length > longestSentence) {
      report(
        file,
        prose,
        start + sentence.search(/\S/),
        `a sentence of ${length} words → at most ${longestSentence}, and 25 is better`
      )
    }
    start += sentence.length
  }
}

/** A file that a text names, such as `sql/feed.ts`, with as many folders as the text gives. */
const checkFiles = (file: string, text: string): void => {
  for (const found of text.matchAll(/`([\w./-]+\.ts)`/g)) {
    const name = (found[1] ?? "").replace(/^\.\//, "")
    if (!all.some((known) => `/${known}`.endsWith(`/${name}`)))
      report(file, text, found.index, `${name} → there is no such file`)
  }
}

const checkMarkdown = (file: string): void => {
  // What follows in the page for coding agents is made from declarations and their comments.
  const [text = ""] = fs.readFileSync(file, "utf8").split("\n## API\n")
  const prose = withoutCode(text)
  if (file === "README.md" || file === "src/README.md") checkFiles(file, text)
  checkWords(file, prose)
  checkSentences(file, prose)
}

const checkModule = (file: string): void => {
  const text = fs.readFileSync(file, "utf8")
  const source = ts.createSourceFile(file, text, ts.ScriptTarget.Latest, true)
  const comments = new Map<number, ts.CommentRange>()
  const strings: Array<ts.TextRange> = []
  const visit = (node: ts.Node): void => {
    const around = [ts.getLeadingCommentRanges(text, node.pos), ts.getTrailingCommentRanges(text, node.pos)]
    if (!ts.isJSDoc(node)) for (const range of around.flatMap((ranges) => ranges ?? [])) comments.set(range.pos, range)
    const isName = ts.isImportDeclaration(node.parent ?? node) || ts.isExportDeclaration(node.parent ?? node)
    if ((ts.isStringLiteral(node) || ts.isTemplateLiteralToken(node)) && !isName && /\s/.test(node.text)) {
      strings.push({ pos: node.getStart(), end: node.end })
    }
    if (!ts.isJSDoc(node)) for (const child of node.getChildren()) visit(child)
  }
  visit(source)
  const ranges = [...comments.values()].sort((a, b) => a.pos - b.pos)
  // The margin of a comment is no word, and an empty line separates one comment from the next.
  const margins = blankOut(only(text, ranges), /^[ \t]*\*\/?|\/\*\*?|\*\/|\/\//gm)
  const prose = withoutCode(margins)
  if (file.startsWith("src/")) checkFiles(file, margins)
  checkWords(file, prose)
  checkWords(file, only(text, strings))
  checkSentences(file, prose)
  // A program may name its interpreter first.
  const head = /^#!.*\n/.exec(text)?.[0].length ?? 0
  if (ranges[0]?.pos !== head && file !== "examples/quick-start.ts")
    report(file, text, 0, "no head → say in a sentence what the module is for")
}

const given = process.argv.slice(2).map((path) => path.replace(/^\.\//, "").replace(/\/$/, ""))
const isMine = (file: string): boolean =>
  given.length === 0 || given.some((path) => file === path || file.startsWith(`${path}/`))
const inFolder = (folder: string): ReadonlyArray<string> =>
  fs.readdirSync(folder, { recursive: true, encoding: "utf8" }).map((name) => `${folder}/${name.replaceAll("\\", "/")}`)
const all = ["README.md", "CHANGELOG.md", ...["src", "test", "examples"].flatMap(inFolder)].sort()
const isText = (file: string): boolean => file.endsWith(".md") || file === "examples/llms.txt"
const files = all.filter(isMine)
for (const file of files) {
  // The list names what it forbids.
  if (file.endsWith(".ts") && file !== "test/check/words.ts") checkModule(file)
  if (isText(file)) checkMarkdown(file)
}
for (const { column, file, line, text } of problems) console.error(`${file}:${line}:${column} ${text}`)
console.log(
  `The language of ${files.filter((file) => file.endsWith(".ts") || isText(file)).length} files: ${problems.length} problems`
)
process.exitCode = problems.length === 0 ? 0 : 1
