/**
 * Writes the second part of `examples/llms.txt`, the page for coding agents: the API with its types, from the
 * declarations. The first part, up to the line `## API`, is written by hand, and `examples.ts` compiles its snippets.
 *
 * Without `--write` it checks that the page is current, and no longer than an agent reads at a time.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import ts from "typescript"
import { commentOf, type Declared, type Exported, type PublicModule, printed, readSurface } from "./declarations.js"
import { differences } from "./lines.js"
import { root } from "./markdown.js"

const file = "examples/llms.txt"
const marker = "\n## API\n"
const longest = 780

/** These are for makers of stores and of suites: their exports are listed by name. */
const byNameAlone = new Set(["StoreAdapter", "SubscriptionStore", "StoreContract", "FeedContract", "Snapshot"])

const oneLine = (text: string): string => text.replaceAll(/\s+/g, " ").trim()

/** The first sentence of a comment. A full stop inside of code, or after an abbreviation, ends none. */
const sentenceOf = (node: ts.Node): string => {
  const [paragraph = ""] = commentOf(node).split(/\n\s*\n|\n- /)
  const text = oneLine(paragraph).replace(/^- /, "")
  return (/^.*?[^.\s]{2}\.(?=\s+[A-Z`]|$)/.exec(text)?.[0] ?? text).replace(/[.:]$/, "")
}

const withSentence = (line: string, sentence: string): string => (sentence === "" ? line : `${line} // ${sentence}`)

const membersOf = (statement: ts.Statement): ReadonlyArray<ts.TypeElement> => {
  if (ts.isInterfaceDeclaration(statement)) return statement.members
  return ts.isTypeAliasDeclaration(statement) && ts.isTypeLiteralNode(statement.type) ? statement.type.members : []
}

const isInternal = (node: ts.Node): boolean => ts.getJSDocTags(node).some(({ tagName }) => tagName.text === "internal")

/** A declaration with many members has a line for each, with its sentence. Any other declaration has one line. */
const linesOfStatement = (statement: ts.Statement, sentence: string): ReadonlyArray<string> => {
  const members = membersOf(statement).filter((member) => !isInternal(member))
  const text = withoutModifiers(printed(statement))
  if (members.length < 5) return [withSentence(text, sentence)]
  const head = /^[^{]*?(?:\{[^{}]*\}[^{}]*?)*(?=\{)/.exec(text.slice(0, text.indexOf(firstMember(members))))?.[0] ?? ""
  return [
    withSentence(`${head}{`, sentence),
    ...members.map((member) => withSentence(`  ${withoutModifiers(member.getText())}`, sentenceOf(member))),
    "}"
  ]
}

const firstMember = (members: ReadonlyArray<ts.TypeElement>): string => members[0]?.name?.getText() ?? ""

const withoutModifiers = (text: string): string =>
  oneLine(text).replaceAll("readonly ", "").replaceAll(" | undefined", "")

/** A class of a schema, whose fields are in the type of its base. */
const linesOfClass = (name: string, base: Declared, sentence: string): ReadonlyArray<string> =>
  base.nodes.map((node) =>
    withSentence(withoutModifiers(printed(node)).replace(/^const \w+:/, `class ${name}:`), sentence)
  )

const linesOfExport = (
  { declared, documented, name }: Exported,
  referred: ReadonlyArray<Declared>
): ReadonlyArray<string> => {
  const [first] = declared.nodes
  const sentence = sentenceOf(documented) || (first === undefined ? "" : sentenceOf(first))
  const base = referred.find((other) => other.name === `${declared.name}_base`)
  if (base !== undefined) return linesOfClass(name, base, sentence)
  return declared.nodes.flatMap((statement, index) => {
    const lines = linesOfStatement(statement, index === 0 ? sentence : "")
    return declared.name === name ? lines : lines.map((line) => line.replace(declared.name, name))
  })
}

/** The interfaces that the exports extend and no public module exports. */
const extendedBy = (module: PublicModule, referred: ReadonlyArray<Declared>): ReadonlyArray<Declared> => {
  const names = module.exports.flatMap(({ declared }) =>
    declared.nodes.flatMap((node) => [...printed(node).matchAll(/extends (\w+Options)\b/g)].map(([, name]) => name))
  )
  return referred.filter(({ name }) => names.includes(name))
}

const linesOfModule = (module: PublicModule, referred: ReadonlyArray<Declared>): ReadonlyArray<string> => [
  "",
  `### effect-maestro/${module.name}`,
  module.summary,
  ...(byNameAlone.has(module.name)
    ? [`Exports: ${[...new Set(module.exports.map(({ name }) => name))].join(", ")}.`]
    : [
        "```",
        ...module.exports.flatMap((exported) => linesOfExport(exported, referred)),
        ...extendedBy(module, referred).flatMap(({ nodes }) =>
          nodes.flatMap((node) => linesOfStatement(node, sentenceOf(node)))
        ),
        "```"
      ])
]

const target = path.join(root, file)
const stored = fs.readFileSync(target, "utf8")
const end = stored.indexOf(marker)
if (end < 0) throw new Error(`${file} has no line "## API"`)
const { modules, referred } = readSurface()
const page = `${[
  `${stored.slice(0, end)}${marker}`,
  "Types are shortened: `readonly` and `| undefined` are left out. The full declarations are in `dist` of the package.",
  ...modules.flatMap((module) => linesOfModule(module, referred))
]
  .join("\n")
  .trimEnd()}\n`
const { length } = page.split("\n")

const problems = [
  ...(process.argv.includes("--write") ? [] : differences(stored, page)),
  ...(length > longest ? [`${file} has ${length} lines, and at most ${longest} are for a page`] : [])
]
if (process.argv.includes("--write")) fs.writeFileSync(target, page)
for (const problem of problems) console.error(problem)
console.log(
  problems.length === 0 ? `${file}: ${length} lines` : `${file} is not current, or too long. To write it: npm run llms`
)
process.exitCode = problems.length === 0 ? 0 : 1
