/**
 * The types of the messages between clients and runners. `ClusterAggregate.ts` exports the types that users see.
 */
import type * as Rpc from "@effect/rpc/Rpc"
import type * as RpcSchema from "@effect/rpc/RpcSchema"
import type * as Duration from "effect/Duration"
import type * as Schedule from "effect/Schedule"
import type * as Schema from "effect/Schema"
import type { Acknowledged, AsOf, Evaluated, HistoricEvent, Root } from "../../Aggregate.js"
import type { StoreError, ValidationError } from "../../StoreError.js"
import type { Timestamp } from "../../Timestamp.js"
import type { Reply } from "../aggregate/commandResult.js"
import type { Source } from "../aggregate/declaring.js"
import type { DeclaredOf, LibraryFailure } from "../aggregate/handlerTypes.js"
import type { Tagged } from "../codec/eventCodec.js"

/** What the entity needs of an aggregate. `Aggregate.make` makes one. */
export interface ClusterSource<
  Name extends string,
  State,
  A extends Tagged,
  C extends Tagged,
  CI,
  Declared,
  Id extends string
> extends Source<Name, State, C, CI, Declared, Id> {
  // biome-ignore lint/suspicious/noExplicitAny: no caller knows the encoded form
  readonly events: Schema.Schema<A, any>
}

/** How long a client repeats a call, how often, and when it no longer waits for a runner. */
export interface CallOptions {
  /** After this time without an answer a call fails with `ClusterUnavailable`: 1 minute by default. */
  readonly timeout?: Duration.DurationInput | undefined
  /**
   * The delays between the repetitions of a call that no runner has answered, until the timeout. By default the first is
   * 20 ms, and each is twice as long as the one before, 1 second at most, with jitter.
   */
  readonly retry?: Schedule.Schedule<unknown> | undefined
  /**
   * After each such time without an answer the message is sent again, while those before go on: 5 seconds by default. So a
   * runner that is stopped keeps its callers for this time longer than its shards, at most. Where it is not shorter than the
   * timeout, no message is sent again for this reason.
   */
  readonly resendAfter?: Duration.DurationInput | undefined
}

/** A command, and what its caller has set around it. */
export interface CommandMessage<out C> {
  readonly id: string
  readonly command: C
  /** The id of the call. All messages with it have the result of the first one that took effect. */
  readonly attempt: string
  /** Counts the messages of the call. */
  readonly sends?: Sends | undefined
  readonly commandId?: string | undefined
  readonly expectedSequence?: number | undefined
  readonly metadata?: Readonly<Record<string, unknown>> | undefined
  /** The chain that the command belongs to. Without a correlation id the first event of the command names it. */
  readonly chain?:
    | { readonly correlationId?: string | undefined; readonly causationId?: Timestamp | undefined }
    | undefined
  /** The streams of the aggregates whose handlers evaluate the command. */
  readonly deciding?: ReadonlyArray<string> | undefined
  /** Asks for the short form of the answer. */
  readonly reply?: Reply | undefined
}

/** The result of a command: with state and events, or the short form, which has no property `events`. */
export type Answer<State, A> = EvaluatedAnswer<State, A> | AcknowledgedAnswer

export interface EvaluatedAnswer<out State, out A> extends Evaluated<State, A>, ChainName {}

export interface AcknowledgedAnswer extends Acknowledged, ChainName {}

/** The number of messages of a call that were sent. The cluster sends a message again by itself, too. */
export interface Sends {
  count: number
}

/** A message for one aggregate. */
export interface ReadMessage {
  readonly id: string
}

/** The failures of a read. */
export type ReadError = ValidationError | StoreError

/** The message of each command. Its name is the tag of the command. */
export type CommandRpc<Tag extends string, State, A, C extends Tagged, Declared> = Tag extends string
  ? Rpc.Rpc<
      Tag,
      Wire<CommandMessage<Extract<C, { readonly _tag: Tag }>>>,
      Wire<Answer<State, A>>,
      Wire<DeclaredOf<Declared, Tag> | LibraryFailure>
    >
  : never

/** The messages that read. */
export type ReadRpc<State, A> =
  | Read<"exists", ReadMessage, boolean>
  | Read<"get" | "fetch", ReadMessage, { readonly state: State }>
  | Read<"root", ReadMessage, Omit<Root<State>, "id">>
  | Read<"replay", ReadMessage & { readonly at: number | AsOf }, { readonly state: State }>
  | Read<"snapshot", ReadMessage, void>
  | Rpc.Rpc<
      "history",
      Wire<ReadMessage & { readonly skip: number }>,
      RpcSchema.Stream<Wire<IndexedEvent<A>>, Wire<ReadError>>
    >

/** An event of a history, with its place in it, from 0. */
export interface IndexedEvent<out A> extends HistoricEvent<A> {
  readonly index: number
}

// --- internal ---

interface ChainName {
  /** The name of the chain, where the message had none. */
  readonly correlationId?: string | undefined
}

// biome-ignore lint/suspicious/noExplicitAny: no caller knows the encoded form
type Wire<A> = Schema.Schema<A, any>

type Read<Tag extends string, Payload, Success> = Tag extends string
  ? Rpc.Rpc<Tag, Wire<Payload>, Wire<Success>, Wire<ReadError>>
  : never
