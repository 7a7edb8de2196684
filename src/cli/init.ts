#!/usr/bin/env node
/**
 * The command `effect-maestro init [folder] [--docker]`: makes a small project from the files of
 * `examples/starter/template`. It imports nothing but Node, so that it runs before the peers are installed.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import { fileURLToPath } from "node:url"

const usage = `Usage: effect-maestro init [folder] [--docker]

  folder    the folder of the new project, which must be empty or new: the current one by default
  --docker  adds docker-compose.yml with a Postgres server; without it the project has an embedded Postgres`

const packageFolder = fileURLToPath(new URL("../..", import.meta.url))

interface Manifest {
  readonly version: string
  readonly devDependencies: Readonly<Record<string, string>>
}

/** The versions with which this release was tested. The newest of these packages may be for Effect 4. */
const dependencies = [
  "@effect/experimental",
  "@effect/platform",
  "@effect/platform-node",
  "@effect/sql",
  "@effect/sql-pg",
  "@electric-sql/pglite",
  "effect"
]
const devDependencies = ["@effect/vitest", "@types/node", "tsx", "typescript", "vitest"]

/** Names that npm would leave out of a package or change, as they are in the template and in the project. */
const renamed = new Map([["gitignore", ".gitignore"]])

/** The longest name that npm takes. */
const maxName = 214

const manifestOf = (folder: string): string => {
  const own: Manifest = JSON.parse(fs.readFileSync(path.join(packageFolder, "package.json"), "utf8"))
  const ranges = (names: ReadonlyArray<string>) =>
    Object.fromEntries(names.map((name) => [name, own.devDependencies[name]]))
  const name = path
    .basename(folder)
    .toLowerCase()
    .replaceAll(/[^a-z0-9-]+/g, "-")
    .replaceAll(/^-+|-+$/g, "")
    .slice(0, maxName)
    .replace(/-+$/, "")
  const manifest = {
    name: name === "" ? "accounts" : name,
    version: "0.0.0",
    private: true,
    type: "module",
    engines: { node: ">=20" },
    scripts: { start: "tsx src/main.ts", test: "vitest run", check: "tsc" },
    dependencies: { ...ranges(dependencies), "effect-maestro": `^${own.version}` },
    devDependencies: ranges(devDependencies)
  }
  return `${JSON.stringify(manifest, null, 2)}\n`
}

/** Why a folder can't have a new project. */
const problemOf = (folder: string): string | undefined => {
  const found = fs.statSync(folder, { throwIfNoEntry: false })
  if (found === undefined) {
    const isLink = fs.lstatSync(folder, { throwIfNoEntry: false }) !== undefined
    return isLink ? `${folder} is a link to what does not exist` : undefined
  }
  if (!found.isDirectory()) return `${folder} is no folder`
  return fs.readdirSync(folder).some((name) => name !== ".git") ? `${folder} is not empty` : undefined
}

const init = (folder: string, withDocker: boolean): void => {
  const problem = problemOf(folder)
  if (problem !== undefined) throw new Error(`${problem}, and nothing was written`)
  const missing = missingFolders(folder)
  const written: Array<string> = []
  try {
    fs.mkdirSync(folder, { recursive: true })
    writeProject(folder, withDocker, written)
  } catch (error) {
    for (const file of written) fs.rmSync(file, { recursive: true, force: true })
    for (const made of missing) removeEmpty(made)
    throw error
  }
}

/** Writes the files, and adds each to `written` before it begins with it. */
const writeProject = (folder: string, withDocker: boolean, written: Array<string>): void => {
  const template = path.join(packageFolder, "examples", "starter", "template")
  const place = (name: string): string => {
    const file = path.join(folder, name)
    written.push(file)
    return file
  }
  for (const name of fs.readdirSync(template)) {
    if (name === "docker-compose.yml" && !withDocker) continue
    fs.cpSync(path.join(template, name), place(renamed.get(name) ?? name), { recursive: true })
  }
  const manifest = manifestOf(folder)
  fs.writeFileSync(place("package.json"), manifest)
}

/** The folder and those around it that do not exist yet, innermost first. */
const missingFolders = (folder: string): ReadonlyArray<string> =>
  fs.existsSync(folder) ? [] : [folder, ...missingFolders(path.dirname(folder))]

/** Removes a folder that the program has made, unless another program has written to it. */
const removeEmpty = (folder: string): void => {
  try {
    fs.rmdirSync(folder)
  } catch {
    // It was not made, or has files of others.
  }
}

/** A path as a shell takes it for one word. */
const quoted = (text: string): string => {
  const given = text.startsWith("-") ? `.${path.sep}${text}` : text
  if ((process.platform === "win32" ? /^[\w./\\:@+-]+$/ : /^[\w./:@+-]+$/).test(given)) return given
  return process.platform === "win32" ? `"${given}"` : `'${given.replaceAll("'", "'\\''")}'`
}

const main = (given: ReadonlyArray<string>): number => {
  const [command, ...others] = given
  const folders = others.filter((text) => !text.startsWith("-"))
  const unknown = others.find((text) => text.startsWith("-") && text !== "--docker")
  if (command !== "init" || unknown !== undefined || folders.length > 1) {
    const isHelp = command === "--help" || command === "help" || others.includes("--help")
    console.log(isHelp || unknown === undefined ? usage : `effect-maestro has no option ${unknown}\n\n${usage}`)
    return isHelp ? 0 : 1
  }
  const folder = path.resolve(folders[0] ?? ".")
  try {
    init(folder, others.includes("--docker"))
  } catch (error) {
    console.error(`effect-maestro: ${error instanceof Error ? error.message : error}`)
    return 1
  }
  console.log(`${folder} has a new project. Next:

  cd ${quoted(path.relative(process.cwd(), folder) || ".")}
  npm install
  npm test
  npm start`)
  return 0
}

process.exitCode = main(process.argv.slice(2))
