/** Commits of strangers with their projections in one transaction: none of them notices. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { type Event, type Projection, SqlStore, StoreAdapter, Timestamp } from "effect-maestro"
import { layerPg } from "./database.js"

it.layer(SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie), { timeout: 60_000 })(
  "shared transactions",
  (it) => {
    it.effect("several strangers are one transaction", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const sql = yield* SqlClient.SqlClient
        yield* sql`create table rows_of (id text primary key, n int not null)`
        const write: Projection.Projection<unknown, SqlClient.SqlClient> = {
          name: "rows_of",
          project: ({ aggregateId }) =>
            Effect.flatMap(SqlClient.SqlClient, (sql) => sql`insert into rows_of values (${aggregateId}, 1)`)
        }
        const ids = Arr.makeBy(20, () => crypto.randomUUID())
        yield* Effect.forEach(ids, (id) => Effect.flatMap(stamped(id, 1), (event) => store.commitAll([event], [write])), {
          concurrency: "unbounded"
        })
        const rows = yield* sql`select distinct transaction_id from maestro.event_log`
        console.log(rows.length)
        expect(rows.length).toBeLessThan(5)
      })
    )
  }
)

const stamped = (aggregateId: string, sequence: number): Effect.Effect<Event.Event> =>
  Effect.flatMap(Timestamp.HybridClock, ({ now }) =>
    Effect.map(now, (timestamp) => ({ timestamp, aggregateId, sequence, type: "Happened", body: {}, metadata: {} }))
  )
