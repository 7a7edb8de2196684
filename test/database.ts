/** Databases for tests: a new one on the worker's Postgres server, or an empty one in memory, for each layer that is built. */

import { readFile } from "node:fs/promises"
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import { PgClient } from "@effect/sql-pg"
import { PGlite } from "@electric-sql/pglite"
import type * as ConfigError from "effect/ConfigError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { SqlStore } from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"
import pg from "pg"
import { inject } from "vitest"

/** A name that is unique among the tests of all runs on one server. */
export const uniqueName = (prefix: string): string => `${prefix}_${process.pid}_${crypto.randomUUID().slice(0, 8)}`

/** A pool of one connection. It has ended a little before the server knows, and a server that drops the database then says so to its connection. */
export const makePool = (url: string): pg.Pool => {
  const pool = new pg.Pool({ connectionString: url, max: 1 })
  pool.on("error", () => {})
  return pool
}

/** Runs an effect outside of the transaction around it, on connections of its own. */
export const outside = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.mapInputContext(
    effect,
    (context: Context.Context<R>) => Context.omit(SqlClient.TransactionConnection)(context) as Context.Context<R>
  )

// --- Postgres ---

/** The URL of a new empty database, dropped with the scope. */
export const makeDatabase = Effect.suspend(() => copyOf("template1"))

/** The URL of a new database that has the tables of the store, made with these options, dropped with the scope. */
const makeMigratedDatabaseWith = (options: Migration) =>
  Effect.flatMap(
    Effect.promise(() => migrated(options)),
    (template) => copyOf(template)
  )

/** The URL of a new database that has the tables of the store, dropped with the scope. */
export const makeMigratedDatabase = makeMigratedDatabaseWith({})

/** What decides how a log is made. */
type Migration = Pick<SqlStore.Options, "feedOrder" | "logPartitions">

/** On a given server nothing would remove a template, so a database is empty there, and each store migrates its own. */
const isGiven = (process.env.DATABASE_URL ?? "") !== ""

const copyOf = (template: string) =>
  Effect.gen(function* () {
    const name = uniqueName("test")
    const { server, sql } = yield* Effect.promise(() => admin())
    yield* Effect.acquireRelease(
      isGiven
        ? sql`create database ${sql(name)}`
        : // A copy of the files takes half of the processor time that a copy through the log takes.
          sql`create database ${sql(name)} template ${sql(template)} strategy file_copy`,
      () => Effect.orDie(sql`drop database ${sql(name)} with (force)`)
    )
    return at(server, name)
  })

const at = (server: string, database: string): string => {
  const url = new URL(server)
  url.pathname = `/${database}`
  return url.href
}

/** Calls the function the first time only. */
const once = <A>(make: () => A): (() => A) => {
  let made: { readonly value: A } | undefined
  return () => {
    made ??= { value: make() }
    return made.value
  }
}

/** The connection that creates and drops the databases of this worker, and the URL of its server. */
const admin = once(async () => {
  const server = await ofWorker(String(process.env.VITEST_POOL_ID))
  const client = PgClient.layer({ url: Redacted.make(server), maxConnections: 1 })
  const services = await Effect.runPromise(Layer.buildWithScope(client, await Effect.runPromise(Scope.make())))
  return { server, sql: Context.get(services, PgClient.PgClient) }
})

/** The name of a database with the tables of the store. A copy of it takes less processor time than a migration. */
const migrated = (options: Migration): Promise<string> => {
  const key = JSON.stringify(options)
  const template = templates.get(key) ?? makeTemplate(options)
  templates.set(key, template)
  return template
}

const templates = new Map<string, Promise<string>>()

const makeTemplate = async (options: Migration): Promise<string> => {
  if (isGiven) return "template1"
  const name = uniqueName("template")
  const { server, sql } = await admin()
  await Effect.runPromise(sql`create database ${sql(name)}`)
  const client = PgClient.layer({ url: Redacted.make(at(server, name)), maxConnections: 1 })
  await Effect.runPromise(Effect.provide(SqlStore.migrate(options), client))
  return name
}

/** What the global setup returns for a path: the URL of a worker's server, or the file with an initialised PGlite. */
const ofWorker = async (path: string): Promise<string> => {
  const response = await fetch(`${inject("databaseOfWorker")}/${path}`, { headers: { connection: "close" } })
  const text = await response.text()
  if (!response.ok) throw new Error(text)
  return text
}

type PgLayer = Layer.Layer<PgClient.PgClient | SqlClient.SqlClient, SqlError | ConfigError.ConfigError>

const clientOn =
  (database: Effect.Effect<string, SqlError, Scope.Scope>) =>
  (options: Omit<PgClient.PgClientConfig, "url"> = {}): PgLayer =>
    Layer.unwrapScoped(
      Effect.map(database, (url) => PgClient.layer({ url: Redacted.make(url), maxConnections: 10, ...options }))
    )

/** A client on a new database that has the tables of the store. */
export const layerPg = clientOn(makeMigratedDatabase)

/** A client on a new database that has the tables of the store, made with these options. */
export const layerPgWith = (migration: Migration, client: Omit<PgClient.PgClientConfig, "url"> = {}): PgLayer =>
  clientOn(makeMigratedDatabaseWith(migration))(client)

/** A client on a new empty database. */
export const layerEmptyPg = clientOn(makeDatabase)

/** Lets statements of a test insert events into the log. A log with a counter has no default for their positions. */
export const numberInserts = Effect.gen(function* () {
  const { feedOrder, sql } = yield* SqlStore.Tables
  if (feedOrder !== "counter") return
  yield* sql`create sequence maestro.of_test`
  yield* sql`alter table maestro.event_log alter column position set default nextval('maestro.of_test')`
})

// --- PGlite ---

type Pglite = Context.Context<PgliteClient.PgliteClient | SqlClient.SqlClient>

/**
 * An empty PGlite database in memory. To open one takes 0.9 s of processor time, so that it is emptied with the scope and
 * then kept for a later layer. The first one of a run takes 6 s, so that all others start from a copy of it.
 */
export const layerPglite: Layer.Layer<PgliteClient.PgliteClient | SqlClient.SqlClient, SqlError> = Layer.scopedContext(
  Effect.acquireRelease(
    Effect.suspend(() => {
      const free = emptied.pop()
      return free === undefined ? openPglite : Effect.succeed(free)
    }),
    (opened) =>
      Effect.promise(async () => {
        const { pglite } = Context.get(opened, PgliteClient.PgliteClient)
        // The files of a long run would fill the memory.
        if (inject("runs") > 100) return pglite.close()
        for (const statement of ["rollback", "discard all", emptying]) await pglite.exec(statement)
        emptied.push(opened)
      })
  )
)

const emptied: Array<Pglite> = []

const emptying = `do $$ declare name text; begin
  for name in select nspname from pg_namespace where nspname not like 'pg\\_%' and nspname <> 'information_schema' loop
    execute format('drop schema %I cascade', name);
  end loop;
  create schema public;
end $$`

const openPglite: Effect.Effect<Pglite, SqlError> = Effect.flatMap(
  Effect.promise(() => initialised()),
  (loadDataDir) =>
    Effect.flatMap(Scope.make(), (scope) =>
      Layer.buildWithScope(PgliteClient.layerWith({ pglite: { loadDataDir } }), scope)
    )
)

/** Writes a new PGlite database to a folder, in a sixth of the time in which PGlite makes one there. */
export const fillPglite = (dataDir: string) =>
  Effect.promise(async () => {
    const database = await PGlite.create({ dataDir, loadDataDir: await initialised() })
    await database.close()
  })

/** The files of a new PGlite database. */
const initialised = once(async () => new Blob([await readFile(await ofWorker("pglite"))]))
