/** The statements about the feed read a large log by its indexes, also while the table has no statistics. */
import type * as SqlClient from "@effect/sql/SqlClient"
import { expect, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { EventFeed, SqlStore } from "effect-maestro"
import { makeHeadReads } from "../src/internal/sql/feedHead.js"
import { CommandRunner } from "../src/internal/sql/pg/commandRunner.js"
import { layerEmptyPg, numberInserts } from "./database.js"

const events = 20_000

/** How often a statement has scanned the whole log, or a whole partition of it, in the current transaction. */
const fullScans = (sql: SqlClient.SqlClient) =>
  Effect.map(
    sql<{ scans: number }>`select sum(seq_scan)::int as scans from pg_stat_xact_user_tables
      where relname like 'event_log%' and schemaname = 'maestro'`,
    ([row]) => row?.scans
  )

for (const [partitions, feedOrder] of [
  [1, "transactionIds"],
  [16, "transactionIds"],
  [1, "counter"],
  [16, "counter"]
] as const) {
  const store = SqlStore.layerWith({ logPartitions: partitions, feedOrder }).pipe(Layer.provideMerge(layerEmptyPg()))
  layer(store, { excludeTestServices: true, timeout: 60_000 })(
    `a log of ${partitions} with the order ${feedOrder}, without statistics`,
    (it) => {
      it.scoped(
        "is not scanned as a whole for the head of the feed, for a change of it, for a page, or for samples",
        () =>
          Effect.gen(function* () {
            const log = yield* SqlStore.Tables
            const { sql } = log
            const feed = yield* EventFeed.EventFeed
            const tables = Array.from({ length: partitions }, (_, n) =>
              partitions === 1 ? "event_log" : `event_log_${n}`
            )
            for (const table of tables)
              yield* sql`alter table ${sql(`maestro.${table}`)} set (autovacuum_enabled = false)`
            yield* numberInserts
            yield* sql`insert into maestro.event_log (aggregate_id, sequence, type, body, metadata, timestamp)
          select 'Account/' || n, 1, 'Deposited', '{}', '{}', gen_random_uuid() from generate_series(1, ${events}::int) n`
            yield* sql`insert into maestro.event_log (aggregate_id, sequence, type, body, metadata, timestamp)
          values ('Rare/1', 1, 'Once', '{}', '{}', gen_random_uuid())`
            yield* sql.withTransaction(
              Effect.gen(function* () {
                const reads = makeHeadReads(log, new CommandRunner(sql, true))
                const before = yield* fullScans(sql)
                const head = yield* reads.head
                expect((yield* reads.changeSince(EventFeed.beginning)).more).toBe(true)
                expect((yield* reads.changeSince(head)).head).toBe(head)
                for (const filter of [
                  undefined,
                  { types: ["Other"] },
                  { kinds: ["Account"] },
                  { kinds: ["Other"] },
                  { correlationId: "none" }
                ]) {
                  yield* feed.read({ after: head, ...(filter === undefined ? {} : { filter }) })
                  yield* feed.read({ after: head, asOf: new Date(0), ...(filter === undefined ? {} : { filter }) })
                }
                expect(yield* feed.heldBack()).toMatchObject({ _tag: "None" })
                for (const filter of [undefined, { kinds: ["Account"] }, { kinds: ["Other", "Rare"] }]) {
                  const types = Stream.map(feed.samples(filter), ({ kind, type }) => `${kind} ${type}`)
                  const found = new Set(yield* Stream.runCollect(types))
                  expect(found.has("Rare Once")).toBe(filter?.kinds[0] !== "Account")
                  expect(found.has("Account Deposited")).toBe(filter?.kinds[0] !== "Other")
                }
                expect(yield* fullScans(sql)).toBe(before)
                // The statistics do count a scan of this transaction.
                yield* sql`select count(*) from maestro.event_log where body::text = ''`
                expect(yield* fullScans(sql)).toBe((before ?? 0) + partitions)
              })
            )
          })
      )
    }
  )
}
