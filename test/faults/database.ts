/** Databases with the tables of the store and of the workload: copies of one that the first of them makes. */
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { SqlStore } from "effect-maestro"
import { logKind } from "../logKind.js"
import { createTables } from "./domain.js"
import type { Server } from "./server.js"

/** The URL of a new database of this name. */
export const makeDatabase = (server: Server, name: string): Effect.Effect<string, unknown> =>
  Effect.scoped(
    Effect.gen(function* () {
      const postgres = yield* connect(server.url)
      const found = yield* postgres`select 1 from pg_database where datname = ${template}`
      if (found.length === 0) {
        yield* postgres`create database ${postgres(template)}`
        yield* Effect.scoped(Effect.flatMap(connect(at(server, template)), prepare))
      }
      yield* postgres`create database ${postgres(name)} template ${postgres(template)} strategy file_copy`
      return at(server, name)
    })
  )

/** A client with one connection. */
export const connect = (url: string) =>
  Effect.map(
    Layer.build(PgClient.layer({ url: Redacted.make(url), maxConnections: 1 })),
    Context.get(PgClient.PgClient)
  )

// --- internal ---

const template = "faults_template"

const prepare = (sql: SqlClient.SqlClient) =>
  Effect.zipRight(Effect.provideService(SqlStore.migrate(logKind()), SqlClient.SqlClient, sql), createTables(sql))

const at = (server: Server, database: string): string => {
  const url = new URL(server.url)
  url.pathname = `/${database}`
  return url.href
}
