/**
 * The API report: the public surface of the package in `.config/api.txt`. A change of the surface fails the check until
 * `npm run api` has written the report anew, so that each change is seen.
 *
 * The report has the declarations of each public module, and of all types that they refer to, without comments.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import { reportOf } from "./apiReport.js"
import { readSurface } from "./declarations.js"
import { differences } from "./lines.js"
import { root } from "./markdown.js"

const file = ".config/api.txt"

const report = reportOf(readSurface())
const target = path.join(root, file)
if (process.argv.includes("--write")) {
  fs.writeFileSync(target, report)
  console.log(`${file}: ${report.split("\n").length} lines`)
} else {
  const stored = fs.existsSync(target) ? fs.readFileSync(target, "utf8") : ""
  const changed = differences(stored, report)
  for (const line of changed) console.error(line)
  console.log(
    changed.length === 0
      ? `${file} is the public surface`
      : `The public surface is not that of ${file}. If the change is meant, run: npm run api`
  )
  process.exitCode = changed.length === 0 ? 0 : 1
}
