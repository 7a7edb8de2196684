/**
 * Runs the examples of doc comments in src. An example is a module, and loading it makes its aggregates and layers.
 *
 * An example with comments `prints: …` must print these lines, in their order. If it exports `program`, an effect
 * without requirements, the program runs, and its value is printed. Examples that declare what they do not have, and
 * suites, which vitest runs, are left out.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import { pathToFileURL } from "node:url"
import { inspect } from "node:util"
import * as Effect from "effect/Effect"
import { fencedBlocks, read, root } from "./markdown.js"

interface Example {
  readonly file: string
  readonly line: number
  readonly code: string
}

const timeout = "30 seconds"

const examplesOf = (file: string): ReadonlyArray<Example> => {
  const text = read(file)
  return [...text.matchAll(/\/\*\*[\s\S]*?\*\//g)].flatMap((comment) => {
    const firstLine = text.slice(0, comment.index).split("\n").length
    return fencedBlocks(comment[0].split("\n"), /^\s*\* ?/).blocks.flatMap(({ body, language, line }) => {
      const code = body.map((codeLine) => codeLine.replace(/^\s*\* ?/, "")).join("\n")
      const canRun = language === "ts" && !/^declare |Contract\.suite\(/m.test(code)
      return canRun ? [{ file, line: firstLine + line, code }] : []
    })
  })
}

const shown = (value: unknown): string => (typeof value === "string" ? value : inspect(value, { breakLength: 1000 }))

/** Loads the module, runs its program if the example says what that prints, and returns what was printed. */
const linesOf = async (module: string, runsProgram: boolean): Promise<ReadonlyArray<string>> => {
  const lines: Array<string> = []
  const { log } = console
  console.log = (...values: ReadonlyArray<unknown>) => {
    lines.push(values.map(shown).join(" "))
  }
  try {
    const exported: { readonly program?: Effect.Effect<unknown, unknown> } = await import(module)
    if (runsProgram && exported.program !== undefined) {
      const value = await Effect.runPromise(exported.program.pipe(Effect.timeout(timeout)))
      if (value !== undefined) console.log(value)
    }
    return lines
  } finally {
    console.log = log
  }
}

const problemOf = async ({ code, file, line }: Example, module: string): Promise<string | undefined> => {
  const expected = [...code.matchAll(/\/\/ prints: (.*)/g)].map(([, text = ""]) => text.trim())
  const printed = await linesOf(module, expected.length > 0).catch((error: unknown) => [`fails: ${shown(error)}`])
  return printed.join("\n") === expected.join("\n")
    ? undefined
    : `${file}:${line} the example prints ${JSON.stringify(printed)}, and its comments say ${JSON.stringify(expected)}`
}

const examples = fs
  .readdirSync(path.join(root, "src"), { recursive: true, encoding: "utf8" })
  .map((name) => `src/${name.replaceAll("\\", "/")}`)
  .filter((file) => file.endsWith(".ts"))
  .sort()
  .flatMap(examplesOf)

// In the root, because modules find packages by their place.
const folder = fs.mkdtempSync(path.join(root, ".examples-"))
const problems: Array<string> = []
try {
  for (const [index, example] of examples.entries()) {
    const module = path.join(folder, `${index}.ts`)
    fs.writeFileSync(module, example.code)
    const problem = await problemOf(example, pathToFileURL(module).href)
    if (problem !== undefined) problems.push(problem)
  }
} finally {
  fs.rmSync(folder, { recursive: true })
}

for (const problem of problems) console.error(problem)
const checked = examples.filter(({ code }) => code.includes("// prints: ")).length
console.log(`${examples.length} examples of doc comments run, ${checked} print: ${problems.length} problems`)
process.exitCode = problems.length === 0 ? 0 : 1
