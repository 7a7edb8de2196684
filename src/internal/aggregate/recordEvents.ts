/**
 * Makes stored events of a decision: encodes, numbers and stamps them, and folds the state after them.
 *
 * `commandHandler.ts` and `idempotentCommand.ts` call it. The state is folded from the events as they will be read
 * again, so it is the state that every later load returns. An event that could not be read again is refused.
 */
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import type { Event, NewEvent } from "../../Event.js"
import { type StoreError, ValidationError, ValidationIssue } from "../../StoreError.js"
import type { HybridClockService, Timestamp } from "../../Timestamp.js"
import type { Tagged } from "../codec/eventCodec.js"
import { isPlain, withoutUndefined } from "../codec/json.js"
import type { CommandCall } from "./commandContext.js"
import type { AggregateDefinition } from "./definition.js"
import type { VersionedState } from "./loadState.js"
import { noMetadata } from "./metadata.js"

/** What was decided, the events to store, and the state after them. */
export interface RecordedEvents<State, A> {
  readonly decided: ReadonlyArray<A>
  readonly events: ReadonlyArray<Event>
  readonly root: VersionedState<State>
}

/** The part of a call that its events are recorded with. */
export type RecordedCall = Pick<CommandCall<unknown>, "chain" | "clock" | "metadata" | "ownChain" | "traceparent">

/** Where an event comes from. */
export type Provenance = Pick<Event, "causationId" | "correlationId" | "traceparent">

/**
 * The provenance of the events of a call, by the timestamp of the first one. That event names the chain, unless the
 * chain has a name already.
 */
export const provenanceOf = ({ chain, ownChain, traceparent }: RecordedCall, first: Timestamp): Provenance => {
  if (chain === undefined) {
    // A command that the handler has evaluated may have named the chain.
    const correlationId = ownChain?.correlationId ?? first
    return traceparent === undefined ? { correlationId } : { correlationId, traceparent }
  }
  chain.correlationId ??= first
  const { causationId, correlationId } = chain
  return {
    correlationId,
    ...(causationId === undefined ? {} : { causationId }),
    ...(traceparent === undefined ? {} : { traceparent })
  }
}

/** Records the events that were decided on `root`. */
export const recordEvents = <State, A extends Tagged>(
  definition: AggregateDefinition<State, A>,
  hybrid: HybridClockService,
  call: RecordedCall,
  root: VersionedState<State>,
  decided: ReadonlyArray<A>
): Exit.Exit<RecordedEvents<State, A>, ValidationError | StoreError> => {
  if (decided.length === 0) return Exit.succeed({ decided, events: [], root })
  // Timestamps must rise along an aggregate, whichever node wrote its last event.
  const refused = root.timestamp === undefined ? undefined : hybrid.unsafeReceive(root.timestamp, call.clock)
  return refused === undefined
    ? encodeAndFold(definition, call, root, decided, () => hybrid.unsafeNow(call.clock))
    : Exit.fail(refused)
}

// --- internal ---

const encodeAndFold = <State, A extends Tagged>(
  { events: codec, evolve, name }: AggregateDefinition<State, A>,
  call: RecordedCall,
  root: VersionedState<State>,
  decided: ReadonlyArray<A>,
  now: () => Timestamp
): Exit.Exit<RecordedEvents<State, A>, ValidationError> => {
  const { id, streamId } = root
  const metadata = readMetadata(call.metadata)
  const issues: Array<ValidationIssue> = Either.isLeft(metadata) ? [metadata.left] : []
  const events: Array<Event & Pick<NewEvent, "follows">> = []
  let { sequence, state, timestamp } = root
  let provenance: Provenance | undefined
  for (const [index, event] of decided.entries()) {
    const recorded = codec.record(event, index)
    const follows = timestamp
    timestamp = now()
    provenance ??= provenanceOf(call, timestamp)
    sequence++
    if (Either.isLeft(recorded)) issues.push(...recorded.left)
    if (Either.isLeft(recorded) || Either.isLeft(metadata)) continue
    const { body, decoded, version } = recorded.right
    events.push({
      timestamp,
      aggregateId: streamId,
      sequence,
      type: event._tag,
      version,
      body,
      metadata: metadata.right,
      follows,
      ...provenance
    })
    if (issues.length === 0) state = evolve(state, decoded)
  }
  const [first, ...rest] = issues
  return first === undefined
    ? Exit.succeed({ decided, events, root: { streamId, id, sequence, state, timestamp } })
    : Exit.fail(new ValidationError({ operation: `${name}.evaluate`, issues: [first, ...rest] }))
}

/** `Aggregate.Metadata` comes from the application, so it may be any value. */
const readMetadata = (metadata: unknown): Either.Either<Event["metadata"], ValidationIssue> => {
  if (metadata === noMetadata) return Either.right({})
  try {
    if (typeof metadata === "object" && metadata !== null && !Array.isArray(metadata) && isPlain(metadata)) {
      return Either.right(withoutUndefined({ ...metadata }))
    }
  } catch {
    // A proxy or a getter can throw.
  }
  return Either.left(new ValidationIssue({ path: ["metadata"], message: "must be a JSON object" }))
}
