/**
 * Shows what the slow operations of a row coincide with, for one client: garbage collections of V8, and statements that the same process
 * runs on another connection meanwhile. `npm run bench -- append --tail`.
 *
 * The contestants of the row take turns, so that other work of the machine slows all of them.
 */
import { PerformanceObserver } from "node:perf_hooks"
import pg from "pg"
import { quantile, type Work } from "./measure.js"
import type { Row } from "./rows/row.js"
import type { Stage } from "./stage.js"

export const tail = async (row: Row, stage: Stage): Promise<void> => {
  const contestants = (await row.contestants?.(stage)) ?? []
  const collections: Array<Span> = []
  const observer = new PerformanceObserver((list) => {
    for (const { duration, startTime } of list.getEntries()) collections.push([startTime, startTime + duration])
  })
  observer.observe({ entryTypes: ["gc"] })
  const statements = watchStatements()
  const operations = new Map<string, Array<Span>>()
  const before = await serverWork(stage.pool)
  // The first turn is the warm-up.
  for (let turn = 0; turn <= stage.effort.rounds; turn++) {
    for (const { name, start } of contestants) {
      if (start === undefined) continue
      const spans = await workAlone(await start(), turn === 0 ? 2 : stage.effort.seconds)
      if (turn > 0) operations.set(name, [...(operations.get(name) ?? []), ...spans])
    }
  }
  const after = await serverWork(stage.pool)
  // The observer is called in a later turn of the event loop.
  await new Promise((resolve) => setTimeout(resolve, 100))
  observer.disconnect()
  statements.stop()

  console.log(`${row.name}, 1 client; the slow ones are the slowest 2 in 100
checkpoints of the server meanwhile: ${after.checkpoints - before.checkpoints}, vacuums: ${after.vacuums - before.vacuums}

| contestant | p50, ms | p90 | p99 | p99.9 | with a collection, all / slow | beside another statement, all / slow | p50 beside it, ms |
|---|--:|--:|--:|--:|--:|--:|--:|`)
  for (const [name, spans] of operations) {
    const times = spans.map(lengthOf).sort((a, b) => a - b)
    const limit = quantile(times, 0.98)
    const slow = spans.filter((span) => lengthOf(span) > limit)
    // An operation may use more than one connection itself.
    const own = quantile(
      spans.map(statements.overlapping).sort((a, b) => a - b),
      0.5
    )
    const isBeside = (span: Span): boolean => statements.overlapping(span) > own
    const beside = spans.filter(isBeside)
    const share = (of: (span: Span) => boolean) =>
      `${percent(spans.filter(of).length, spans.length)} / ${percent(slow.filter(of).length, slow.length)}`
    const cells = [
      name,
      ...[0.5, 0.9, 0.99, 0.999].map((q) => quantile(times, q).toFixed(2)),
      share((span) => collections.some((collection) => overlap(collection, span))),
      share(isBeside),
      beside.length === 0
        ? ""
        : quantile(
            beside.map(lengthOf).sort((a, b) => a - b),
            0.5
          ).toFixed(2)
    ]
    console.log(`| ${cells.join(" | ")} |`)
  }
  console.log("")
}

// --- internal ---

type Span = readonly [from: number, to: number]

const lengthOf = ([from, to]: Span): number => to - from

const overlap = (a: Span, b: Span): boolean => a[0] < b[1] && a[1] > b[0]

const percent = (part: number, whole: number): string => `${whole === 0 ? 0 : ((100 * part) / whole).toFixed(1)} %`

const workAlone = async (work: Work, seconds: number): Promise<ReadonlyArray<Span>> => {
  const spans: Array<Span> = []
  const end = performance.now() + seconds * 1000
  for (let from = performance.now(); from < end; from = performance.now()) {
    await work(0)
    spans.push([from, performance.now()])
  }
  return spans
}

/** Notes when each connection of this process is busy. */
const watchStatements = () => {
  const busy: Array<Span> = []
  const since = new Map<pg.Client, number>()
  const { query } = pg.Client.prototype
  const watched = function (this: pg.Client, ...args: ReadonlyArray<unknown>): unknown {
    if (!since.has(this)) {
      since.set(this, performance.now())
      this.once("drain", () => {
        busy.push([since.get(this) ?? 0, performance.now()])
        since.delete(this)
      })
    }
    return Reflect.apply(query, this, args)
  }
  Object.assign(pg.Client.prototype, { query: watched })
  return {
    /** How many connections were busy in the span. */
    overlapping: (span: Span): number => countOverlaps(busy, span),
    stop: () => void Object.assign(pg.Client.prototype, { query })
  }
}

/** The list is in the order of the ends. A statement of more than 64 others' time is not looked for. */
const countOverlaps = (busy: ReadonlyArray<Span>, span: Span): number => {
  let [low, high] = [0, busy.length]
  while (low < high) {
    const middle = (low + high) >> 1
    if ((busy[middle]?.[1] ?? 0) <= span[0]) low = middle + 1
    else high = middle
  }
  return busy.slice(low, low + 64).filter((other) => overlap(other, span)).length
}

const serverWork = async (pool: pg.Pool): Promise<{ readonly checkpoints: number; readonly vacuums: number }> => {
  const { rows } = await pool.query<{ checkpoints: number; vacuums: number }>(`select
    (select num_timed + num_requested from pg_stat_checkpointer)::int as checkpoints,
    (select coalesce(sum(autovacuum_count + autoanalyze_count), 0) from pg_stat_all_tables)::int as vacuums`)
  return rows[0] ?? { checkpoints: 0, vacuums: 0 }
}
