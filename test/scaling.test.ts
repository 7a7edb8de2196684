/** The example on scaling: the size of a log, with and without partitions, and what its program prints. */
import { spawnSync } from "node:child_process"
import { readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import { describe, expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { EventFeed, SqlStore } from "effect-maestro"
import { bytesOfYear, measure, NoLog } from "../examples/scaling/LogSize.js"
import { Account, Deposit, Limits } from "./account.js"
import { layerEmptyPg, layerPglite, makeDatabase } from "./database.js"
import { useProgram } from "./program.js"

const layerAccount = Account.layer.pipe(Layer.provideMerge(Limits.layer))

/** A store with events of ten accounts, a hundred of them on a server. */
const fill = (options: SqlStore.Options = {}, events = 100) =>
  Effect.forEach(Arr.range(1, events), (number) => Account.evaluate(`${number % 10}`, new Deposit({ amount: 1 })), {
    discard: true
  }).pipe(Effect.provide(layerAccount.pipe(Layer.provideMerge(SqlStore.layerWith(options)))))

/** The bytes of the tables and indexes of a schema whose names begin with `event_log`, as the database counts them. */
const counted = (schema: string) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Effect.map(
      sql<{ bytes: string }>`select sum(pg_total_relation_size(c.oid))::text as bytes from pg_class c
        join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = ${schema} and c.relname like 'event\\_log%' and c.relkind = 'r'`,
      ([row]) => Number(row?.bytes)
    )
  )

const parts = [
  "event_log",
  "event_log_correlation",
  "event_log_feed",
  "event_log_kind",
  "event_log_pkey",
  "event_log_types"
]

describe("The size of a log", () => {
  for (const partitions of [1, 4]) {
    it.scopedLive(`${partitions} partitions: its table and its indexes have all bytes of the log`, () =>
      Effect.gen(function* () {
        yield* fill({ logPartitions: partitions })
        const size = yield* measure("maestro")
        expect(size).toMatchObject({ events: 100, partitions, bytes: yield* counted("maestro") })
        expect(size.parts.map(({ name }) => name)).toEqual(parts)
        expect(Arr.every(size.parts, ({ bytes }) => bytes > 0)).toBe(true)
      }).pipe(Effect.provide(layerEmptyPg()))
    )
  }

  it.scopedLive("it is measured on the embedded store, and in a schema of any name", () =>
    Effect.gen(function* () {
      const schema = `an "odd".name`
      yield* fill({ schema, logPartitions: 1 }, 10)
      expect(yield* measure(schema)).toMatchObject({ events: 10, partitions: 1, bytes: yield* counted(schema) })
    }).pipe(Effect.provide(layerPglite))
  )

  it.scopedLive("it fails where the schema has no log", () =>
    Effect.gen(function* () {
      expect(yield* Effect.flip(measure("maestro"))).toEqual(new NoLog({ schema: "maestro" }))
    }).pipe(Effect.provide(layerEmptyPg()))
  )

  it("a year has the bytes of 365 days of such events", () => {
    const size = { events: 100, partitions: 1, parts: [], bytes: 50_000 }
    expect(bytesOfYear(size, 1000)).toBe(500 * 1000 * 365)
  })
})

describe("Shards", () => {
  it.scopedLive("one process may have several stores, and each has its own events and its own feed", () =>
    Effect.gen(function* () {
      const shards = yield* Effect.replicateEffect(
        Effect.flatMap(makeDatabase, (url) =>
          Layer.build(
            Layer.fresh(
              layerAccount.pipe(
                Layer.provideMerge(SqlStore.layer),
                Layer.provideMerge(PgClient.layer({ url: Redacted.make(url), maxConnections: 4 }))
              )
            )
          )
        ),
        2
      )
      for (const [index, shard] of shards.entries())
        yield* Effect.provide(Account.evaluate("ann", new Deposit({ amount: index + 1 })), shard)
      const found = yield* Effect.forEach(shards, (shard) =>
        Effect.provide(Effect.all([Account.fetch("ann"), EventFeed.read()]), shard)
      )
      expect(found.map(([{ balance }, { events }]) => [balance, events.length])).toEqual([
        [1, 1],
        [2, 1]
      ])
    })
  )
})

describe("The program", () => {
  const folder = fileURLToPath(new URL("../examples/scaling/", import.meta.url))
  const program = useProgram(readFileSync(`${folder}main.ts`, "utf8"), folder)

  const printed = (url: string, eventsADay: string) => {
    const { status, stderr, stdout } = spawnSync(process.execPath, [program(), eventsADay], {
      encoding: "utf8",
      env: { ...process.env, DATABASE_URL: url }
    })
    return { status, lines: stdout.trimEnd().split("\n"), errors: stderr }
  }

  it.scopedLive("it prints the size of a log with partitions, and what a year takes", () =>
    Effect.gen(function* () {
      const url = yield* makeDatabase
      const client = PgClient.layer({ url: Redacted.make(url), maxConnections: 4 })
      const { bytes } = yield* fill({ logPartitions: 4 }).pipe(
        Effect.zipRight(measure("maestro")),
        Effect.provide(client)
      )
      const { lines, status } = printed(url, "1000000")
      expect(status).toBe(0)
      expect(lines[0]).toBe("100 events in 4 partitions")
      expect(lines.slice(1, -2).map((line) => line.trim().split(" ")[0])).toEqual(parts)
      expect(lines.at(-2)).toContain(`${(bytes / 100).toFixed(0)} bytes an event`)
      const year = ((bytes / 100) * 1_000_000 * 365) / 1e9
      expect(lines.at(-1)).toBe(`1000000 events a day take ${year.toFixed(1)} GB of disk a year`)
    })
  )

  it("it says in one line what is wrong with its argument, or with the database", () => {
    const down = "postgres://postgres@127.0.0.1:1/down"
    for (const argument of ["abc", "-5", "0", "Infinity", ""]) {
      const errors = `The events a day must be a number above 0, and are ${JSON.stringify(argument)}\n`
      expect(printed(down, argument)).toEqual({ status: 1, lines: [""], errors })
    }
    const { errors, status } = printed(down, "1000")
    expect(status).toBe(1)
    expect(errors).toMatch(/^.*127\.0\.0\.1:1\b.*\n$/)
  })

  it.scopedLive("it writes nothing: a database without a log stays as it is, and the program fails", () =>
    Effect.gen(function* () {
      const url = yield* makeDatabase
      expect(printed(url, "1000")).toMatchObject({ status: 1 })
      const client = PgClient.layer({ url: Redacted.make(url), maxConnections: 1 })
      const schemas = Effect.flatMap(
        SqlClient.SqlClient,
        (sql) => sql`select 1 from pg_namespace where nspname = 'maestro'`
      )
      expect(yield* Effect.provide(schemas, client)).toEqual([])
    })
  )
})
