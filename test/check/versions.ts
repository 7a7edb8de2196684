/**
 * Checks what README.md and CHANGELOG.md say of versions against package.json and the matrix of tests:
 *
 * - the newest section of CHANGELOG.md is the version of the package, and sections go from new to old;
 * - CHANGELOG.md names each public module;
 * - the table of versions in src/README.md has each peer with its range, and the versions of Node and Postgres;
 * - the commands of installation in README.md and in the page for agents have the versions of the peers.
 */
import { builds } from "../postgresServers.js"
import { read } from "./markdown.js"

interface Package {
  readonly version: string
  readonly engines: { readonly node: string }
  readonly peerDependencies: Readonly<Record<string, string>>
}

const { engines, peerDependencies, version }: Package = JSON.parse(read("package.json"))
const problems: Array<string> = []

const numbersOf = (text: string): ReadonlyArray<number> => text.split(".").map(Number)

const isOlder = (a: string, b: string): boolean => {
  const [left, right] = [numbersOf(a), numbersOf(b)]
  const index = left.findIndex((number, at) => number !== right[at])
  return (left[index] ?? 0) < (right[index] ?? 0)
}

const checkChangelog = (): void => {
  const text = read("CHANGELOG.md")
  const sections = [...text.matchAll(/^## (.*)$/gm)].map(([, title = ""]) => title)
  const releases = sections.map((title) => /^(\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d|not released)\)$/.exec(title)?.[1])
  releases.forEach((release, index) => {
    const before = releases[index - 1]
    if (release === undefined) problems.push(`CHANGELOG.md: "${sections[index]}" is no version with a date`)
    else if (before !== undefined && !isOlder(release, before))
      problems.push(`CHANGELOG.md: ${release} is below ${before}`)
  })
  if (releases[0] !== version) problems.push(`CHANGELOG.md begins with ${releases[0]}, and the package is ${version}`)
  for (const [, module] of read(".config/api.txt").matchAll(/^# effect-maestro\/(\w+)$/gm)) {
    if (!text.includes(`\`${module}\``)) problems.push(`CHANGELOG.md says nothing of ${module}`)
  }
}

/** `^0.52.0` is `0.52` in a text, and `^3.22.0` is `3.22`. */
const short = (range: string): string => range.replace(/^\^/, "").replace(/\.0$/, "")

const checkTable = (): void => {
  const text = read("src/README.md")
  const rows = new Map(
    [...text.matchAll(/^\| (.+?) \| (.+?) \| .*\|$/gm)].map(([, name = "", range = ""]) => [name, range])
  )
  const majors = [...builds.keys()]
  const wanted: ReadonlyArray<readonly [string, string]> = [
    ["Node", engines.node.replace(">=", "")],
    ["Postgres", `${majors[0]} to ${majors.at(-1)}`],
    ...Object.entries(peerDependencies).map(([name, range]) => [`\`${name}\``, short(range)] as const)
  ]
  for (const [name, range] of wanted) {
    if (rows.get(name)?.split(" or later")[0] !== range) {
      problems.push(`src/README.md: the table of versions needs a row | ${name} | ${range} | … |`)
    }
  }
}

/** The range of a command, such as `0.52`, must be in that of the peer: `^0.52.0`. */
const checkCommands = (file: string): void => {
  for (const [, name = "", range = ""] of read(file).matchAll(/((?:@[\w-]+\/)?[\w-]+)@(\d[\d.]*)/g)) {
    const peer = peerDependencies[name]
    if (peer !== undefined && !`${short(peer)}.`.startsWith(`${range}.`)) {
      problems.push(`${file}: ${name}@${range} is not ${peer}`)
    }
  }
}

checkChangelog()
checkTable()
for (const file of ["README.md", "examples/llms.txt"]) checkCommands(file)
for (const problem of problems) console.error(problem)
console.log(`Versions in src/README.md and CHANGELOG.md: ${problems.length} problems`)
process.exitCode = problems.length === 0 ? 0 : 1
