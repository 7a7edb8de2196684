/** The model of a log's size, the steps of its measurement, and the tables of the guide on scaling. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { pathToFileURL } from "node:url"
import { afterEach, beforeEach, describe, expect, it } from "vitest"
import { accountsOf, bodyOf, idOf, isWhole, ordersOf } from "./bench/capacity/events.js"
import { beyond, compare, formula, lineThrough, reckon } from "./bench/capacity/model.js"
import type { Capacity } from "./bench/capacity/result.js"
import { openSteps } from "./bench/capacity/steps.js"
import { capacityTables } from "./bench/capacity/tables.js"
import { putTable } from "./bench/pages.js"

let folder = ""
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "effect-maestro-"))
})
afterEach(() => rmSync(folder, { recursive: true }))

describe("The model", () => {
  const line = lineThrough({ body: 100, bytes: 600 }, { body: 1000, bytes: 1500 })

  it("is the line through two logs", () => {
    expect(line).toEqual({ constant: 500, perBodyByte: 1 })
    expect(reckon(line, 400)).toBe(900)
    expect(formula(line)).toBe("500 + 1.00 × body")
  })

  it("is wrong where it is off by more than ten per cent, in either direction, or not a number", () => {
    const measured = [810, 830, 900, 990, 1010, Number.NaN]
    const compared = measured.map((bytes) => compare(`${bytes}`, line, { body: 400, bytes }))
    expect(beyond(compared).map(({ what }) => what)).toEqual(["810", "1010", "NaN"])
  })
})

describe("The schedule of events", () => {
  it("has bodies of so many bytes, and ids of the length that newId makes", () => {
    for (const bytes of [60, 100, 1000]) expect(JSON.stringify(bodyOf(bytes, 12_345))).toHaveLength(bytes)
    expect(idOf(4711)).toHaveLength("01a21ea2-0154-7000-b66a-3898c28e41cd".length)
    expect(idOf(4711) < idOf(4712)).toBe(true)
  })

  it("has whole aggregates only", () => {
    expect([10_000, 30_000, 1_000_000, 2_000_000, 10_000_000].every(isWhole)).toBe(true)
    expect([0, -10_000, 1000, 15_000, 1_010_000, Number.NaN].some(isWhole)).toBe(false)
    expect([accountsOf(10_000), ordersOf(10_000)]).toEqual([50, 500])
  })
})

describe("The steps of a run", () => {
  const run = async (options: unknown, resumes: boolean, names: ReadonlyArray<string>) => {
    const steps = openSteps(join(folder, "steps.json"), options, resumes)
    const done: Array<string> = []
    const results: Array<unknown> = []
    for (const name of names) {
      results.push(
        await steps.step(name, async () => {
          done.push(name)
          return { name, missing: undefined }
        })
      )
    }
    return { done, results, steps }
  }

  it("are done once, where a run resumes another with its options", async () => {
    expect((await run({ events: 1 }, false, ["a", "b"])).done).toEqual(["a", "b"])
    const { done, results, steps } = await run({ events: 1 }, true, ["a", "b", "c"])
    expect(done).toEqual(["c"])
    expect(results).toEqual([{ name: "a" }, { name: "b" }, { name: "c" }])
    expect([steps.has("a"), steps.has("d")]).toEqual([true, false])
    expect(steps.seconds()).toBeGreaterThan(0)
  })

  it("are done again where the run has other options, does not resume, or has ended", async () => {
    await run({ events: 1 }, false, ["a"])
    expect((await run({ events: 2 }, true, ["a"])).done).toEqual(["a"])
    const { done, steps } = await run({ events: 2 }, false, ["a"])
    expect(done).toEqual(["a"])
    steps.end()
    expect((await run({ events: 2 }, true, ["a"])).done).toEqual(["a"])
  })

  it("that fail have no result", async () => {
    const steps = openSteps(join(folder, "steps.json"), {}, false)
    await expect(steps.step("a", () => Promise.reject(new Error("no room")))).rejects.toThrow("no room")
    expect((await run({}, true, ["a"])).done).toEqual(["a"])
  })
})

describe("The tables of the guide", () => {
  it("are those of the stored run", () => {
    const capacity: Capacity = JSON.parse(readFileSync(new URL("bench/capacity.json", import.meta.url), "utf8"))
    const guide = readFileSync(new URL("../examples/scaling/README.md", import.meta.url), "utf8")
    for (const [name, table] of Object.entries(capacityTables(capacity)))
      expect(guide).toContain(`<!-- capacity ${name} -->\n${table}\n<!-- /capacity ${name} -->`)
    expect(beyond(capacity.compared)).toEqual([])
  })

  it("are put between their two comments, and a page without them is refused", () => {
    const file = join(folder, "page.md")
    writeFileSync(file, "before\n<!-- a -->\nold\n<!-- /a -->\nafter\n")
    putTable(pathToFileURL(file), "a", "costs $1")
    expect(readFileSync(file, "utf8")).toBe("before\n<!-- a -->\ncosts $1\n<!-- /a -->\nafter\n")
    expect(() => putTable(pathToFileURL(file), "b", "")).toThrow("no place for the table b")
  })
})
