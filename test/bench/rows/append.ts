/** Appends one event to a new stream. */
import { randomUUID } from "node:crypto"
import { STREAM_DOES_NOT_EXIST } from "@event-driven-io/emmett"
import * as Effect from "effect/Effect"
import type { StoreAdapter, Timestamp } from "effect-maestro"
import { appendBare, type EmmettDeposited, emmettDeposited } from "../domain.js"
import { contestant } from "../measure.js"
import { pgbenchContestant } from "../pgbench.js"
import { contest, type Row } from "./row.js"

export const append: Row = contest({
  name: "append",
  work: "append one event to a new stream",
  clients: [1, 16, 64, 256],
  contestants: ({ clock, emmett, ours, pgbench, pool, store, url }) => [
    contestant("ours", () => () => ours.run(appendDeposit(store, clock, randomUUID()))),
    contestant(
      "emmett",
      () => () =>
        emmett.store.appendToStream<EmmettDeposited>(randomUUID(), [emmettDeposited], {
          expectedStreamVersion: STREAM_DOES_NOT_EXIST
        })
    ),
    { ...contestant("floor", () => () => appendBare(pool, randomUUID(), 1)), maxClients: 64 },
    ...(pgbench === undefined ? [] : [pgbenchContestant(pgbench, url, insertByItself)])
  ]
})

export const appendDeposit = (
  store: StoreAdapter.StoreAdapterService,
  clock: Timestamp.HybridClockService,
  aggregateId: string
) =>
  Effect.flatMap(clock.now, (timestamp) =>
    store.commitEvents([{ timestamp, aggregateId, sequence: 1, type: "Deposited", body: { amount: 1 }, metadata: {} }])
  )

// --- internal ---

const insertByItself = `insert into bare (aggregate_id, sequence, type, body, metadata, timestamp)
  values (gen_random_uuid()::text, 1, 'Deposited', '{"amount":1}', '{}', gen_random_uuid())`
