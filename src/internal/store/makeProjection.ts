/**
 * Makes projections of typed handlers, for `Projection.make` and `Projection.makeSql`.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { Statement } from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import type * as Either from "effect/Either"
import type * as Schema from "effect/Schema"
import type { Envelope, Event } from "../../Event.js"
import type {
  ConstraintHandlers,
  EffectProjection,
  Options,
  Projection,
  ProjectionHandlers,
  Source,
  SqlHandlers,
  SqlProjection
} from "../../Projection.js"
import type { StoreError } from "../../StoreError.js"
import type { Tagged } from "../codec/eventCodec.js"
import { storedTypesOf } from "../codec/eventHistory.js"
import { Parts } from "../codec/storedVersions.js"
import { declaredTables } from "./declaredTables.js"
import { handledParts, runHandlers } from "./handledParts.js"
import { bindTo, checkingIds, envelopeOf } from "./origin.js"
import { decodingFor, type RefusalOfPart, refusalFor, refusalOfPart, refusalsOf } from "./projectionFailure.js"
import type { Handled, HandlersContext, HandlersError, Refusal, SqlHandler } from "./projectionTypes.js"

/** `Projection.make`. */
export const makeEffectProjection = <
  A extends Tagged,
  Handlers extends ProjectionHandlers<A>,
  Types extends A["_tag"],
  Refusals extends ConstraintHandlers<Handled<A, Types>>
>(
  options: AnyOptions<Handlers, A, Types, Refusals>
): Projection.Bound<HandlersError<Handlers> | Refusal<Refusals> | StoreError, HandlersContext<Handlers>> => {
  type E = HandlersError<Handlers>
  type R = HandlersContext<Handlers>
  const { name } = options
  const handlers = new Map<string, (event: A, envelope: Envelope) => Effect.Effect<unknown, E, R>>(
    Object.entries(options.project)
  )
  const schema = schemaOf(options)
  const decode = decoderOf(options, schema)
  const handled = new Set(storedTypesOf(schema, [...handlers.keys()]))
  const refusalOf = refusalOfPart<A, Refusal<Refusals>>(name, options.onConstraint)
  const running = refusalOf === undefined ? handlers : withRefusals(handlers, refusalOf)
  const projection: EffectProjection<E | Refusal<Refusals> | StoreError, R> = {
    name,
    ...declaredTables(name, options),
    events: [...handled],
    schema,
    project: (stored) =>
      handled.has(stored.type)
        ? Effect.asVoid(Effect.flatMap(decode(stored), (read) => runHandlers(running, read, envelopeOf(stored))))
        : Effect.void,
    ...(refusalOf === undefined ? {} : { refusalOf: refusalsOf(refusalOf, handled, handlers, decode) })
  }
  return bindIfOf(projection, options.of)
}

/** `Projection.makeSql`. */
export const makeSqlProjection = <
  A extends Tagged,
  Handlers extends SqlHandlers<A>,
  Types extends A["_tag"],
  Refusals extends ConstraintHandlers<Handled<A, Types>>
>(
  options: AnyOptions<Handlers, A, Types, Refusals>
): Projection.Bound<Refusal<Refusals> | StoreError, SqlClient.SqlClient> => {
  const { name } = options
  const handlers = new Map<string, SqlHandler<A>>(Object.entries(options.project))
  const schema = schemaOf(options)
  const decode = decoderOf(options, schema)
  const handled = new Set(storedTypesOf(schema, [...handlers.keys()]))
  const refusalOf = refusalOfPart<A, Refusal<Refusals>>(name, options.onConstraint)
  const projection: SqlProjection<Refusal<Refusals> | StoreError, SqlClient.SqlClient> = {
    name,
    ...declaredTables(name, options),
    events: [...handled],
    schema,
    statements: (stored) =>
      handled.has(stored.type)
        ? Effect.flatMap(SqlClient.SqlClient, (sql) =>
            Effect.map(decode(stored), (read) => statementsOf(handlers, read, envelopeOf(stored), sql))
          )
        : Effect.succeed([]),
    ...(refusalOf === undefined ? {} : { refusalOf: refusalsOf(refusalOf, handled, handlers, decode) })
  }
  return bindIfOf(projection, options.of)
}

// --- internal ---

const decoderOf = <A extends Tagged>(
  { name, of }: AnyOptions<unknown, A, A["_tag"], unknown>,
  // biome-ignore lint/suspicious/noExplicitAny: stored events have any encoded form
  schema: Schema.Schema<A, any>
): ((stored: Event) => Either.Either<A | Parts<A>, StoreError>) => {
  const decode = decodingFor(name, schema)
  return typeof of === "object"
    ? checkingIds(of, { operation: `Projection ${name}`, projection: name }, decode)
    : decode
}

interface AnyOptions<Handlers, A extends Tagged, Types extends A["_tag"], Refusals>
  extends Options<Handlers, A, Types, Refusals> {
  readonly of?: Source<A> | "all" | undefined
  // biome-ignore lint/suspicious/noExplicitAny: stored events have any encoded form
  readonly events?: Schema.Schema<A, any> | undefined
}

// biome-ignore lint/suspicious/noExplicitAny: stored events have any encoded form
const schemaOf = <A extends Tagged>(options: AnyOptions<unknown, A, A["_tag"], unknown>): Schema.Schema<A, any> => {
  const { events, name, of } = options
  const schema = typeof of === "object" ? of.events : events
  if (schema === undefined)
    throw new TypeError(`projection ${JSON.stringify(name)} must have \`events\`, or be \`of\` an aggregate`)
  return schema
}

const bindIfOf = <E, R>(
  projection: Projection<E, R>,
  origin: Projection.Origin | undefined
  // An unbound projection has no such key, and its public type has none either.
): Projection.Bound<E, R> =>
  origin === undefined ? (projection as Projection.Bound<E, R>) : bindTo(origin, projection)

/** The handlers, each with the refusals of its own events. */
const withRefusals = <A extends Tagged, E, E2, R>(
  handlers: ReadonlyMap<string, (event: A, envelope: Envelope) => Effect.Effect<unknown, E, R>>,
  refusalOf: RefusalOfPart<A, E2>
): ReadonlyMap<string, (event: A, envelope: Envelope) => Effect.Effect<unknown, E | E2 | StoreError, R>> =>
  new Map(
    [...handlers].map(([tag, handler]) => [
      tag,
      (event, envelope) =>
        Effect.mapError(
          handler(event, envelope),
          (error) => refusalFor((constraint) => refusalOf(constraint, event, envelope), envelope, error) ?? error
        )
    ])
  )

const statementsOf = <A extends Tagged>(
  handlers: ReadonlyMap<string, SqlHandler<A>>,
  read: A | Parts<A>,
  envelope: Envelope,
  sql: SqlClient.SqlClient
): ReadonlyArray<Statement<unknown>> => {
  if (!(read instanceof Parts)) return listOf(handlers.get(read._tag)?.(read, envelope, sql) ?? [])
  return handledParts(handlers, read, envelope).flatMap(({ envelope, event, handler }) =>
    listOf(handler(event, envelope, sql))
  )
}

const listOf = (some: ReturnType<SqlHandler<never>>): ReadonlyArray<Statement<unknown>> =>
  isList(some) ? some : [some]

const isList = (
  statements: Statement<unknown> | ReadonlyArray<Statement<unknown>>
): statements is ReadonlyArray<Statement<unknown>> => Array.isArray(statements)
