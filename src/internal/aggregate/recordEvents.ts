/**
 * From what was decided to events that can be stored: encoded, numbered, stamped.
 */
import type * as Clock from "effect/Clock"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import type { Event } from "../../Event.js"
import { type StoreError, ValidationError, ValidationIssue } from "../../StoreError.js"
import type { HybridClockService, Timestamp } from "../../Timestamp.js"
import type { Tagged } from "../codec/eventCodec.js"
import { isPlain, withoutUndefined } from "../codec/json.js"
import { type Folding, fold, type Loaded } from "./loadState.js"

/** What a decision came to: the events to store, and the state after them. */
export interface Recorded<State> {
  readonly events: ReadonlyArray<Event>
  readonly root: Loaded<State>
}

/**
 * Numbers and stamps what was decided on a state. The state after it is folded from the events as they will be read again, so it is
 * the one that every later load returns; an event that could not be read again is refused.
 */
export const record = <State, A extends Tagged>(
  folding: Folding<State, A>,
  hybrid: HybridClockService,
  { clock: wall, metadata }: { readonly clock: Clock.Clock; readonly metadata: Readonly<Record<string, unknown>> },
  root: Loaded<State>,
  decided: ReadonlyArray<A>
): Exit.Exit<Recorded<State>, ValidationError | StoreError> => {
  // So that time rises along the aggregate, whichever node wrote its last event.
  const refused = root.timestamp === undefined ? undefined : hybrid.unsafeReceive(root.timestamp, wall)
  return refused === undefined
    ? compose(
        folding,
        metadata,
        root,
        decided,
        decided.map(() => hybrid.unsafeNow(wall))
      )
    : Exit.fail(refused)
}

// --- internal ---

const compose = <State, A extends Tagged>(
  folding: Folding<State, A>,
  metadata: Readonly<Record<string, unknown>>,
  root: Loaded<State>,
  decided: ReadonlyArray<A>,
  timestamps: ReadonlyArray<Timestamp>
): Exit.Exit<Recorded<State>, ValidationError> => {
  const common = readMetadata(metadata)
  const issues: Array<ValidationIssue> = Either.isLeft(common) ? [common.left] : []
  const events: Array<Event> = []
  let after = root
  for (const [index, event] of decided.entries()) {
    const body = folding.events.encode(event, index)
    const timestamp = timestamps[index]
    if (Either.isLeft(body)) issues.push(...body.left)
    if (Either.isLeft(body) || Either.isLeft(common) || timestamp === undefined) continue
    const recorded: Event = {
      timestamp,
      aggregateId: root.streamId,
      sequence: root.sequence + 1 + index,
      type: event._tag,
      body: body.right,
      metadata: common.right
    }
    events.push(recorded)
    if (issues.length > 0) continue
    const next = fold(folding, after, recorded)
    if (Either.isRight(next)) after = next.right
    else issues.push(new ValidationIssue({ index, path: [], message: next.left.description }))
  }
  const [first, ...rest] = issues
  return first === undefined
    ? Exit.succeed({ events, root: after })
    : Exit.fail(new ValidationError({ operation: `${folding.name}.evaluate`, issues: [first, ...rest] }))
}

/** What was set around the command; it comes from the application, and may be anything. */
const readMetadata = (metadata: unknown): Either.Either<Event["metadata"], ValidationIssue> => {
  try {
    if (typeof metadata === "object" && metadata !== null && !Array.isArray(metadata) && isPlain(metadata)) {
      return Either.right(withoutUndefined({ ...metadata }))
    }
  } catch {
    // A proxy or getter that throws.
  }
  return Either.left(new ValidationIssue({ path: ["metadata"], message: "must be a JSON object" }))
}
