/**
 * A `SqlClient` on embedded Postgres (PGlite): the SQL of a server, in memory or in a folder, without a server.
 * `SqlStore` runs on it.
 *
 * PGlite has one connection. Statements and transactions of all fibers use it one after the other.
 *
 * @since 0.1.0
 */
import * as Reactivity from "@effect/experimental/Reactivity"
import * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import { SqlError } from "@effect/sql/SqlError"
import * as Statement from "@effect/sql/Statement"
import { PGlite, type PGliteOptions, type Results, types } from "@electric-sql/pglite"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { lockFolder } from "./internal/pglite/folderLock.js"
import { isMacrotaskDue, scheduleMacrotask } from "./internal/runtime/macrotask.js"

/**
 * A `SqlClient`, and the PGlite instance under it.
 *
 * @since 0.1.0
 * @category models
 */
export interface PgliteClientService extends SqlClient.SqlClient {
  /**
   * The instance, for dumps and extensions. Statements that are sent to it directly do not wait for open transactions.
   */
  readonly pglite: PGlite
}

/**
 * The embedded database. The layers provide it as `SqlClient` too.
 *
 * @since 0.1.0
 * @category tags
 */
export class PgliteClient extends Context.Tag("effect-maestro/PgliteClient")<PgliteClient, PgliteClientService>() {}

/**
 * The options of the client.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  /**
   * The folder of the database, which is created if it is missing; in memory by default. One process can open it at a
   * time. A lock beside the folder refuses a second one.
   */
  readonly dataDir?: string | undefined
  /** Further options of PGlite, such as `extensions`. */
  readonly pglite?: Omit<PGliteOptions, "dataDir"> | undefined
  /** Renames columns of results, such as `snakeToCamel`. */
  readonly transformResultNames?: ((name: string) => string) | undefined
  /** Renames identifiers in queries, such as `camelToSnake`. */
  readonly transformQueryNames?: ((name: string) => string) | undefined
}

/**
 * Opens the database, and closes it with the scope.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (
  options: Options = {}
): Effect.Effect<PgliteClientService, SqlError, Scope.Scope | Reactivity.Reactivity> =>
  Effect.gen(function* () {
    if (options.dataDir !== undefined) yield* lockFolder(options.dataDir)
    const pglite = yield* Effect.acquireRelease(
      attempt("Failed to open the embedded database", () =>
        PGlite.create({
          ...options.pglite,
          // As text, as in `pg`, because a number can't hold every eight-byte integer.
          parsers: { [types.INT8]: (text) => text, ...options.pglite?.parsers },
          ...(options.dataDir === undefined ? {} : { dataDir: options.dataDir })
        })
      ),
      (database) => Effect.promise(() => database.close())
    )

    const connection = makeConnection(pglite)
    const turn = yield* Effect.makeSemaphore(1)
    const acquirer = Effect.as(
      Effect.acquireRelease(Effect.interruptible(turn.take(1)), () => turn.release(1)),
      connection
    )
    const transformRows = options.transformResultNames
      ? Statement.defaultTransforms(options.transformResultNames).array
      : undefined
    const client = yield* SqlClient.make({
      acquirer,
      compiler: makeCompiler(options.transformQueryNames),
      spanAttributes: [["db.system.name", "postgresql"]],
      ...(transformRows === undefined ? {} : { transformRows })
    })
    return Object.assign(client, { pglite })
  })

/**
 * A database in memory. It is gone when the scope of the layer closes.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerMemory: Layer.Layer<PgliteClient | SqlClient.SqlClient, SqlError> = Layer.suspend(() => layerWith({}))

/**
 * A database with these options, such as its folder.
 *
 * @since 0.1.0
 * @category layers
 *
 * @example
 * ```ts
 * import { SqlStore } from "effect-maestro"
 * import * as PgliteClient from "effect-maestro/PgliteClient"
 * import * as Layer from "effect/Layer"
 *
 * export const StoreLive = SqlStore.layer.pipe(Layer.provideMerge(PgliteClient.layerWith({ dataDir: "./data" })))
 * ```
 */
export const layerWith = (options: Options): Layer.Layer<PgliteClient | SqlClient.SqlClient, SqlError> =>
  Layer.scopedContext(
    Effect.map(make(options), (client) =>
      Context.make(PgliteClient, client).pipe(Context.add(SqlClient.SqlClient, client))
    )
  ).pipe(Layer.provide(Reactivity.layer))

// --- internal ---

// biome-ignore lint/suspicious/noExplicitAny: the row type of `Connection`
type Row = any

type TransformRows = (<A extends object>(rows: ReadonlyArray<A>) => ReadonlyArray<A>) | undefined

const makeConnection = (pglite: PGlite): Connection => {
  const run = (
    query: string,
    params: ReadonlyArray<unknown>,
    rowMode: "object" | "array"
  ): Effect.Effect<ReadonlyArray<Results>, SqlError> =>
    attempt("Failed to execute statement", () =>
      // As in `pg`, a text of several statements can't have parameters.
      params.length === 0
        ? pglite.exec(query, { rowMode })
        : pglite.query<Row>(query, [...params], { rowMode }).then((result) => [result])
    )
  // As in `pg`, several statements return a list of rows each.
  const rowsOf = (results: ReadonlyArray<Results>): ReadonlyArray<Row> =>
    results.length > 1 ? results.map(({ rows }) => rows) : (results[0]?.rows ?? [])
  const execute = (query: string, params: ReadonlyArray<unknown>, transformRows: TransformRows) =>
    Effect.map(run(query, params, "object"), (results) =>
      transformRows === undefined ? rowsOf(results) : transformRows(rowsOf(results))
    )
  return {
    execute,
    executeUnprepared: execute,
    executeRaw: (query, params) => Effect.map(run(query, params, "object"), (results) => results.at(-1)),
    executeValues: (query, params) => Effect.map(run(query, params, "array"), rowsOf),
    // PGlite has no cursor, because the rows are in the memory of this process.
    executeStream: (query, params, transformRows) => Stream.fromIterableEffect(execute(query, params, transformRows))
  }
}

/** Uninterruptible, because PGlite can't cancel a statement, and the next one must not begin before its end. */
const attempt = <A>(message: string, run: () => Promise<A>): Effect.Effect<A, SqlError> =>
  Effect.uninterruptible(
    Effect.tryPromise({
      try: () => run().finally(turnEventLoop),
      catch: (cause) => new SqlError({ cause, message })
    })
  )

/** Waits for a macrotask between statements when one is due, so that timers and sockets are served. */
const turnEventLoop = (): Promise<void> | undefined =>
  isMacrotaskDue()
    ? new Promise((resolve) => {
        scheduleMacrotask(resolve)
      })
    : undefined

const makeCompiler = (transform: ((name: string) => string) | undefined): Statement.Compiler =>
  Statement.makeCompiler({
    dialect: "pg",
    placeholder: (index) => `$${index}`,
    onIdentifier: (value, withoutTransform) =>
      escapeIdentifier(transform === undefined || withoutTransform ? value : transform(value)),
    onRecordUpdate: (placeholders, valueAlias, valueColumns, values, returning) => [
      `(values ${placeholders}) AS ${valueAlias}${valueColumns}${returning ? ` RETURNING ${returning[0]}` : ""}`,
      returning ? values.flat().concat(returning[1]) : values.flat()
    ],
    onCustom: (_, placeholder) => [placeholder(undefined), []]
  })

const escapeIdentifier = Statement.defaultEscape('"')
