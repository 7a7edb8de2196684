/** The command `effect-maestro init`, run from the sources. `test/check/starter.ts` runs the project that it makes. */
import { spawnSync } from "node:child_process"
import * as fs from "node:fs"
import { tmpdir } from "node:os"
import * as path from "node:path"
import { afterEach, beforeEach, expect, it } from "vitest"

const root = path.resolve(import.meta.dirname, "..")

let folder = ""

beforeEach(() => {
  folder = fs.mkdtempSync(path.join(tmpdir(), "effect-maestro-init-"))
})

afterEach(() => fs.rmSync(folder, { recursive: true, force: true }))

const runFrom = (program: string, ...given: ReadonlyArray<string>) => {
  const tsx = path.join(root, "node_modules", "tsx", "dist", "loader.mjs")
  const { status, stderr, stdout } = spawnSync(process.execPath, ["--import", tsx, program, "init", ...given], {
    cwd: folder,
    encoding: "utf8",
    timeout: 60_000
  })
  return { status, stderr, stdout }
}

const init = (...given: ReadonlyArray<string>) => runFrom(path.join(root, "src", "cli", "init.ts"), ...given)

const nameOf = (project: string): string =>
  JSON.parse(fs.readFileSync(path.join(folder, project, "package.json"), "utf8")).name

it("a failure midway leaves nothing behind, and what was there before stays", () => {
  // A package whose manifest has no versions, which the program finds after the files of the template.
  const broken = path.join(folder, "package")
  fs.cpSync(path.join(root, "src", "cli"), path.join(broken, "src", "cli"), { recursive: true })
  fs.cpSync(path.join(root, "examples", "starter"), path.join(broken, "examples", "starter"), { recursive: true })
  fs.writeFileSync(path.join(broken, "package.json"), '{"type":"module"}')
  fs.mkdirSync(path.join(folder, "before", ".git"), { recursive: true })
  for (const project of ["before", "new/inner"]) {
    const { status, stderr } = runFrom(path.join(broken, "src", "cli", "init.ts"), project)
    expect([status, stderr]).toEqual([1, expect.stringContaining("effect-maestro: ")])
  }
  expect(fs.readdirSync(folder).sort()).toEqual(["before", "package"])
  expect(fs.readdirSync(path.join(folder, "before"))).toEqual([".git"])
})

it("the printed cd is one word of a shell, and leads to the project", () => {
  for (const project of ["my project", "it's $(touch made) `here`", "./-y"]) {
    const { status, stdout } = init(project)
    expect(status).toBe(0)
    const cd = stdout.split("\n").find((line) => line.startsWith("  cd ")) ?? ""
    const shown = spawnSync("sh", ["-c", `${cd} && pwd`], { cwd: folder, encoding: "utf8" })
    expect(shown.stdout.trim()).toBe(path.join(fs.realpathSync(folder), project))
  }
  expect(fs.existsSync(path.join(folder, "made"))).toBe(false)
})

it("a long name of a folder is cut to a name that npm takes", () => {
  init(`${"x".repeat(213)}-${"y".repeat(20)}`)
  expect(nameOf(`${"x".repeat(213)}-${"y".repeat(20)}`)).toBe("x".repeat(213))
})

it("a file, a dangling link and a full folder are refused by name, and stay as they are", () => {
  fs.writeFileSync(path.join(folder, "file"), "text")
  fs.symlinkSync(path.join(folder, "nowhere"), path.join(folder, "link"))
  fs.mkdirSync(path.join(folder, "full", "inner"), { recursive: true })
  const refused = (project: string) => {
    const { status, stderr } = init(project)
    return [status, stderr.trim()]
  }
  const at = (name: string) => path.join(fs.realpathSync(folder), name)
  const nothing = "and nothing was written"
  expect(refused("file")).toEqual([1, `effect-maestro: ${at("file")} is no folder, ${nothing}`])
  expect(refused("link")).toEqual([1, `effect-maestro: ${at("link")} is a link to what does not exist, ${nothing}`])
  expect(refused("full")).toEqual([1, `effect-maestro: ${at("full")} is not empty, ${nothing}`])
  expect(fs.readdirSync(folder).sort()).toEqual(["file", "full", "link"])
})
