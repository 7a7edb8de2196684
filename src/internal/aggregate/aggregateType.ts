/**
 * The type of an aggregate, which `Aggregate.make` returns. `Aggregate.ts` exports it.
 */
import type * as Effect from "effect/Effect"
import type * as Either from "effect/Either"
import type * as Layer from "effect/Layer"
import type * as Schema from "effect/Schema"
import type * as Stream from "effect/Stream"
import type { Acknowledged, AsOf, Evaluated, Failure, Instance, Root } from "../../Aggregate.js"
import type { Event, StreamIds } from "../../Event.js"
import type { Projection } from "../../Projection.js"
import type { StoreAdapter } from "../../StoreAdapter.js"
import type { StoreError, ValidationError } from "../../StoreError.js"
import type { Tagged } from "../codec/eventCodec.js"
import type { BoundProjections } from "./handlerTypes.js"
import type { HistoricEvent } from "./history.js"
import type { TargetedCommand } from "./targetedCommand.js"

/**
 * An aggregate: its operations, and the layer that they need. `Refusals` has the failures of each command's handler.
 */
// An alias of an object type: a property of an interface would repeat all these types whenever an editor shows it.
export type Aggregate<
  Name extends string,
  State,
  A extends Tagged,
  C extends Tagged,
  CI,
  Refusals extends { readonly [K in C["_tag"]]: unknown },
  Declared,
  Projections extends ReadonlyArray<Projection.Any>,
  R,
  Id extends string = string,
  NewId = Effect.Effect<Id>
> = {
  /** The key of its service, and its name in spans and messages. */
  readonly name: Name
  /** The kind under which its events are stored, for a filter of the feed: the name, unless it was renamed. */
  readonly kind: string
  /** The schema of its ids. */
  // biome-ignore lint/suspicious/noExplicitAny: the encoded form is text of any type
  readonly id: Schema.Schema<Id, any>
  /** How its streams are named in the store. */
  readonly streams: StreamIds
  /** The schema of its state. */
  // biome-ignore lint/suspicious/noExplicitAny: no caller knows the encoded form
  readonly state: Schema.Schema<State, any>
  /** The schema of its events. */
  // biome-ignore lint/suspicious/noExplicitAny: followers decode stored events of whatever encoded form
  readonly events: Schema.Schema<A, any>
  /** Its strong projections, bound to it: a rebuild or a subscription takes them. */
  readonly projections: BoundProjections<Projections>
  /** The schema of its commands. */
  readonly commands: Schema.Schema<C, CI>
  /** The declared refusals, by command; `undefined` if none are declared. */
  readonly refusals: Declared
  /**
   * The `aggregateId` of its events in the store and in the feed: `Account/42` of the id `42`, or the id itself with `streams: "plain"`. It
   * does not check the id.
   */
  readonly streamId: (id: Id) => string

  /**
   * A fresh id for a new aggregate: of the option `newId`, or a timestamp, so ids rise with time. Any other text is an id, too, but the
   * first command on it reads the store. It dies where the schema of the ids refuses the id that was made.
   */
  readonly newId: NewId

  /**
   * Evaluates a command: loads the state, decides, and commits the events with the strong projections in one transaction. If another
   * commit came first, the command is decided again on the new state, by the `retry` schedule. At the end of the schedule the
   * `RetryCommand` is the failure. A refusal stores nothing.
   *
   * Commands on one aggregate are decided one at a time within a process. Commands that wait for each other are committed together, and
   * each result is returned after the commit. A commit of unknown outcome (a connection lost at COMMIT) is settled: the same events are
   * committed again, so a command takes effect once.
   *
   * Inside your own `SqlClient.withTransaction` the command is part of that transaction. Within `withCommandId` it takes effect once,
   * however often it is evaluated. Within `withExpectedSequence` it takes effect only while the aggregate is at that sequence.
   *
   * With `{ reply: "position" }` the result has the sequence, the position and `duplicate`, and no state and no events. In a cluster these
   * are then not sent, which matters for a large state.
   */
  // The signature of the whole result is the last one, because TypeScript infers from that. There is none for a `reply` that the program
  // decides: with it an editor would show 900 characters for the operation.
  readonly evaluate: {
    <K extends C>(
      id: Id,
      command: K,
      options: { readonly reply: "position" }
    ): Effect.Effect<
      Acknowledged,
      Refusals[K["_tag"]] | Projection.Error<Projections[number]> | Failure,
      Instance<Name>
    >
    <K extends C>(
      id: Id,
      command: K,
      options?: { readonly reply?: undefined }
    ): Effect.Effect<
      Evaluated<State, A>,
      Refusals[K["_tag"]] | Projection.Error<Projections[number]> | Failure,
      Instance<Name>
    >
  }

  /**
   * Decodes a command from JSON, and evaluates it. Input that is no command of this aggregate fails with a `ValidationError` that names each
   * problem and its place. (`evaluate` does not decode its command.) With `only`, every other command fails with a `ValidationError`, too,
   * and the type has the refusals of the named commands alone. `reply: "position"` is that of `evaluate`. An option of another name, and an
   * `only` that is no array of tags of commands, fail with a `ValidationError`, because `only` would not be obeyed.
   */
  readonly evaluateUnknown: {
    <Only extends C["_tag"] = C["_tag"]>(
      id: Id,
      command: unknown,
      options: { readonly only?: ReadonlyArray<Only> | undefined; readonly reply: "position" }
    ): Effect.Effect<Acknowledged, Refusals[Only] | Projection.Error<Projections[number]> | Failure, Instance<Name>>
    <Only extends C["_tag"] = C["_tag"]>(
      id: Id,
      command: unknown,
      options?: { readonly only?: ReadonlyArray<Only> | undefined; readonly reply?: undefined }
    ): Effect.Effect<
      Evaluated<State, A>,
      Refusals[Only] | Projection.Error<Projections[number]> | Failure,
      Instance<Name>
    >
  }

  /**
   * The command as a value, with the aggregate that it is for: an item of the list that `evaluateAll` takes. With
   * `expectedSequence` it is decided only while the aggregate is at that sequence.
   */
  readonly command: TargetedCommand.Make<
    Name,
    Id,
    Evaluated<State, A>,
    C,
    Refusals,
    Projection.Error<Projections[number]>
  >

  /** Whether the aggregate has events in the store. */
  readonly exists: (id: Id) => Effect.Effect<boolean, ValidationError | StoreError, Instance<Name>>
  /** The cached state, or the state of the store if none is cached. A cached state may be older than the stored one. */
  readonly get: (id: Id) => Effect.Effect<State, ValidationError | StoreError, Instance<Name>>
  /** The state of the store. An aggregate without events has the initial state. */
  readonly fetch: (id: Id) => Effect.Effect<State, ValidationError | StoreError, Instance<Name>>
  /** The state of the store with its sequence, which is an `ETag` for `withExpectedSequence`. */
  readonly root: (id: Id) => Effect.Effect<Root<State, Id>, ValidationError | StoreError, Instance<Name>>
  /**
   * The state after the event of a sequence, or the initial state at 0. A sequence beyond the last is a `ValidationError`.
   *
   * With `{ asOf: time }` the state after the last event that was made at or before that time: the initial state before the first event, and
   * the current state after the last. `Timestamp.Time` says how exact it is.
   */
  readonly replay: (id: Id, at: number | AsOf) => Effect.Effect<State, ValidationError | StoreError, Instance<Name>>

  /** Stores a snapshot of the state, so that loading begins there. It replaces a stored snapshot unless that one is newer. */
  readonly snapshot: (id: Id) => Effect.Effect<void, ValidationError | StoreError, Instance<Name>>

  /**
   * All events that the aggregate has when the stream is run, in order. The stream reads page by page, so memory does not grow with the
   * number of events. It fails with `UnreadableEvent` at the first event that can't be decoded, after the events before.
   */
  readonly history: (id: Id) => Stream.Stream<HistoricEvent<A>, ValidationError | StoreError, Instance<Name>>

  /**
   * The events of today that a stored event of the aggregate is read as: one event, or by its history several or none. Use it for events that
   * come from the feed or from the store as they are stored. An event that can't be read, or of another aggregate, is an `UnreadableEvent`.
   */
  readonly decode: (stored: Event) => Either.Either<ReadonlyArray<A>, StoreError>

  /**
   * Provides the service that the operations need. It captures the services that handlers and projections need, so callers need this layer
   * only. A service or `Context.Reference` that a caller provides itself wins. Clients of `@effect/sql` and services of this library are
   * always those of the layer, because they belong to its store.
   */
  readonly layer: Layer.Layer<Instance<Name>, never, StoreAdapter | R>
}
