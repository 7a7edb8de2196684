/**
 * The types of endpoints that follow from an aggregate. `AggregateHttp.ts` exports the types that users see.
 */
import type * as HttpApiBuilder from "@effect/platform/HttpApiBuilder"
import type * as HttpApiEndpoint from "@effect/platform/HttpApiEndpoint"
import type * as HttpApiError from "@effect/platform/HttpApiError"
import type * as Effect from "effect/Effect"
import type { StreamPosition } from "../../EventFeed.js"
import type { CommandIdReused, RetryCommand, UnexpectedSequence, ValidationError } from "../../StoreError.js"
import type { DeclaredOf } from "../aggregate/handlerTypes.js"
import type { Tagged } from "../codec/eventCodec.js"
import type { Unavailable } from "./errors.js"

/** The body of a successful read: the state, and the place of its last event. */
export interface Read<out View> {
  readonly state: View
  readonly position: StreamPosition
}

/** The body of a successful command. */
export interface Result<out View> extends Read<View> {
  /** Whether a command of this `Idempotency-Key` was handled before. */
  readonly duplicate: boolean
}

/** The request headers of a command that a typed client sends. */
export interface CommandHeaders {
  readonly "idempotency-key"?: string | undefined
  readonly "if-match"?: string | undefined
  readonly "if-none-match"?: string | undefined
}

/** The request headers of a read that a typed client sends. */
export interface ReadHeaders {
  readonly "if-none-match"?: string | undefined
}

/** The failures of every command, as a typed client sees them. */
export type CommandFailure =
  | RetryCommand
  | UnexpectedSequence
  | CommandIdReused
  | Unavailable
  | HttpApiError.InternalServerError
  | HttpApiError.HttpApiDecodeError

/** The failures of a read, as a typed client sees them. */
export type ReadFailure =
  | HttpApiError.NotFound
  | Unavailable
  | HttpApiError.InternalServerError
  | HttpApiError.HttpApiDecodeError

/** The tags of all declared refusals. */
export type RefusalTag<Declared> =
  DeclaredOf<Declared, keyof Declared> extends infer E ? (E extends Tagged ? E["_tag"] : never) : never

/** The endpoint of each command. Its name is the tag with a lower-case first letter. */
export type CommandEndpoint<
  Tag extends string,
  C extends Tagged,
  Declared,
  Id extends string,
  View
> = Tag extends string
  ? HttpApiEndpoint.HttpApiEndpoint<
      Uncapitalize<Tag>,
      "POST",
      { readonly id: Id },
      never,
      Extract<C, { readonly _tag: Tag }>,
      CommandHeaders,
      Result<View>,
      CommandFailure | DeclaredOf<Declared, Tag>
    >
  : never

/** The endpoint of the state. */
export type ReadEndpoint<Id extends string, View> = HttpApiEndpoint.HttpApiEndpoint<
  "get",
  "GET",
  { readonly id: Id },
  never,
  never,
  ReadHeaders,
  Read<View>,
  ReadFailure
>

/** What a request asks for, as `authorize` gets it. */
export interface Call<out C, out Id extends string> {
  readonly id: Id
  /** The command; none for a read. */
  readonly command: C | undefined
}

/** Sets the metadata of the commands of an effect, as `provide` of typed metadata does. */
export type SetMetadata = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E | ValidationError, R>

/** What the application does before each request is handled. */
export interface HandleOptions<C, Id extends string, E, R> {
  /**
   * Runs when the request is decoded, before anything is read or evaluated. Its failures are the response, so the group
   * or the API must declare them: `HttpApiError.Forbidden`, for instance.
   */
  readonly authorize?: ((call: Call<C, Id>) => Effect.Effect<unknown, E, R>) | undefined
  /**
   * The metadata of the events of a command: of the user whom a middleware has found, for instance. Its value is that of
   * `Aggregate.Metadata`, or what `provide` of typed metadata returns (`Aggregate.metadata`).
   */
  readonly metadata?: Effect.Effect<Readonly<Record<string, unknown>> | SetMetadata, E, R> | undefined
}

/** The handlers of an API without those of the given endpoints. It is the type of `HttpApiBuilder`, for several names. */
export type Handled<
  E,
  Provides,
  R,
  All extends HttpApiEndpoint.HttpApiEndpoint.Any,
  Names extends string,
  R1
> = HttpApiBuilder.Handlers<
  E,
  Provides,
  | R
  | Exclude<
      HttpApiEndpoint.HttpApiEndpoint.ExcludeProvided<
        All,
        Names,
        R1 | HttpApiEndpoint.HttpApiEndpoint.ContextWithName<All, Names>
      >,
      Provides
    >,
  HttpApiEndpoint.HttpApiEndpoint.ExcludeName<All, Names>
>
