/**
 * The members of `Aggregate.evaluateAll`: one for each aggregate that its commands are for. `severalCommands.ts` drives
 * them; `service.ts` makes `SeveralLayer`.
 *
 * A member has the steps of the command handler as effects whose types do not name the state, because the aggregates of
 * one call are of several types. Each step is that of `commandHandler.ts`.
 */
import type * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { Evaluated } from "../../Aggregate.js"
import type { Event } from "../../Event.js"
import type { Projection } from "../../Projection.js"
import type { StoreAdapterService } from "../../StoreAdapter.js"
import { ValidationError } from "../../StoreError.js"
import type { Timestamp } from "../../Timestamp.js"
import { type Tagged, tagOf, unknownTag } from "../codec/eventCodec.js"
import { closeBatch, type EntryOf, flushBatch, releaseLock } from "./aggregateLock.js"
import { type Caller, type CommandCall, type CommandContext, isolated } from "./commandContext.js"
import type { CommandDigest } from "./commandDigest.js"
import { answerOf, loadEntry } from "./commandHandler.js"
import { unexpected } from "./conditions.js"
import type { AggregateDefinition } from "./definition.js"
import { withLock } from "./fairLock.js"
import type { LayerContext } from "./layerContext.js"
import { initial } from "./loadState.js"
import type { Lockable } from "./lockAll.js"
import { makeReceipt, type ReceiptKey } from "./receipt.js"
import { provenanceOf, type RecordedCall, recordEvents } from "./recordEvents.js"
import { atCommand, type CommandOfList } from "./severalInput.js"
import { cacheState, markStale } from "./stateCache.js"
import { snapshotWhenDue } from "./takeSnapshot.js"

/** The layer of an aggregate, as `evaluateAll` uses it. */
export interface SeveralLayer {
  readonly name: string
  readonly kind: string
  readonly store: StoreAdapterService
  /** The projections, each with the services of the layer. */
  readonly projections: ReadonlyArray<Projection.Bound<unknown>>
  readonly provideStore: LayerContext<never>["provideStore"]
  readonly streamIdOf: (id: string) => string
  /** Why the value is no valid id, or `undefined`. */
  readonly problemOf: (id: unknown) => string | undefined
  readonly digest: (command: unknown) => Effect.Effect<CommandDigest, ValidationError>
  readonly member: (caller: Caller, clock: Clock.Clock, id: string) => Lockable<LockedMember>
}

/** A layer whose commands are evaluated by another process, so they can't be part of a transaction here. */
export interface SeveralElsewhere {
  /** Why `evaluateAll` refuses the commands. */
  readonly elsewhere: string
}

/** A member that holds the lock of its aggregate. */
export interface LockedMember {
  /** Begins the commit of the batch that the holder of the lock before has left open. */
  readonly closeBatch: () => void
  /** Waits for that commit. */
  readonly flush: Effect.Effect<void>
  /** Begins with the cached state. Returns `false` if there is none that may be used. */
  readonly useCached: () => boolean
  /** Reads the state from the store. Returns whether it is another one than the state that was decided on. */
  readonly read: Effect.Effect<boolean, unknown>
  /** Forgets the decisions. */
  readonly restart: () => void
  /** Decides on the state after the decisions before. Bad input fails with the index of the command. */
  readonly decide: (call: CommandCall<unknown>, at: CommandOfList) => Effect.Effect<Decided, unknown>
  /** Whether the state that was decided on is from the cache. */
  readonly isCached: () => boolean
  /** Whether all decisions together have events. */
  readonly hasEvents: () => boolean
  /** Makes the receipt of the decisions. `first` is the timestamp of the first event of the list. */
  readonly receipt: (key: ReceiptKey, call: RecordedCall, first: Timestamp | undefined) => Effect.Effect<Event>
  /** Caches the state after the decisions, which is stored. */
  readonly stored: () => void
  /** Notes that the cached state may be outdated. */
  readonly failed: () => void
  /** Stores a snapshot if one is due after the decisions. */
  readonly snapshot: Effect.Effect<void>
  /** The result of a command that was handled before. */
  readonly duplicate: () => Evaluated<unknown, unknown>
}

/** The result of one command. */
export interface Decided {
  readonly events: ReadonlyArray<Event>
  readonly answer: Evaluated<unknown, unknown>
}

export const makeSeveralLayer = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  projections: ReadonlyArray<Projection.Bound<unknown>>,
  { provideStore }: Pick<LayerContext<never>, "provideStore">
): SeveralLayer => {
  const { definition, store } = context
  const { kind, name, streams } = definition
  return {
    name,
    kind,
    store,
    projections,
    provideStore,
    streamIdOf: streams.streamId,
    problemOf: streams.problemOf,
    digest: (command) =>
      isCommandOf(definition, command) ? definition.digest(command) : unknownCommand(definition, command),
    member: ({ decision, isInTransaction }, clock, id) => {
      const own = isInTransaction || decision.streams.length > 0 ? isolated(context, isInTransaction) : context
      return {
        streamId: streams.streamId(id),
        withLock: (work) =>
          withLock(
            () => own.stateCache.entry(id, clock.unsafeCurrentTimeMillis()),
            (entry) => releaseLock(own, entry),
            (entry, restore) =>
              Effect.flatMap(Effect.exit(restore(Effect.suspend(() => work(lockedMember(own, entry))))), (exit) =>
                Effect.zipRight(releaseLock(own, entry), exit)
              )
          )
      }
    }
  }
}

// --- internal ---

const lockedMember = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  entry: EntryOf<State, E>
): LockedMember => {
  const { clock, definition, store } = context
  const { id } = entry
  let base = initial(definition, id)
  let current = base
  let isRead = false
  return {
    closeBatch: () => {
      if (entry.batch !== undefined) closeBatch(context, entry, entry.batch)
    },
    flush: flushBatch(context, entry),
    useCached: () => {
      if (entry.cached === undefined || entry.isStale) return false
      base = entry.cached
      isRead = false
      return true
    },
    read: Effect.map(
      Effect.suspend(() => loadEntry(context, entry)),
      (root) => {
        const isOther = root !== base
        base = root
        isRead = true
        return isOther
      }
    ),
    restart: () => {
      current = base
    },
    decide: (call, { expectedSequence, index }) =>
      Effect.suspend(() => {
        const { command } = call
        const own = (error: unknown) => (error instanceof ValidationError ? atCommand(index, error) : error)
        if (!isCommandOf(definition, command)) return Effect.mapError(unknownCommand(definition, command), own)
        if (expectedSequence !== undefined && expectedSequence !== current.sequence) {
          return unexpected(definition.kind, id, expectedSequence, current.sequence)
        }
        const deciding: CommandCall<C> = { ...call, command }
        return Effect.matchEffect(context.decide(deciding, current), {
          // A command that the handler has evaluated may have failed with a `ValidationError`, too.
          onFailure: (error) => Effect.fail(error === deciding.badInput ? own(error) : error),
          onSuccess: (decided) =>
            Exit.mapBoth(recordEvents(definition, clock, call, current, decided), {
              onFailure: own,
              onSuccess: (recorded): Decided => {
                current = recorded.root
                return { events: recorded.events, answer: answerOf(recorded) }
              }
            })
        })
      }),
    isCached: () => !isRead,
    hasEvents: () => current !== base,
    receipt: (key, call, first) =>
      makeReceipt(clock, key, current.sequence, (timestamp) => provenanceOf(call, first ?? timestamp)),
    stored: () => cacheState(entry, current),
    failed: () => markStale(entry),
    snapshot: Effect.suspend(() => snapshotWhenDue(definition, store, current, current.sequence - base.sequence)),
    duplicate: () => answerOf({ decided: [], root: base }, true)
  }
}

const isCommandOf = <C>(
  { commandTags }: Pick<AggregateDefinition<never, never, C>, "commandTags" | "digest">,
  command: unknown
): command is C => commandTags.includes(tagOf(command) ?? "")

const unknownCommand = (
  { commandTags, name }: Pick<AggregateDefinition<never, never>, "commandTags" | "name">,
  command: unknown
): Effect.Effect<never, ValidationError> =>
  Effect.fail(new ValidationError({ operation: `${name}.evaluate`, issues: [unknownTag(commandTags, command)] }))
