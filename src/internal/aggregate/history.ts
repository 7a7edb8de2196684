/**
 * Reads the history of an aggregate: its decoded events, page by page, so that one page at most is in memory.
 * `service.ts` calls it.
 */
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import type { Event } from "../../Event.js"
import type { StoreReads } from "../../StoreAdapter.js"
import type { StoreError, ValidationError } from "../../StoreError.js"
import type { Timestamp } from "../../Timestamp.js"
import { partsOf, type Tagged } from "../codec/eventCodec.js"
import { causeFields } from "../store/storedRecord.js"
import { streamReaderOf } from "../store/streamReader.js"
import type { AggregateDefinition } from "./definition.js"
import { missing } from "./loadState.js"

/** An event of an aggregate, decoded, with what caused it. The parts of a split event share its sequence. */
export interface HistoricEvent<out A> extends Pick<Event, "causationId" | "correlationId" | "traceparent"> {
  readonly event: A
  readonly sequence: number
  readonly timestamp: Timestamp
  /** The value of `Aggregate.Metadata` at the evaluation of the event's command. */
  readonly metadata: Event["metadata"]
}

/** All events of a stream that are stored when it is read, from the first on. */
export const history = <State, A extends Tagged>(
  definition: AggregateDefinition<State, A>,
  stored: Effect.Effect<readonly [streamId: string, store: StoreReads], ValidationError>
): Stream.Stream<HistoricEvent<A>, ValidationError | StoreError> =>
  Stream.unwrap(
    Effect.map(stored, ([id, store]) =>
      Stream.paginateEffect(1, (first) =>
        Effect.map(
          streamReaderOf(store).page(id, first, pageSize, { withCause: true }),
          ({ events, moreAfter }) =>
            [
              decodePage(definition, first, events()),
              moreAfter === undefined ? Option.none() : Option.some(moreAfter + 1)
            ] as const
        )
      )
    )
  ).pipe(Stream.flatten())

// --- internal ---

const pageSize = 500

/** The events of a page up to the first one that can't be decoded, and then the failure. */
const decodePage = <State, A extends Tagged>(
  { events: codec, name }: AggregateDefinition<State, A>,
  first: number,
  page: ReadonlyArray<Event>
): Stream.Stream<HistoricEvent<A>, StoreError> => {
  const decoded: Array<HistoricEvent<A>> = []
  for (const [index, stored] of page.entries()) {
    const event =
      stored.sequence === first + index
        ? codec.decode(`${name}.history`, stored)
        : Either.left(missing(`${name}.history`, stored, first + index))
    if (Either.isLeft(event)) return Stream.concat(chunkOf(decoded), Stream.fail(event.left))
    const { metadata, sequence, timestamp } = stored
    for (const part of partsOf(event.right)) {
      decoded.push({ event: part, sequence, timestamp, metadata: copyOf(metadata), ...causeFields(stored) })
    }
  }
  return chunkOf(decoded)
}

const chunkOf = <A>(items: ReadonlyArray<A>): Stream.Stream<A> => Stream.fromChunk(Chunk.unsafeFromArray(items))

/** A copy, because the events of a page with the same metadata share one object, and a caller may change it. */
const copyOf = (metadata: Event["metadata"]): Event["metadata"] =>
  Object.values(metadata).some((value) => typeof value === "object" && value !== null)
    ? structuredClone(metadata)
    : { ...metadata }
