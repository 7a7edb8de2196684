/**
 * The state of an aggregate at a sequence, or as of a time. `service.ts` calls it.
 *
 * The event that a time ends at is not known before the stream is read. So a replay as of a time folds page by page, from
 * the snapshot on if that is not newer, and stops at the first event that was made later. Timestamps rise along a
 * stream.
 */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import type { AsOf } from "../../Aggregate.js"
import { maxSequence } from "../../Event.js"
import type { StoreReads } from "../../StoreAdapter.js"
import { type StoreError, ValidationError, ValidationIssue } from "../../StoreError.js"
import type { Tagged } from "../codec/eventCodec.js"
import { macrotask } from "../runtime/macrotask.js"
import { boundOf, noTime, timeIn } from "../store/asOf.js"
import { streamReaderOf } from "../store/streamReader.js"
import type { AggregateDefinition } from "./definition.js"
import { fold, initial, load, type VersionedState } from "./loadState.js"

/** The state after the event of a sequence, or after the last event of a time. */
export const replay = <State, A extends Tagged>(
  definition: AggregateDefinition<State, A>,
  store: StoreReads,
  id: string,
  at: number | AsOf
): Effect.Effect<State, ValidationError | StoreError> => {
  if (typeof at !== "object" || at === null) return replayTo(definition, store, id, at)
  const bound = boundOf(timeIn(at))
  return bound === undefined
    ? refused(definition.name, "asOf", noTime)
    : Effect.map(replayUntil(definition, store, id, bound), ({ state }) => state)
}

// --- internal ---

/** The events that are read at a time. */
const pageSize = 500

const replayTo = <State, A extends Tagged>(
  definition: AggregateDefinition<State, A>,
  store: StoreReads,
  id: string,
  sequence: number
): Effect.Effect<State, ValidationError | StoreError> => {
  const { name } = definition
  if (!Number.isInteger(sequence) || sequence < 0 || sequence > maxSequence) {
    return refused(name, "sequence", `must be an integer from 0 to ${maxSequence}`)
  }
  return Effect.flatMap(
    load(definition, store, id, sequence),
    (root): Effect.Effect<State, ValidationError> =>
      root.sequence === sequence
        ? Effect.succeed(root.state)
        : refused(name, "sequence", `must be at most ${root.sequence}, the sequence of the last event`)
  )
}

/** The state after the last event whose timestamp is not above the bound. */
const replayUntil = <State, A extends Tagged>(
  definition: AggregateDefinition<State, A>,
  store: StoreReads,
  id: string,
  bound: string
): Effect.Effect<VersionedState<State>, ValidationError | StoreError> => {
  const first = initial(definition, id)
  const foldOn = (root: VersionedState<State>): Effect.Effect<VersionedState<State>, ValidationError | StoreError> =>
    Effect.flatMap(streamReaderOf(store).page(first.streamId, root.sequence + 1, pageSize), ({ events, moreAfter }) => {
      let current = root
      for (const event of events()) {
        if (event.timestamp > bound) return Effect.succeed(current)
        const next = fold(definition, current, event)
        if (Either.isLeft(next)) return next
        current = next.right
      }
      const last = current
      return moreAfter === undefined ? Effect.succeed(last) : Effect.flatMap(macrotask, () => foldOn(last))
    })
  const begin = Effect.flatMap(store.getSnapshot(first.streamId, 1), (snapshot) =>
    Option.isSome(snapshot) && snapshot.value.timestamp <= bound
      ? // It is made of the events, if the snapshot can't be used.
        Effect.map(load(definition, store, id, snapshot.value.sequence), (root) =>
          (root.timestamp ?? "") <= bound ? root : first
        )
      : Effect.succeed(first)
  )
  return Effect.flatMap(begin, foldOn)
}

const refused = (name: string, field: string, message: string): Effect.Effect<never, ValidationError> =>
  new ValidationError({ operation: `${name}.replay`, issues: [new ValidationIssue({ path: [field], message })] })
