/**
 * Checks that the code can read what is stored: `Aggregate.check`. It decodes a few events of each stored type and
 * version, as every load does, and reads nothing else of the log.
 */
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Stream from "effect/Stream"
import { EventFeed, type FeedEvent } from "../../EventFeed.js"
import type { Source } from "../../Projection.js"
import {
  type ReadableType,
  type StoredType,
  type StoreError,
  type UnreadableType,
  type UnreadableTypeReason,
  UnreadableTypes
} from "../../StoreError.js"
import { makeEventCodec } from "../codec/eventCodec.js"
import { checkingIds, kindOf } from "../store/origin.js"
import { receiptKind } from "../store/receiptStreams.js"

/** What `check` needs of an aggregate. */
// biome-ignore lint/suspicious/noExplicitAny: aggregates of any events and ids
export type Checkable = Source<any, any>

/** The stored types and versions that `check` found, if the code can read all of them. */
export interface CheckReport {
  /** What the aggregates read, one for each aggregate that reads the type. */
  readonly readable: ReadonlyArray<ReadableType>
  /** What no given aggregate has. Empty for a check of one aggregate, which reads its own events only. */
  readonly others: ReadonlyArray<StoredType>
}

/**
 * Checks one aggregate, or all aggregates of a program.
 *
 * Build it above the store, but below `ProjectionTables.layer` and subscriptions, so that it succeeds before they write.
 * A forgotten `kind` shows in `others` only, so a program that knows all kinds of its store should fail at any other.
 */
export const check = (
  aggregates: Checkable | ReadonlyArray<Checkable>
): Effect.Effect<CheckReport, UnreadableTypes | StoreError, EventFeed> =>
  Effect.flatMap(EventFeed, (feed) => {
    const readers = Arr.ensure(aggregates).map(readerOf)
    const findings = makeFindings()
    return Stream.runForEach(feed.samples(filterOf(aggregates)), (sample) =>
      Effect.sync(() => addSample(findings, readers, sample))
    ).pipe(
      // The kinds are names that `Aggregate.make` has checked.
      Effect.catchTag("ValidationError", Effect.die),
      Effect.flatMap(() => reportOf(findings)),
      Effect.withSpan("Aggregate.check", { attributes: { aggregates: readers.map(({ name }) => name) } })
    )
  })

// --- internal ---

/** How an aggregate reads stored events. */
interface Reader {
  readonly name: string
  /** The kind of its streams; none if they are plain. */
  readonly kind: string | undefined
  /** Why it can't read a stored event, if it can't. */
  readonly problemOf: (stored: FeedEvent) => Problem | undefined
}

interface Problem {
  readonly reason: UnreadableTypeReason
  readonly description: string
}

/** By aggregate, kind, type and version. */
interface Findings {
  readonly readable: Map<string, ReadableType>
  readonly unreadable: Map<string, UnreadableType>
  readonly others: Map<string, StoredType>
}

const makeFindings = (): Findings => ({ readable: new Map(), unreadable: new Map(), others: new Map() })

const readerOf = (aggregate: Checkable): Reader => {
  const codec = makeEventCodec(aggregate.events)
  const decode = checkingIds(aggregate, { operation: "Aggregate.check" }, (stored) =>
    codec.decode("Aggregate.check", stored)
  )
  return {
    name: aggregate.name,
    kind: kindOf(aggregate),
    problemOf: (stored) => {
      const unknown = codec.problemOf(stored.type, stored.version)
      if (unknown !== undefined) return { reason: unknown._tag, description: unknown.why }
      const decoded = decode(stored)
      return Either.isRight(decoded) ? undefined : { reason: "Undecodable", description: decoded.left.description }
    }
  }
}

/** One aggregate with a kind reads its own kind. The events of an aggregate with plain streams may have any. */
const filterOf = (aggregates: Checkable | ReadonlyArray<Checkable>) => {
  const kind = "name" in aggregates ? kindOf(aggregates) : undefined
  return kind === undefined ? undefined : { kinds: [kind] }
}

/**
 * The aggregates that an event belongs to: those of its kind. An event of another kind belongs to the aggregates with
 * plain streams that know its type, because nothing else says whose it is.
 */
const ownersOf = (readers: ReadonlyArray<Reader>, sample: FeedEvent): ReadonlyArray<Reader> => {
  const ofKind = readers.filter(({ kind }) => kind === sample.kind)
  return ofKind.length > 0
    ? ofKind
    : readers.filter(({ kind, problemOf }) => kind === undefined && problemOf(sample)?.reason !== "UnknownType")
}

/** Adds what the aggregates make of a sample. A type has several, and one that can't be read decides. */
const addSample = ({ others, readable, unreadable }: Findings, readers: ReadonlyArray<Reader>, sample: FeedEvent) => {
  if (sample.kind === receiptKind) return
  const { aggregateId, kind, sequence, type, version } = sample
  const owners = ownersOf(readers, sample)
  if (owners.length === 0) others.set(JSON.stringify([kind, type, version]), { kind, type, version })
  for (const { name, problemOf } of owners) {
    const key = JSON.stringify([name, kind, type, version])
    if (unreadable.has(key)) continue
    const problem = problemOf(sample)
    if (problem === undefined) {
      readable.set(key, { aggregate: name, kind, type, version })
    } else {
      readable.delete(key)
      unreadable.set(key, { aggregate: name, kind, type, version, ...problem, aggregateId, sequence })
    }
  }
}

const reportOf = ({ others, readable, unreadable }: Findings): Effect.Effect<CheckReport, UnreadableTypes> => {
  const report = { readable: sorted(readable), others: sorted(others) }
  const problems = sorted(unreadable)
  return Arr.isNonEmptyReadonlyArray(problems)
    ? Effect.fail(new UnreadableTypes({ ...report, unreadable: problems }))
    : Effect.succeed(report)
}

const sorted = <A extends StoredType>(found: ReadonlyMap<string, A>): ReadonlyArray<A> =>
  [...found.values()].sort(
    (one, other) => compare(one.kind, other.kind) || compare(one.type, other.type) || one.version - other.version
  )

const compare = (one: string, other: string): number => (one < other ? -1 : one > other ? 1 : 0)
