/** The option `logPartitions`: what it refuses, and the contract of a store whose log has partitions. */
import * as SqlClient from "@effect/sql/SqlClient"
import { describe, expect, it, layer as withLayer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { SqlStore } from "effect-maestro"
import * as FeedContract from "effect-maestro/FeedContract"
import * as StoreContract from "effect-maestro/StoreContract"
import { inject } from "vitest"
import { layerEmptyPg } from "./database.js"

const build = (options: SqlStore.Options) => Layer.build(Layer.fresh(SqlStore.layerWith(options)))

const found = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  Effect.map(
    sql<{ kind: string; partitions: number; unique: ReadonlyArray<string> }>`select relkind as kind,
        (select count(*)::int from pg_inherits where inhparent = c.oid) as partitions,
        (select json_agg(pg_get_indexdef(indexrelid)) from pg_index where indrelid = c.oid and indisunique) as unique
      from pg_class c where oid = 'maestro.event_log'::regclass`,
    ([row]) => row
  )
)

describe("logPartitions", () => {
  it.scopedLive("a new log has so many partitions, and no other unique index than that of streams", () =>
    Effect.gen(function* () {
      yield* build({ logPartitions: 16 })
      const row = yield* found
      expect(row).toMatchObject({ kind: "p", partitions: 16 })
      expect(row?.unique).toHaveLength(1)
      expect(row?.unique[0]).toContain("(aggregate_id, sequence)")
    }).pipe(Effect.provide(layerEmptyPg()))
  )

  it.scopedLive("SqlStore.migrate has the option, too; with 1 the log is an ordinary table", () =>
    Effect.gen(function* () {
      yield* SqlStore.migrate({ logPartitions: 1 })
      expect(yield* found).toMatchObject({ kind: "r", partitions: 0 })
      yield* SqlStore.migrate({ logPartitions: 1 })
    }).pipe(Effect.provide(layerEmptyPg()))
  )

  it.effect("is a whole number from 1 to 256, and the failure shows what it is instead", () =>
    Effect.gen(function* () {
      for (const [wrong, is] of [
        [0, "0"],
        [-0, "-0"],
        [-4, "-4"],
        [2.5, "2.5"],
        [Number.NaN, "NaN"],
        [Number.POSITIVE_INFINITY, "Infinity"],
        [257, "257"],
        ["16", 'the text "16"'],
        [null, "null"],
        [[4], "an object"],
        [4n, "4"]
      ] as const) {
        const partitions = wrong as number
        for (const failing of [
          Effect.scoped(build({ logPartitions: partitions })),
          Effect.scoped(build({ logPartitions: partitions, migrate: false })),
          SqlStore.migrate({ logPartitions: partitions }),
          SqlStore.partitionLog({ partitions })
        ]) {
          const error = yield* Effect.flip(failing)
          expect(error).toMatchObject({ reason: "Misconfigured" })
          expect(error.description).toContain(`must be a whole number from 1 to 256, and ${is} is not`)
        }
      }
    }).pipe(Effect.provide(layerEmptyPg()))
  )

  it.effect("partitionLog without a number fails, and leaves the log", () =>
    Effect.gen(function* () {
      yield* SqlStore.migrate()
      const before = yield* found
      const partitionLog = SqlStore.partitionLog as (options?: unknown) => ReturnType<typeof SqlStore.partitionLog>
      for (const options of [undefined, null, {}, { partitions: undefined }, { partitions: null }, 4]) {
        const error = yield* Effect.flip(partitionLog(options))
        expect(error).toMatchObject({ reason: "Misconfigured" })
        expect(error.description).toMatch(
          /partitions must be a whole number from 1 to 256, and (undefined|null) is not/
        )
      }
      expect(yield* found).toEqual(before)
    }).pipe(Effect.provide(layerEmptyPg()))
  )

  it.scopedLive("with another number than the log has, the layer fails and says what changes the log", () =>
    Effect.gen(function* () {
      const refuses = (options: SqlStore.Options, says: string) =>
        Effect.gen(function* () {
          for (const migrate of [true, false]) {
            const error = yield* Effect.flip(Effect.scoped(build({ ...options, migrate })))
            expect(error).toMatchObject({ reason: "Misconfigured" })
            expect(error.description).toContain(says)
            expect(error.description).toContain(`SqlStore.partitionLog({ partitions: ${options.logPartitions} })`)
          }
        })
      expect(yield* Effect.flip(SqlStore.partitionLog({ partitions: 4 }))).toMatchObject({ reason: "Misconfigured" })
      yield* build({ logPartitions: 1 })
      yield* refuses({ logPartitions: 4 }, "is not partitioned")
      expect(yield* SqlStore.partitionLog({ partitions: 4 })).toBe(true)
      yield* refuses({ logPartitions: 8 }, "has 4 partitions")
      yield* refuses({ logPartitions: 1 }, "has 4 partitions")
      // Without the option each log is right.
      for (const migrate of [true, false]) {
        yield* build({ migrate })
        yield* build({ migrate, logPartitions: 4 })
      }
      expect(yield* found).toMatchObject({ kind: "p", partitions: 4 })
    }).pipe(Effect.provide(layerEmptyPg()))
  )

  it.scopedLive(
    "of nodes that start on an empty database with different numbers, one makes the log and the others fail",
    () =>
      Effect.gen(function* () {
        const results = yield* Effect.forEach([2, 4, 8], (logPartitions) => Effect.either(build({ logPartitions })), {
          concurrency: "unbounded"
        })
        expect(results.map(({ _tag }) => _tag).sort()).toEqual(["Left", "Left", "Right"])
      }).pipe(Effect.provide(layerEmptyPg()))
  )

  it.scopedLive("a log of an older release, which has no partitions, fails with the option before it is migrated", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* SqlStore.migrate({ logPartitions: 1 })
      yield* sql`delete from maestro.migrations where id >= 9`
      const error = yield* Effect.flip(SqlStore.migrate({ logPartitions: 4 }))
      expect(error.description).toContain("SqlStore.partitionLog")
      expect(yield* sql`select 1 from maestro.migrations`).toHaveLength(8)
      const older = yield* Effect.flip(SqlStore.partitionLog({ partitions: 4 }))
      expect(older.description).toContain("run SqlStore.migrate")
      yield* SqlStore.migrate()
      expect(yield* SqlStore.partitionLog({ partitions: 4 })).toBe(true)
    }).pipe(Effect.provide(layerEmptyPg()))
  )
})

// Few random inputs, and of the cheaper cases what appends and what reads the log. `npm run test:partitioned` runs all.
const options = { runs: Math.ceil(inject("runs") / 10), timeout: inject("timeout") }
const store = SqlStore.layerWith({ logPartitions: 4 }).pipe(Layer.provideMerge(layerEmptyPg()))
const concernsLog = /^(commit|caller|head|read|filter|samples|heldBack|order|random|awaitAppend|parked)/
const isCostly = /thousand|10 000|large/

withLayer(store, { excludeTestServices: true, timeout: options.timeout })("SqlStore on a log with partitions", (it) => {
  for (const { name, run } of [...StoreContract.cases(options), ...FeedContract.cases(options)]) {
    if (concernsLog.test(name) && !isCostly.test(name)) it.effect(name, () => run, options.timeout)
  }
})
