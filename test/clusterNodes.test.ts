/** The layers of a node in the guide on clusters (`examples/cluster/node.ts`). */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { layerClientOnly, layerDatabase } from "../examples/cluster/node.js"
import { makeDatabase } from "./database.js"

it.scopedLive("nodes that start at the same time on an empty database all start, and keep one connection each", () =>
  Effect.gen(function* () {
    const url = yield* makeDatabase
    // A node that kept a connection of an attempt that failed would have none left.
    const databases = yield* Effect.all(
      Array.from({ length: 8 }, (_, index) => Layer.build(layerDatabase(url, `node-${index}`, 2))),
      { concurrency: "unbounded" }
    )
    const answers = yield* Effect.forEach(
      databases,
      (database) =>
        Effect.gen(function* () {
          yield* Layer.build(layerClientOnly({ locks: "rows", leaseMillis: 1000 }))
          const sql = yield* SqlClient.SqlClient
          return yield* sql`select address from cluster_runners`
        }).pipe(Effect.provide(database)),
      { concurrency: "unbounded" }
    )
    expect(answers).toEqual(databases.map(() => []))
  })
)
