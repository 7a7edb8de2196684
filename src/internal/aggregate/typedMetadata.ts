/**
 * Metadata by a schema. `Aggregate.metadata` makes it.
 *
 * The schema is compiled once. Its encoded keys become keys of `Aggregate.Metadata`, beside those of other schemas.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type * as ParseResult from "effect/ParseResult"
import type * as Schema from "effect/Schema"
import type { Event } from "../../Event.js"
import { StoreError, ValidationError, ValidationIssue } from "../../StoreError.js"
import { guarded, parseIssues } from "../codec/eventCodec.js"
import { decodeUnknownEither, encodeUnknownEither } from "../codec/fastSchema.js"
import { isPlain } from "../codec/json.js"
import { Metadata } from "./metadata.js"

/** Sets metadata by a schema, and reads it. */
export interface TypedMetadata<in out A> {
  /**
   * Sets the metadata of the events of all commands that an effect evaluates. Keys that are set around it stay, unless
   * the schema has them, too. A value that the schema can't encode is refused by a `ValidationError`.
   */
  readonly provide: (value: A) => <B, E, R>(effect: Effect.Effect<B, E, R>) => Effect.Effect<B, E | ValidationError, R>

  /**
   * Reads the metadata of an event: of a handler or a projection, of the feed, of `history`. Keys of other schemas are
   * ignored. Where the schema can't decode it, also because it is missing, the failure is `UnreadableEvent`.
   */
  readonly of: (event: MetadataOf) => Either.Either<A, StoreError>
}

/** An event, or the part of it that has metadata. */
export type MetadataOf = Pick<Event, "metadata"> & Partial<Pick<Event, "aggregateId" | "sequence" | "type">>

/**
 * Metadata of a schema, whose encoded form must be a JSON object. `Aggregate.Metadata` needs no schema; this is the same
 * metadata with a type. Several schemas may stand beside each other if their keys differ. `of` returns an `Either`, which
 * is an effect, too.
 *
 * Metadata has no versions, so make a key optional that older events lack. The receipts of command ids have no metadata;
 * a filter of the feed by `kinds` leaves them out.
 *
 * @since 0.1.0
 * @category constructors
 *
 * @example
 * ```ts
 * import { Aggregate, type EventFeed } from "effect-maestro"
 * import * as Effect from "effect/Effect"
 * import * as Schema from "effect/Schema"
 *
 * const UserId = Schema.String.pipe(Schema.brand("UserId"))
 * const Audit = Aggregate.metadata(Schema.Struct({ userId: UserId }))
 *
 * declare const order: Effect.Effect<unknown, Aggregate.Failure, Aggregate.Instance<"Order">>
 *
 * export const orderBy = (user: string) => order.pipe(Audit.provide({ userId: UserId.make(user) }))
 *
 * export const whoDid = (event: EventFeed.FeedEvent) => Effect.map(Audit.of(event), ({ userId }) => userId)
 * ```
 */
export const typedMetadata = <A, I extends object>(schema: Schema.Schema<A, I>): TypedMetadata<A> => {
  const decode = guarded(decodeUnknownEither(schema))
  const encode = guarded(encodeUnknownEither(schema))
  return {
    provide: (value) => (effect) =>
      Effect.flatMap(
        Effect.suspend(() => encoded(encode(value))),
        (fields) =>
          Effect.mapInputContext(effect, (context) => {
            const around: unknown = Context.get(context, Metadata)
            // What is no object stays, so that `evaluate` refuses it.
            return isObject(around) ? Context.add(context, Metadata, { ...around, ...fields }) : context
          })
      ),
    of: (event) => Either.mapLeft(decode(event.metadata), (error) => unreadable(event, error))
  }
}

// --- internal ---

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value) && isPlain(value)

const encoded = (
  result: Either.Either<unknown, ParseResult.ParseError>
): Effect.Effect<Record<string, unknown>, ValidationError> => {
  if (Either.isLeft(result)) {
    const [first, ...rest] = parseIssues(result.left).map(
      ({ message, path }) => new ValidationIssue({ path: ["metadata", ...path], message })
    )
    return refused(first === undefined ? [notAnObject] : [first, ...rest])
  }
  return isObject(result.right) ? Effect.succeed(result.right) : refused([notAnObject])
}

const refused = (
  issues: readonly [ValidationIssue, ...Array<ValidationIssue>]
): Effect.Effect<never, ValidationError> => new ValidationError({ operation: "Aggregate.metadata", issues })

const notAnObject = new ValidationIssue({ path: ["metadata"], message: "must be encoded as a JSON object" })

const unreadable = ({ aggregateId, sequence, type }: MetadataOf, error: ParseResult.ParseError): StoreError =>
  new StoreError({
    reason: "UnreadableEvent",
    operation: "Aggregate.metadata",
    description: `the metadata can't be decoded: ${error.message}`,
    ...(aggregateId !== undefined && { aggregateId }),
    ...(sequence !== undefined && { sequence }),
    ...(type !== undefined && { type }),
    cause: error
  })
