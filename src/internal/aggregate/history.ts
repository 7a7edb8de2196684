/**
 * The events of one aggregate, decoded, page by page.
 */
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import type { Event } from "../../Event.js"
import type { StoreAdapterService } from "../../StoreAdapter.js"
import type { StoreError, ValidationError } from "../../StoreError.js"
import type { Timestamp } from "../../Timestamp.js"
import type { Tagged } from "../codec/eventCodec.js"
import { streamReaderOf } from "../store/streamReader.js"
import { type Folding, missing } from "./loadState.js"

/** An event of an aggregate, decoded. */
export interface Historic<out A> {
  readonly event: A
  readonly sequence: number
  readonly timestamp: Timestamp
  /** What `Aggregate.Metadata` was when its command was evaluated. */
  readonly metadata: Event["metadata"]
}

/** All events of a stream that are stored when it is read, from the first on. At most one page of them is in memory. */
export const history = <State, A extends Tagged>(
  folding: Folding<State, A>,
  store: StoreAdapterService,
  streamId: Effect.Effect<string, ValidationError>
): Stream.Stream<Historic<A>, ValidationError | StoreError> =>
  Stream.unwrap(
    Effect.map(streamId, (id) =>
      Stream.paginateEffect(1, (first) =>
        Effect.map(
          streamReaderOf(store).page(id, first, pageSize),
          ({ events, moreAfter }) =>
            [
              decodePage(folding, first, events()),
              moreAfter === undefined ? Option.none() : Option.some(moreAfter + 1)
            ] as const
        )
      )
    )
  ).pipe(Stream.flatten())

// --- internal ---

const pageSize = 500

/** The events of a page, up to the first that can't be decoded. */
const decodePage = <State, A extends Tagged>(
  { events: codec, name }: Folding<State, A>,
  first: number,
  page: ReadonlyArray<Event>
): Stream.Stream<Historic<A>, StoreError> => {
  const decoded: Array<Historic<A>> = []
  for (const [index, stored] of page.entries()) {
    const event =
      stored.sequence === first + index
        ? codec.decode(`${name}.history`, stored)
        : Either.left(missing(`${name}.history`, stored, first + index))
    if (Either.isLeft(event)) return Stream.concat(chunkOf(decoded), Stream.fail(event.left))
    const { metadata, sequence, timestamp } = stored
    decoded.push({ event: event.right, sequence, timestamp, metadata: copyOf(metadata) })
  }
  return chunkOf(decoded)
}

const chunkOf = <A>(items: ReadonlyArray<A>): Stream.Stream<A> => Stream.fromChunk(Chunk.unsafeFromArray(items))

/** Pages share one object among events with the same metadata, and a caller may change what it got. */
const copyOf = (metadata: Event["metadata"]): Event["metadata"] =>
  Object.values(metadata).some((value) => typeof value === "object" && value !== null)
    ? structuredClone(metadata)
    : { ...metadata }
