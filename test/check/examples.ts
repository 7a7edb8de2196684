/**
 * Checks the documentation against the code:
 *
 * - every `ts` block of README.md, and of the doc comments in src, type-checks;
 * - README.md opens with examples/quick-start.ts;
 * - every file that README.md links to exists, and guides, pictures and examples are in the package;
 * - every `@example` has a `ts` block, and every public export has `@since` and `@category`.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import ts from "typescript"

interface Block {
  /** The documented file, relative to the root. */
  readonly file: string
  /** The code as it stands in the file. */
  readonly code: string
  /** The same code with every character at its original line and column, so that errors point into the file. */
  readonly inPlace: string
}

const root = fileURLToPath(new URL("../..", import.meta.url))
const quickStart = "examples/quick-start.ts"
const problems: Array<string> = []

const read = (file: string): string => fs.readFileSync(path.join(root, file), "utf8")

const report = (file: string, text: string, offset: number, message: string): void => {
  const before = text.slice(0, offset).split("\n")
  problems.push(`${file}:${before.length}:${(before.at(-1)?.length ?? 0) + 1} ${message}`)
}

/** Finds the fenced `ts` blocks in `text` between two offsets. `margin` matches what precedes the code on each line. */
const blocksOf = (file: string, text: string, margin: RegExp, start = 0, end = text.length): Array<Block> => {
  const blocks: Array<Block> = []
  const lines = text.slice(start, end).split("\n")
  const firstLine = text.slice(0, start).split("\n").length - 1
  let open: { readonly line: number; readonly isCode: boolean } | undefined
  lines.forEach((line, index) => {
    const fence = /^```+(\w*)/.exec(line.replace(margin, ""))
    if (fence === null) return
    if (open === undefined) {
      open = { line: index, isCode: /^(ts|tsx|typescript)$/.test(fence[1] ?? "") }
      return
    }
    if (open.isCode) {
      const body = lines.slice(open.line + 1, index)
      blocks.push({
        file,
        code: body.map((codeLine) => codeLine.replace(margin, "")).join("\n"),
        inPlace:
          "\n".repeat(firstLine + open.line + 1) +
          body.map((codeLine) => codeLine.replace(margin, (found) => " ".repeat(found.length))).join("\n")
      })
    }
    open = undefined
  })
  if (open !== undefined) report(file, text, start, "a code block is never closed")
  return blocks
}

const readmeBlocks = (): Array<Block> => {
  const file = "README.md"
  if (!fs.existsSync(path.join(root, file))) {
    problems.push(`${file} is missing`)
    return []
  }
  const blocks = blocksOf(file, read(file), /^(?!)/)
  if (blocks.length === 0) problems.push(`${file} has no ts block`)
  else if (!fs.existsSync(path.join(root, quickStart))) problems.push(`${quickStart} is missing`)
  else if (blocks[0]?.code.trim() !== read(quickStart).trim()) {
    problems.push(`${file}: its first ts block must be the same as ${quickStart}`)
  }
  return blocks
}

const checkLinks = (): void => {
  const text = read("README.md")
  const { files }: { readonly files: ReadonlyArray<string> } = JSON.parse(read("package.json"))
  for (const { 1: target = "", index } of text.matchAll(/\]\(([^)#:]+)\)/g)) {
    if (!fs.existsSync(path.join(root, target))) report("README.md", text, index, `${target} does not exist`)
    // Sources of tests are for those who work on a clone.
    const isPackaged = files.some((file) => target === file || target.startsWith(`${file}/`))
    const isForUsers = !target.startsWith("test/") || /\.(md|svg)$/.test(target)
    if (isForUsers && !isPackaged) report("README.md", text, index, `${target} is not in the package`)
  }
}

const docBlocks = (file: string): Array<Block> => {
  const text = read(file)
  return [...text.matchAll(/\/\*\*[\s\S]*?\*\//g)].flatMap((comment) => {
    const blocks = blocksOf(file, text, /^\s*\* ?/, comment.index, comment.index + comment[0].length)
    if (comment[0].includes("@example") && blocks.length === 0) {
      report(file, text, comment.index, "@example has no ts block")
    }
    return blocks
  })
}

const typeCheck = (blocks: ReadonlyArray<Block>): void => {
  const configFile = path.join(root, "tsconfig.json")
  const config = ts.getParsedCommandLineOfConfigFile(
    configFile,
    {},
    {
      ...ts.sys,
      onUnRecoverableConfigFileDiagnostic: (diagnostic) => {
        throw new Error(ts.flattenDiagnosticMessageText(diagnostic.messageText, "\n"))
      }
    }
  )
  if (config === undefined) throw new Error(`cannot read ${configFile}`)

  // Each block becomes a module that lives only in memory, beside the file that it documents.
  const modules = new Map(blocks.map((block, index) => [path.join(root, `${block.file}.${index}.ts`), block]))
  const host = ts.createCompilerHost(config.options)
  const program = ts.createProgram([...modules.keys()], config.options, {
    ...host,
    fileExists: (name) => modules.has(path.normalize(name)) || host.fileExists(name),
    readFile: (name) => modules.get(path.normalize(name))?.inPlace ?? host.readFile(name),
    getSourceFile: (name, options) => {
      const block = modules.get(path.normalize(name))
      return block === undefined
        ? host.getSourceFile(name, options)
        : ts.createSourceFile(name, block.inPlace, options, true)
    }
  })
  for (const [name, block] of modules) {
    for (const { messageText, start } of ts.getPreEmitDiagnostics(program, program.getSourceFile(name))) {
      report(block.file, block.inPlace, start ?? 0, ts.flattenDiagnosticMessageText(messageText, "\n  "))
    }
  }
}

const isExported = (statement: ts.Statement): boolean =>
  ts.isExportDeclaration(statement) ||
  ts.isExportAssignment(statement) ||
  (ts.canHaveModifiers(statement) &&
    ts.getModifiers(statement)?.some(({ kind }) => kind === ts.SyntaxKind.ExportKeyword) === true)

/** The nodes an exported statement declares: one for each name. */
const declarationsOf = (statement: ts.Statement): ReadonlyArray<ts.Node> => {
  if (ts.isVariableStatement(statement)) return statement.declarationList.declarations
  if (ts.isExportDeclaration(statement) && statement.exportClause && ts.isNamedExports(statement.exportClause)) {
    return statement.exportClause.elements
  }
  if (ts.isModuleDeclaration(statement) && statement.body && ts.isModuleBlock(statement.body)) {
    return [statement, ...statement.body.statements.filter(isExported).flatMap(declarationsOf)]
  }
  return [statement]
}

/** Reports the exports of a public module that lack `@since` or `@category`, and returns how many exports it has. */
const checkTags = (file: string): number => {
  const text = read(file)
  const source = ts.createSourceFile(file, text, ts.ScriptTarget.Latest, true)
  const declarations = source.statements.filter(isExported).flatMap(declarationsOf)
  const documentedOverloads = new Set<string>()
  for (const node of declarations) {
    const name = ts.getNameOfDeclaration(node as ts.Declaration)?.getText() ?? "export"
    const tags = ts.getJSDocTags(node)
    const valueOf = (tag: string): string => {
      const comment = tags.find(({ tagName }) => tagName.text === tag)?.comment
      return (ts.getTextOfJSDocComment(comment) ?? "").trim()
    }
    if (ts.isFunctionDeclaration(node)) {
      // The comment of the first overload serves all of them.
      if (documentedOverloads.has(name)) continue
      documentedOverloads.add(name)
    }
    if (!/^\d+\.\d+\.\d+$/.test(valueOf("since"))) {
      report(file, text, node.getStart(), `${name} needs a doc comment with @since and a version`)
    }
    if (!/^[a-z][a-z ]*s$/.test(valueOf("category"))) {
      report(file, text, node.getStart(), `${name} needs a doc comment with @category and a lower-case plural`)
    }
  }
  return declarations.length
}

const sources = fs
  .readdirSync(path.join(root, "src"), { recursive: true, encoding: "utf8" })
  .map((name) => `src/${name.replaceAll("\\", "/")}`)
  .filter((file) => file.endsWith(".ts"))
  .sort()
const publicModules = sources.filter((file) => /^src\/[^/]+$/.test(file) && file !== "src/index.ts")

const inReadme = readmeBlocks()
const inComments = sources.flatMap(docBlocks)
checkLinks()
typeCheck([...inReadme, ...inComments])
const exported = publicModules.map(checkTags).reduce((sum, count) => sum + count, 0)

for (const problem of problems) console.error(problem)
console.log(
  `${inReadme.length} examples in README.md, ${inComments.length} in src, ` +
    `${exported} exports in ${publicModules.length} modules: ${problems.length} problems`
)
process.exitCode = problems.length === 0 ? 0 : 1
