/**
 * Runs the programs of the guides and compares what they print with what the guides show.
 *
 * A fence "text main.ts" in `examples/<topic>/README.md` holds the output of `examples/<topic>/main.ts`. In it `…` stands for text that
 * differs from run to run.
 */
import { spawn } from "node:child_process"
import * as path from "node:path"
import { fencedBlocks, guides, read, root } from "./markdown.js"

interface Program {
  readonly guide: string
  readonly file: string
  readonly expected: string
}

const timeout = 300_000

const programs: ReadonlyArray<Program> = guides.flatMap((guide) =>
  fencedBlocks(read(guide).split("\n"))
    .blocks.filter(({ file, language }) => language === "text" && file !== "")
    .map(({ body, file }) => ({ guide, file: path.join(path.dirname(guide), file), expected: body.join("\n") }))
)

/** Runs a program on the embedded store, and returns what it prints to standard output. */
const outputOf = (file: string): Promise<string> =>
  new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ["--import", "tsx", file], {
      cwd: root,
      stdio: ["ignore", "pipe", "inherit"],
      env: { ...process.env, DATABASE_URL: undefined },
      timeout,
      // NodeRuntime ends a program with code 0 on SIGTERM.
      killSignal: "SIGKILL"
    })
    let text = ""
    child.stdout.on("data", (data) => {
      text += data
    })
    child.once("error", reject)
    child.once("close", (code) => {
      if (code === 0) resolve(text)
      else reject(new Error(`${file} ended with ${code ?? `a signal, maybe after ${timeout} ms`}:\n${text}`))
    })
  })

const escaped = (text: string): string => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")

const problemOf = ({ expected, file, guide }: Program, output: string): string | undefined => {
  const wanted = expected.trimEnd().split("\n")
  const printed = output.trimEnd().split("\n")
  const index = wanted.findIndex(
    (line, at) =>
      !new RegExp(`^${line.trimEnd().split("…").map(escaped).join(".*")}$`).test(printed[at]?.trimEnd() ?? "")
  )
  if (index >= 0) {
    return `${guide}: ${file} prints ${JSON.stringify(printed[index] ?? "")} where the guide has ${JSON.stringify(wanted[index])}`
  }
  return printed.length > wanted.length
    ? `${guide}: ${file} prints more: ${JSON.stringify(printed[wanted.length])}`
    : undefined
}

const problems: Array<string> = []
const waiting = [...programs]
const runAll = async (): Promise<void> => {
  for (let program = waiting.shift(); program !== undefined; program = waiting.shift()) {
    const { expected, file, guide } = program
    const problem = await outputOf(file).then(
      (output) => problemOf({ expected, file, guide }, output),
      (error: Error) => `${guide}: ${error.message}`
    )
    if (problem !== undefined) problems.push(problem)
  }
}
await Promise.all([runAll(), runAll()])

for (const problem of problems) console.error(problem)
console.log(`${programs.length} programs of guides: ${problems.length} problems`)
process.exitCode = problems.length === 0 ? 0 : 1
