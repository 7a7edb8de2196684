/** The API report: which changes of the sources it shows, and which it does not. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { expect, it } from "vitest"
import { reportOf } from "./check/apiReport.js"
import { readSurface } from "./check/declarations.js"
import { differences } from "./check/lines.js"

const sources = {
  "index.ts": `export * as Account from "./Account.js"`,
  "Account.ts": `/** Accounts. */
import type { Limit } from "./internal/limit.js"
import { internalOpen } from "./internal/open.js"
/** Opens one. */
export const open = (id: string, limit?: Limit) => internalOpen(id, limit)
/** A state. */
export type State = "open" | "closed"
export { type Kind, close as shut } from "./internal/open.js"`,
  "internal/limit.ts": `export interface Limit { readonly amount: number }`,
  "internal/open.ts": `import type * as Limits from "./limit.js"
export type Kind = "private" | "business"
export const internalOpen = (id: string, limit?: Limits.Limit): { readonly id: string } => ({ id, ...limit })
export const close = (id: string): void => internalOnly(id)
export const internalOnly = (_: string): void => undefined`
}

/** The report of the sources above, some of them replaced. */
const report = (changed: Partial<Record<string, string>> = {}): string => {
  const folder = mkdtempSync(join(tmpdir(), "effect-maestro-api-"))
  try {
    for (const [file, text = ""] of Object.entries({ ...sources, ...changed })) {
      mkdirSync(dirname(join(folder, file)), { recursive: true })
      writeFileSync(join(folder, file), text)
    }
    // Without the library of TypeScript, which takes two seconds for each report.
    return reportOf(readSurface(folder, { noLib: true, types: [] }))
  } finally {
    rmSync(folder, { recursive: true })
  }
}

const inFile = (file: keyof typeof sources, from: string, to: string) => ({ [file]: sources[file].replace(from, to) })

it("the report has what each module exports, by the names of users, and all that it refers to", () => {
  expect(report()).toBe(`# effect-maestro

Account

# effect-maestro/Account

type Kind = "business" | "private";

type State = "closed" | "open";

const open: (id: string, limit?: Limit) => {
  readonly id: string;
};

export { close as shut }

const close: (id: string) => void;

# what the modules refer to

interface Limit {
  readonly amount: number;
}
`)
})

it.each<[string, Partial<Record<string, string>>, ReadonlyArray<string>]>([
  [
    "an inferred result of an internal function",
    inFile("internal/open.ts", "{ readonly id: string } =>", "{ readonly id: number } =>"),
    ["-   readonly id: string;", "+   readonly id: number;"]
  ],
  [
    "an internal type that an export refers to",
    inFile("internal/limit.ts", "number", "bigint"),
    ["-   readonly amount: number;", "+   readonly amount: bigint;"]
  ],
  [
    "an export under another name",
    inFile("Account.ts", "as shut", "as seal"),
    ["- export { close as shut }", "+ export { close as seal }"]
  ],
  ["a module that is no longer in the index", { "index.ts": "export {}" }, ["- Account", "+ "]]
])("the report shows %s", (_, changed, lines) => {
  expect(differences(report(), report(changed)).map((line) => line.replace(/^\d+ /, ""))).toEqual(lines)
})

it.each<[string, Partial<Record<string, string>>]>([
  ["a comment", inFile("Account.ts", "Opens one.", "Opens an account.")],
  [
    "the order of declarations, and of the members of a union",
    inFile("Account.ts", `"open" | "closed"`, `"closed" | "open"`)
  ],
  ["an internal function that no export refers to", inFile("internal/open.ts", "(_: string)", "(_: unknown)")],
  [
    "an internal file that has another name",
    {
      "internal/limit.ts": "export {}",
      "internal/limits.ts": sources["internal/limit.ts"],
      ...inFile("Account.ts", "internal/limit.js", "internal/limits.js"),
      ...inFile("internal/open.ts", "./limit.js", "./limits.js")
    }
  ]
])("the report does not show %s", (_, changed) => {
  expect(report(changed)).toBe(report())
})
