/**
 * Nodes for the tests of the feed's order: aggregates on stores of every kind, two of them on one database of a server.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { MemoryStore, SqlStore } from "effect-maestro"
import { layerPglite, makeDatabase } from "./database.js"
import { layerOnAny, layerOnSql, type Node } from "./feedOrderWorkload.js"
import { Ledger } from "./subscribers.js"

export const onMemory: Effect.Effect<ReadonlyArray<Node>, unknown, Scope.Scope> = Effect.map(
  Layer.build(layerOnAny.pipe(Layer.provideMerge(Layer.merge(MemoryStore.layer, Ledger.layerMemory)))),
  (onAny) => [{ onAny, onSql: Option.none() }]
)

const nodeOn = <E>(client: Layer.Layer<SqlClient.SqlClient, E>) =>
  Effect.map(
    Layer.build(
      Layer.fresh(
        layerOnSql.pipe(Layer.provideMerge(Layer.merge(SqlStore.layer, Ledger.layerSql)), Layer.provideMerge(client))
      )
    ),
    (services): Node => ({ onAny: services, onSql: Option.some(services) })
  )

export const onPglite: Effect.Effect<ReadonlyArray<Node>, unknown, Scope.Scope> = Effect.map(
  nodeOn(layerPglite),
  Arr.of
)

export const onPostgres: Effect.Effect<ReadonlyArray<Node>, unknown, Scope.Scope> = Effect.flatMap(
  makeDatabase,
  (url) => {
    const client = PgClient.layer({ url: Redacted.make(url), maxConnections: 10 })
    return Effect.zipRight(
      Effect.provide(findsDeadlocksSoon, Layer.fresh(client)),
      Effect.replicateEffect(nodeOn(client), 2)
    )
  }
)

/** Shortens `deadlock_timeout`, which takes a superuser. Waits of a second for each deadlock would dominate the run. */
const findsDeadlocksSoon = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  Effect.ignore(sql`do $$ begin
    execute format('alter database %I set deadlock_timeout = %L', current_database(), '20ms');
  end $$`)
)
