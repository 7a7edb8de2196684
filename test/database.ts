/** Databases for tests: a new one on the shared server for each layer that is built. */

import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import { PgClient } from "@effect/sql-pg"
import type * as ConfigError from "effect/ConfigError"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { afterAll, beforeAll, inject } from "vitest"
import { startPostgres } from "./postgres.globalSetup.js"

let own: Awaited<ReturnType<typeof startPostgres>> | undefined

/**
 * Gives the tests of a file a server that nobody else uses, unless there is one by `DATABASE_URL`. What the feed shows waits for every
 * transaction on its server, and so for those of other tests, in other databases. To be called before anything else.
 */
export const useServerOfOurOwn = (): void => {
  beforeAll(async () => {
    if ((process.env.DATABASE_URL ?? "") === "") own = await startPostgres()
  }, 60_000)
  afterAll(() => own?.stop())
}

/** A name that no other test of this run, or of another run on the same server, has. */
export const uniqueName = (prefix: string): string => `${prefix}_${process.pid}_${crypto.randomUUID().slice(0, 8)}`

/** The URL of a new database, dropped with the scope. */
export const makeDatabase = Effect.gen(function* () {
  const name = uniqueName("test")
  const admin = own?.url ?? inject("databaseUrl")
  const onServer = (statement: (sql: PgClient.PgClient) => Effect.Effect<unknown, SqlError>) =>
    Effect.flatMap(PgClient.PgClient, statement).pipe(
      Effect.provide(PgClient.layer({ url: Redacted.make(admin), maxConnections: 1 }))
    )
  yield* Effect.acquireRelease(
    onServer((sql) => sql`create database ${sql(name)}`),
    () => Effect.orDie(onServer((sql) => sql`drop database ${sql(name)} with (force)`))
  )
  const url = new URL(admin)
  url.pathname = `/${name}`
  return url.href
})

/** A client on a new database. */
export const layerPg = (
  options: Omit<PgClient.PgClientConfig, "url"> = {}
): Layer.Layer<PgClient.PgClient | SqlClient.SqlClient, SqlError | ConfigError.ConfigError> =>
  Layer.unwrapScoped(
    Effect.map(makeDatabase, (url) => PgClient.layer({ url: Redacted.make(url), maxConnections: 10, ...options }))
  )
