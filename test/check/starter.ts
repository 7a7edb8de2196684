/**
 * Makes a project by `effect-maestro init` from the packed package, as a user does, and runs its checks, its tests and
 * its program. The packages that npm would install are those of this repository. It packs `dist`, so build before.
 */
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import { tmpdir } from "node:os"
import * as path from "node:path"
import { root } from "./markdown.js"

const folder = fs.mkdtempSync(path.join(tmpdir(), "effect-maestro-starter-"))
const modules = path.join(folder, "node_modules")
const app = path.join(folder, "app")

/** Runs a program, and returns what it prints. It throws with the output where the program fails. */
const run = (cwd: string, program: string, ...given: ReadonlyArray<string>): string => {
  try {
    return execFileSync(program, given, {
      cwd,
      encoding: "utf8",
      env: { ...process.env, DATABASE_URL: undefined },
      stdio: ["ignore", "pipe", "pipe"],
      timeout: 300_000
    })
  } catch (error) {
    const { stderr, stdout } = error as { readonly stderr: string; readonly stdout: string }
    throw new Error(`${[program, ...given].join(" ")} failed:\n${stdout}\n${stderr}`)
  }
}

/** Installs the packed package, and beside it links to the packages of this repository. */
const install = (): void => {
  fs.mkdirSync(modules)
  const packed = run(root, "npm", "pack", "--ignore-scripts", "--silent", "--pack-destination", folder).trim()
  run(folder, "tar", "--extract", "--file", packed)
  fs.renameSync(path.join(folder, "package"), path.join(modules, "effect-maestro"))
  for (const name of fs.readdirSync(path.join(root, "node_modules"))) {
    fs.symlinkSync(fs.realpathSync(path.join(root, "node_modules", name)), path.join(modules, name))
  }
}

const init = (...given: ReadonlyArray<string>): string =>
  run(folder, process.execPath, path.join(modules, "effect-maestro", "dist", "cli", "init.js"), "init", ...given)

const problems: Array<string> = []
const expect = (holds: boolean, problem: string): void => {
  if (!holds) problems.push(problem)
}

const checkFiles = (): void => {
  init("app")
  const names = fs.readdirSync(app).sort()
  const expected = [".gitignore", "README.md", "package.json", "src", "test", "tsconfig.json"]
  expect(names.join() === expected.join(), `the project has ${names.join(", ")}`)
  init("with-docker", "--docker")
  expect(fs.existsSync(path.join(folder, "with-docker", "docker-compose.yml")), "--docker adds no docker-compose.yml")
  const before = fs.readdirSync(app).join()
  let refused = ""
  try {
    init("app")
  } catch (error) {
    refused = String(error)
  }
  expect(refused.includes("is not empty"), "a folder that is not empty is not refused")
  expect(fs.readdirSync(app).join() === before, "a folder that is refused was written to")
}

const checkVersions = (): void => {
  interface Manifest {
    readonly dependencies: Readonly<Record<string, string>>
    readonly devDependencies: Readonly<Record<string, string>>
  }
  const { dependencies, devDependencies }: Manifest = JSON.parse(
    fs.readFileSync(path.join(app, "package.json"), "utf8")
  )
  for (const [name, range] of Object.entries({ ...dependencies, ...devDependencies })) {
    expect(/^[~^]\d+\.\d+\.\d+$/.test(range), `${name} has the version ${range}`)
  }
  const text = fs.readdirSync(app, { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(".ts"))
  const imported = text.flatMap((file) =>
    [...fs.readFileSync(path.join(app, file), "utf8").matchAll(/from "((?:@[\w-]+\/)?[\w-]+)/g)].map(
      ([, name = ""]) => name
    )
  )
  for (const name of new Set(imported)) {
    expect(name in dependencies || name in devDependencies, `${name} is imported and not in package.json`)
  }
}

const checkPrograms = (): void => {
  run(app, "npm", "run", "--silent", "check")
  run(app, "npm", "test", "--silent")
  const first = run(app, "npm", "start", "--silent")
  expect(first.includes("Refused: only 100 left") && first.includes("balance: 100"), `npm start prints:\n${first}`)
  const second = run(app, "npm", "start", "--silent")
  expect(second.split("balance: 100").length === 3, `the store is not kept, and npm start prints:\n${second}`)
}

try {
  install()
  checkFiles()
  checkVersions()
  checkPrograms()
} finally {
  fs.rmSync(folder, { recursive: true, force: true })
}
for (const problem of problems) console.error(problem)
console.log(`The starter: ${problems.length} problems`)
process.exitCode = problems.length === 0 ? 0 : 1
