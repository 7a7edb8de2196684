/**
 * Runs the suites of the store on each supported version of Postgres that this machine has, one after the other.
 *
 * `npm run test:matrix -- --install` first installs the versions that are missing. `-- 13 16` runs these alone, and
 * `-- --files test/rebuild.test.ts` runs other files than the suites.
 */
import { disposable } from "./postgres.globalSetup.js"
import { builds, install, programsOf, startServer } from "./postgresServers.js"
import { runTests } from "./runTests.js"

/**
 * The published suites, also on a log with partitions, migrations, and rebuilds. `rebuildTables.test.ts` is left out, because its tables have parts that
 * older versions do not know.
 */
const suites = [
  "test/store.test.ts",
  "test/feedContract.test.ts",
  "test/logPartitions.test.ts",
  "test/partitionLog.test.ts",
  "test/sqlStore.test.ts",
  "test/rebuild.test.ts"
]

const runOn = async (major: number, files: ReadonlyArray<string>): Promise<string> => {
  const programs = programsOf(major)
  if (programs === undefined) return "not found"
  const server = await startServer(programs, disposable)
  try {
    console.log(`\nPostgres ${server.version}`)
    return `${server.version}: ${(await runTests(server.url, files)) ? "passed" : "failed"}`
  } finally {
    await server.stop()
  }
}

const given = process.argv.slice(2)
const at = given.indexOf("--files")
const files = at < 0 ? suites : given.slice(at + 1)
const wanted = given.slice(0, at < 0 ? given.length : at).filter((text) => /^\d+$/.test(text))
const majors = wanted.length === 0 ? [...builds.keys()] : wanted.map(Number)

const results = new Map<number, string>()
for (const major of majors) {
  if (given.includes("--install") && programsOf(major) === undefined) await install(major)
  results.set(major, await runOn(major, files).catch((error: Error) => `failed: ${error.message}`))
}
console.log("\nPostgres")
for (const [major, result] of results) console.log(`  ${major}  ${result}`)
const all = [...results.values()]
process.exitCode =
  all.some((result) => result.includes("failed")) || !all.some((result) => result.includes("passed")) ? 1 : 0
