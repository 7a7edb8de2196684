/**
 * Checks the documentation against the code:
 *
 * - every `ts` block of README.md, of the guides in examples, of the page for coding agents, and of the doc comments in
 *   src type-checks;
 * - a block of a guide that names a file (a fence "ts main.ts") is a part of that file;
 * - README.md opens with examples/quick-start.ts;
 * - every file and heading that README.md or a guide links to exists, and guides, pictures and examples are in the package;
 * - every `@example` has a `ts` block, and every public export has a sentence, `@since` and `@category`.
 *
 * `programs.ts` checks the output that guides show, and `runExamples.ts` what examples of doc comments print.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import ts from "typescript"
import { anchorsOf, fencedBlocks, guides, linksOf, read, root } from "./markdown.js"

interface Block {
  /** The documented file, relative to the root. */
  readonly file: string
  /** The code as it stands in the file. */
  readonly code: string
  /** The same code with every character at its original line and column, so that errors point into the file. */
  readonly inPlace: string
}

const quickStart = "examples/quick-start.ts"
const problems: Array<string> = []

const report = (file: string, text: string, offset: number, message: string): void => {
  const before = text.slice(0, offset).split("\n")
  problems.push(`${file}:${before.length}:${(before.at(-1)?.length ?? 0) + 1} ${message}`)
}

/**
 * Finds the fenced `ts` blocks in `text` between two offsets. `margin` matches what precedes the code on each line. A block that names the
 * file that it shows is compared with that file, which `tsc` checks.
 */
const blocksOf = (file: string, text: string, margin: RegExp, start = 0, end = text.length): Array<Block> => {
  const firstLine = text.slice(0, start).split("\n").length - 1
  const { blocks, isClosed } = fencedBlocks(text.slice(start, end).split("\n"), margin)
  if (!isClosed) report(file, text, start, "a code block is never closed")
  return blocks.flatMap(({ body, file: shown, language, line }) => {
    if (!/^(ts|tsx|typescript)$/.test(language)) return []
    const code = body.map((codeLine) => codeLine.replace(margin, "")).join("\n")
    if (shown !== "") {
      checkExcerpt(file, firstLine + line + 1, code, shown)
      return []
    }
    return [
      {
        file,
        code,
        inPlace:
          "\n".repeat(firstLine + line + 1) +
          body.map((codeLine) => codeLine.replace(margin, (found) => " ".repeat(found.length))).join("\n")
      }
    ]
  })
}

/** Reports a block that is no part of the file that it names. The part may be indented. */
const checkExcerpt = (guide: string, line: number, code: string, shown: string): void => {
  const file = path.join(path.dirname(guide), shown)
  if (!fs.existsSync(path.join(root, file))) {
    problems.push(`${guide}:${line} ${file} does not exist`)
    return
  }
  const lines = read(file).split("\n")
  const { length } = code.split("\n")
  if (!lines.some((_, start) => withoutIndent(lines.slice(start, start + length)) === code)) {
    problems.push(`${guide}:${line} the block is no part of ${file}`)
  }
}

const withoutIndent = (lines: ReadonlyArray<string>): string => {
  const indents = lines.filter((line) => line !== "").map((line) => line.length - line.trimStart().length)
  const indent = Math.min(...indents)
  return lines.map((line) => line.slice(indent)).join("\n")
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
    problems.push(`${file}: its first ts block must be equal to ${quickStart}`)
  }
  return blocks
}

const checkLinks = (page: string): void => {
  const text = read(page)
  const { files }: { readonly files: ReadonlyArray<string> } = JSON.parse(read("package.json"))
  for (const { anchor, index, target } of linksOf(text)) {
    const file = target === "" ? page : path.join(path.dirname(page), target)
    if (!fs.existsSync(path.join(root, file))) {
      report(page, text, index, `${file} does not exist`)
      continue
    }
    if (anchor !== "" && !anchorsOf(read(file)).has(anchor)) report(page, text, index, `${file} has no #${anchor}`)
    // README.md is always in the package. Sources of tests are for work on a clone.
    const isPackaged = file === "README.md" || files.some((name) => file === name || file.startsWith(`${name}/`))
    const isForUsers = !file.startsWith("test/") || /\.(md|svg)$/.test(file)
    if (isForUsers && !isPackaged) report(page, text, index, `${file} is not in the package`)
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

const nameOf = (node: ts.Node): string => ts.getNameOfDeclaration(node as ts.Declaration)?.getText() ?? "export"

/** The text of the doc comment, without its tags. */
const commentOf = (node: ts.Node): string =>
  ts
    .getJSDocCommentsAndTags(node)
    .flatMap((doc) => (ts.isJSDoc(doc) ? [ts.getTextOfJSDocComment(doc.comment) ?? ""] : []))
    .join("\n\n")

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
  // A type and a value of one name need one sentence.
  const explained = new Set(declarations.filter((node) => /\.(\s|$)/.test(commentOf(node))).map(nameOf))
  for (const node of declarations) {
    const name = nameOf(node)
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
    if (!explained.has(name)) {
      report(file, text, node.getStart(), `${name} needs a doc comment that says in a sentence what it is`)
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
// The page for agents is a guide, too.
const inGuides = [...guides, "examples/llms.txt"].flatMap((guide) => blocksOf(guide, read(guide), /^(?!)/))
for (const page of ["README.md", ...guides]) checkLinks(page)
typeCheck([...inReadme, ...inGuides, ...inComments])
const exported = publicModules.map(checkTags).reduce((sum, count) => sum + count, 0)

for (const problem of problems) console.error(problem)
console.log(
  `${inReadme.length} examples in README.md, ${inGuides.length} in guides, ${inComments.length} in src, ` +
    `${exported} exports in ${publicModules.length} modules: ${problems.length} problems`
)
process.exitCode = problems.length === 0 ? 0 : 1
