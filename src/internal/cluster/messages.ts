/**
 * The schemas of the messages between clients and runners: commands, reads, their results and their failures.
 *
 * They are made without constructors (`Schema.make`), because a constructor would refuse a command that `evaluate` takes.
 * Messages and results take the fast path of `codec/fastSchema.ts`.
 */
import { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Inspectable from "effect/Inspectable"
import * as ParseResult from "effect/ParseResult"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import type * as AST from "effect/SchemaAST"
import type { AsOf, Root } from "../../Aggregate.js"
import { StreamPosition } from "../../EventFeed.js"
import { CommandIdReused, RetryCommand, StoreError, UnexpectedSequence, ValidationError } from "../../StoreError.js"
import { Timestamp } from "../../Timestamp.js"
import { decodeUnknownEither, encodeUnknownEither } from "../codec/fastSchema.js"
import { isTooLarge, tooLarge } from "./messageSize.js"
import type { Answer, CommandMessage, IndexedEvent, ReadError, ReadMessage } from "./types.js"
import { isUnsent, unsentIssue, unsentOf } from "./unsent.js"

/** A schema whose encoded form is not looked at. */
export type Wire<A> = Schema.Schema<A, unknown>

export const commandMessage = <C>(command: Wire<C>): Wire<CommandMessage<C>> =>
  counted(
    Schema.Struct({
      id: Schema.String,
      command,
      attempt: Schema.String,
      sends: Schema.optional(Schema.Number),
      commandId: Schema.optional(Schema.String),
      expectedSequence: Schema.optional(Schema.Number),
      metadata: Schema.optional(jsonObject),
      chain: Schema.optional(
        Schema.Struct({
          correlationId: Schema.optional(Schema.String),
          causationId: Schema.optional(Timestamp)
        })
      ),
      deciding: Schema.optional(Schema.Array(Schema.String)),
      reply: Schema.optional(Schema.Literal("position"))
    })
  )

/** Either form of an answer. `events` tells them apart, because a state that is `undefined` may be left out of a message. */
export const answer = <State, A>(state: Wire<State>, event: Wire<A>): Wire<Answer<State, A>> => {
  const evaluated = coderOf(Schema.Struct({ state, events: Schema.Array(event), ...acknowledgedFields }))
  const acknowledged = coderOf(Schema.Struct(acknowledgedFields))
  return answered<Answer<State, A>>({
    decode: (u) => (Predicate.hasProperty(u, "events") ? evaluated : acknowledged).decode(u),
    encode: (answer) => ("events" in answer ? evaluated.encode(answer) : acknowledged.encode(answer))
  })
}

export const readMessage: Wire<ReadMessage> = Schema.make(Schema.Struct({ id: Schema.String }).ast)

export const replayMessage: Wire<ReadMessage & { readonly at: number | AsOf }> = Schema.make(
  Schema.Struct({ id: Schema.String, at: Schema.Union(Schema.Number, Schema.Struct({ asOf: Schema.Date })) }).ast
)

export const historyMessage: Wire<ReadMessage & { readonly skip: number }> = Schema.make(
  Schema.Struct({ id: Schema.String, skip: Schema.Number }).ast
)

/** Under a key, because JSON has no `undefined` by itself. */
export const stateOnly = <State>(state: Wire<State>): Wire<{ readonly state: State }> => fast(Schema.Struct({ state }))

export const root = <State>(state: Wire<State>): Wire<Omit<Root<State>, "id">> =>
  fast(Schema.Struct({ state, sequence: Schema.Number }))

export const indexedEvent = <A>(event: Wire<A>): Wire<IndexedEvent<A>> =>
  fast(
    Schema.Struct({
      index: Schema.Number,
      event,
      sequence: Schema.Number,
      timestamp: Timestamp,
      metadata: jsonObject,
      causationId: Schema.optional(Timestamp),
      correlationId: Schema.optional(Schema.String),
      traceparent: Schema.optional(Schema.String)
    })
  )

export const readFailure = (): Wire<ReadError> => failed(Schema.Union(ValidationError, StoreError))

/** The failures of a command: its refusals, those of projections, and those of the library. */
export const commandFailure = (refusals: ReadonlyArray<Wire<unknown>>): Wire<unknown> =>
  failed(
    Schema.Union(
      ...refusals,
      RetryCommand,
      ValidationError,
      StoreError,
      CommandIdReused,
      UnexpectedSequence,
      SqlErrorFromMessage
    )
  )

// --- internal ---

const acknowledgedFields = {
  sequence: Schema.Number,
  position: StreamPosition,
  duplicate: Schema.Boolean,
  correlationId: Schema.optional(Schema.String)
}

/** The two functions of a schema by the fast path. */
const coderOf = <A, I>(schema: Schema.Schema<A, I>): Coder<A> => ({
  decode: decodeUnknownEither(schema),
  encode: encodeUnknownEither(schema)
})

/** The schema of an answer by the fast path. */
const fast = <A, I>(schema: Schema.Schema<A, I>): Wire<A> => answered(coderOf(schema))

/** A message of a command, with the number of the messages that were sent before in place of its `sends`. */
type SentMessage<C> = Omit<CommandMessage<C>, "sends"> & { readonly sends?: number | undefined }

/**
 * The message of a command. A message is encoded each time that it is sent, also where the cluster sends it again by
 * itself. So encoding counts, which no caller of the cluster could do.
 */
const counted = <C, I>(schema: Schema.Schema<SentMessage<C>, I>): Wire<CommandMessage<C>> => {
  const { decode, encode } = coderOf(schema)
  return coded<CommandMessage<C>>({
    decode: (u) =>
      Either.map(decode(u), ({ sends, ...message }) =>
        sends === undefined ? message : { ...message, sends: { count: sends } }
      ),
    encode: ({ sends, ...message }) => encode(sends === undefined ? message : { ...message, sends: sends.count++ })
  })
}

interface Coder<A> {
  readonly decode: (u: unknown) => Either.Either<A, ParseResult.ParseError>
  readonly encode: (a: A) => Either.Either<unknown, ParseResult.ParseError>
}

/**
 * A schema of two functions. Its decoded side takes any value, because they have checked it. A function that throws is an issue like others,
 * because a runner that dies while it encodes an answer sends none.
 */
const coded = <A>({ decode, encode }: Coder<A>): Wire<A> =>
  Schema.transformOrFail(
    Schema.Unknown,
    Schema.declare((_): _ is A => true),
    {
      strict: true,
      decode: (u, _, ast) => issueOrValue(ast, u, decode),
      encode: (a, _, ast) => sendable(ast, issueOrValue(ast, a, encode))
    }
  )

/** The schema of an answer. In place of one that can't be sent, the reason is sent (`unsent.ts`). */
const answered = <A>({ decode, encode }: Coder<A>): Wire<A> =>
  Schema.transformOrFail(
    Schema.Unknown,
    Schema.declare((_): _ is A => true),
    {
      strict: true,
      decode: (u, _, ast) => (isUnsent(u) ? Either.left(unsentIssue(ast, u)) : issueOrValue(ast, u, decode)),
      encode: (a, _, ast) =>
        Either.orElse(sendable(ast, issueOrValue(ast, a, encode)), (issue) => Either.right(unsentOf(issue)))
    }
  )

const issueOrValue = <A, B>(
  ast: AST.AST,
  value: A,
  parse: (value: A) => Either.Either<B, ParseResult.ParseError>
): Either.Either<B, ParseResult.ParseIssue> =>
  Either.try({ try: () => parse(value), catch: (thrown) => issueOf(ast, value, thrown) }).pipe(
    Either.flatMap(Either.mapLeft(({ issue }) => issue))
  )

/** The encoded value, unless it is too large for a message. */
const sendable = (
  ast: AST.AST,
  encoded: Either.Either<unknown, ParseResult.ParseIssue>
): Either.Either<unknown, ParseResult.ParseIssue> =>
  Either.flatMap(encoded, (value) =>
    Either.try({ try: () => isTooLarge(value), catch: (thrown) => issueOf(ast, undefined, thrown) }).pipe(
      Either.flatMap((isTooLarge) =>
        isTooLarge ? Either.left(new ParseResult.Type(ast, undefined, tooLarge)) : Either.right(value)
      )
    )
  )

const issueOf = (ast: AST.AST, value: unknown, thrown: unknown): ParseResult.ParseIssue =>
  new ParseResult.Type(
    ast,
    value,
    `the schema throws: ${Predicate.isError(thrown) ? thrown.message : Inspectable.toStringUnknown(thrown)}`
  )

/** The schema of a failure, as `answered`, without the fast path and without a constructor. It may have effects. */
const failed = <A, I>(schema: Schema.Schema<A, I>): Wire<A> => {
  const [decode, encode] = [ParseResult.decodeUnknown(schema), ParseResult.encodeUnknown(schema)]
  const caught = <B>(ast: AST.AST, value: unknown, parse: (u: unknown) => Effect.Effect<B, ParseResult.ParseIssue>) =>
    Effect.catchAllDefect(
      Effect.suspend(() => parse(value)),
      (thrown) => Effect.fail(issueOf(ast, value, thrown))
    )
  return Schema.transformOrFail(
    Schema.Unknown,
    Schema.declare((_): _ is A => true),
    {
      strict: true,
      decode: (u, _, ast) => (isUnsent(u) ? Effect.fail(unsentIssue(ast, u)) : caught(ast, u, decode)),
      encode: (a, _, ast) =>
        caught(ast, a, encode).pipe(
          Effect.flatMap((encoded) => sendable(ast, Either.right(encoded))),
          Effect.catchAll((issue) => Effect.succeed(unsentOf(issue)))
        )
    }
  )
}

/** An object as text, so that a serialization of messages can't lose a part of it. */
const jsonObject: Schema.Schema<Readonly<Record<string, unknown>>, string> = Schema.transformOrFail(
  Schema.String,
  Schema.declare((u): u is Readonly<Record<string, unknown>> => Predicate.isRecord(u)),
  {
    strict: true,
    decode: (text, _, ast) =>
      ParseResult.try({
        try: () => JSON.parse(text),
        catch: () => new ParseResult.Type(ast, text, "is no JSON")
      }),
    encode: (value, _, ast) =>
      ParseResult.try({
        try: () => JSON.stringify(value),
        catch: () => new ParseResult.Type(ast, value, "can't be written as JSON")
      })
  }
)

/** A handler may fail with the failure of its own statement. */
const SqlErrorFromMessage = Schema.transform(
  Schema.TaggedStruct("SqlError", { message: Schema.optional(Schema.String), cause: Schema.optional(Schema.Defect) }),
  Schema.instanceOf(SqlError),
  {
    strict: true,
    decode: ({ cause, message }) => new SqlError({ cause, ...(message !== undefined && { message }) }),
    encode: ({ cause, message }) => ({ _tag: "SqlError" as const, message, cause })
  }
)
