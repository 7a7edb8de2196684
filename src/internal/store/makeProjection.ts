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
import { declaredTables } from "./declaredTables.js"
import { bindTo, checkingIds, envelopeOf } from "./origin.js"
import { decodingFor, refusalFor, refusalsOf } from "./projectionFailure.js"
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
  const decode = decoderOf(options)
  const refusalOf = refusalsOf<A, Refusal<Refusals>>(name, handlers, decode, options.onConstraint)
  const projection: EffectProjection<E | Refusal<Refusals> | StoreError, R> = {
    name,
    ...declaredTables(name, options),
    events: [...handlers.keys()],
    project: (stored) => {
      const handler = handlers.get(stored.type)
      if (handler === undefined) return Effect.void
      const projecting = Effect.asVoid(Effect.flatMap(decode(stored), (event) => handler(event, envelopeOf(stored))))
      return refusalOf === undefined
        ? projecting
        : Effect.mapError(projecting, (error) => refusalFor(refusalOf, stored, error) ?? error)
    },
    ...(refusalOf === undefined ? {} : { refusalOf })
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
  const decode = decoderOf(options)
  const refusalOf = refusalsOf<A, Refusal<Refusals>>(name, handlers, decode, options.onConstraint)
  const projection: SqlProjection<Refusal<Refusals> | StoreError, SqlClient.SqlClient> = {
    name,
    ...declaredTables(name, options),
    events: [...handlers.keys()],
    statements: (stored) => {
      const handler = handlers.get(stored.type)
      if (handler === undefined) return Effect.succeed([])
      return Effect.flatMap(SqlClient.SqlClient, (sql) =>
        Effect.map(decode(stored), (event): ReadonlyArray<Statement<unknown>> => {
          const some = handler(event, envelopeOf(stored), sql)
          return isList(some) ? some : [some]
        })
      )
    },
    ...(refusalOf === undefined ? {} : { refusalOf })
  }
  return bindIfOf(projection, options.of)
}

// --- internal ---

const decoderOf = <A extends Tagged>(
  options: AnyOptions<unknown, A, A["_tag"], unknown>
): ((stored: Event) => Either.Either<A, StoreError>) => {
  const { name, of } = options
  const decode = decodingFor(name, schemaOf(options))
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

const isList = (
  statements: Statement<unknown> | ReadonlyArray<Statement<unknown>>
): statements is ReadonlyArray<Statement<unknown>> => Array.isArray(statements)
