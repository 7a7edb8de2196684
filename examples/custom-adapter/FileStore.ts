/**
 * An event store on plain files: a whole adapter, to read before you write one of your own.
 *
 * `StoreAdapter.makeEncoded` checks the input, makes JSON of it and runs the projections. This file finds conflicts,
 * makes transactions atomic, and hides what is not committed. `Journal.ts` is the file on the disk, and knows nothing
 * of events.
 *
 * All records are also held in memory and read from there, so the store is for some hundred megabytes, and for one
 * process at a time.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { type Event, type Snapshot, StoreAdapter, StoreError } from "effect-maestro"
import * as Journal from "./Journal.js"

/** Opens the store in the folder, which is created if it is missing. The folder has to be on a local disk. */
export const make = (
  folder: string
): Effect.Effect<StoreAdapter.StoreAdapterService, StoreError.StoreError, Scope.Scope> =>
  Effect.gen(function* () {
    const journal = yield* Journal.open<Entry>(folder)
    const committed = yield* replay(journal)

    // The transaction that a fiber is in. Each folder has a tag of its own, because a projection here may commit to a
    // second store, and a projection there to this one again. With one tag for all stores it would not find its own
    // transaction, and would wait for it for ever.
    const Transaction = Context.GenericTag<Records>(`FileStore/Transaction/${journal.folder}`)
    const visible = Effect.map(
      Effect.serviceOption(Transaction),
      Option.getOrElse(() => committed)
    )

    /**
     * Runs the body on records of its own. If it succeeds they are added to the transaction around it, or to the
     * journal as one line. Otherwise they are discarded, and no reader has seen them.
     */
    const transact = <A, E, R>(
      operation: string,
      body: (records: Records) => Effect.Effect<A, E, R>
    ): Effect.Effect<A, E | StoreError.StoreError, R> =>
      Effect.flatMap(visible, (outer) => {
        const transaction = Effect.suspend(() => {
          const records = new Records(outer)
          return body(records).pipe(
            Effect.tap(() => keep(operation, outer, records.close())),
            Effect.ensuring(Effect.sync(() => records.close()))
          )
        })
        // A sequence that the body finds free must still be free when its records are added, so bodies run one at a
        // time.
        return outer.turn.withPermits(1)(transaction)
      })

    const keep = (operation: string, outer: Records, entry: Entry): Effect.Effect<void, StoreError.StoreError> =>
      Effect.suspend(() => {
        // The commit is a duplicate, or the snapshot is too old.
        if (entry.events.length === 0 && entry.snapshots.length === 0) return Effect.void
        if (outer === committed) {
          // Records become visible when they are durable. An interruption between the two would leave memory behind the
          // disk.
          return Effect.uninterruptible(
            Effect.zipRight(
              journal.append(operation, entry),
              Effect.sync(() => committed.add(entry))
            )
          )
        }
        // A fiber that a projection left running commits here. It must fail, because its transaction has ended.
        if (outer.closed) return Effect.fail(transactionEnded(operation))
        return Effect.sync(() => outer.add(entry))
      })

    return StoreAdapter.makeEncoded({
      name: "FileStore",
      append: (events) => transact("commitEvents", (records) => append(records, events)),
      appendWith: (events, { project }) =>
        transact("commitAll", (records) =>
          Effect.flatMap(append(records, events), (outcome) =>
            outcome === "duplicate" ? Effect.void : Effect.provideService(project, Transaction, records)
          )
        ),
      putSnapshot: (snapshot) =>
        transact("commitSnapshot", (records) => Effect.sync(() => records.add({ events: [], snapshots: [snapshot] }))),
      readEvents: (range) => Effect.map(visible, (records) => records.read(range)),
      readSnapshot: ({ aggregateId, maxSequence, minSequence }) =>
        Effect.map(visible, (records) =>
          Option.fromNullable(records.snapshot(aggregateId)).pipe(
            Option.filter(({ sequence }) => sequence >= minSequence && sequence <= maxSequence)
          )
        )
    })
  })

/** The store in the folder, until the layer's scope closes. */
export const layer = (folder: string): Layer.Layer<StoreAdapter.StoreAdapter, StoreError.StoreError> =>
  Layer.scoped(StoreAdapter.StoreAdapter, make(folder))

// --- internal ---

/** The records that a transaction adds: one line of the journal. */
interface Entry {
  readonly events: ReadonlyArray<Event.StoredEvent>
  readonly snapshots: ReadonlyArray<Snapshot.StoredSnapshot>
}

/** The committed records, or the records that an open transaction adds to them. */
class Records {
  /** One transaction at a time directly inside of this one, because a projection may start several concurrently. */
  readonly turn = Effect.unsafeMakeSemaphore(1)
  closed = false
  private readonly events = new Map<string, Array<Event.StoredEvent>>()
  private readonly snapshots = new Map<string, Snapshot.StoredSnapshot>()

  constructor(private readonly outer?: Records) {}

  /** The highest sequence of an aggregate; 0 without events. */
  head(aggregateId: string): number {
    return this.events.get(aggregateId)?.at(-1)?.sequence ?? this.outer?.head(aggregateId) ?? 0
  }

  read(range: StoreAdapter.SequenceRange): ReadonlyArray<Event.StoredEvent> {
    const own = this.events.get(range.aggregateId) ?? []
    // Sequences have no gaps, so the index of an event follows from the first sequence.
    const first = own[0]?.sequence ?? 1
    const found = own.slice(Math.max(range.minSequence - first, 0), Math.max(range.maxSequence - first + 1, 0))
    return this.outer === undefined ? found : [...this.outer.read(range), ...found]
  }

  snapshot(aggregateId: string): Snapshot.StoredSnapshot | undefined {
    return this.snapshots.get(aggregateId) ?? this.outer?.snapshot(aggregateId)
  }

  add({ events, snapshots }: Entry): void {
    for (const event of events) {
      const stream = this.events.get(event.aggregateId)
      if (stream === undefined) this.events.set(event.aggregateId, [event])
      else stream.push(event)
    }
    for (const snapshot of snapshots) {
      const stored = this.snapshot(snapshot.aggregateId)
      if (stored === undefined || stored.sequence <= snapshot.sequence) {
        this.snapshots.set(snapshot.aggregateId, snapshot)
      }
    }
  }

  /** Ends the transaction and returns the records that it added. A later read in it finds the records around it. */
  close(): Entry {
    const entry = { events: [...this.events.values()].flat(), snapshots: [...this.snapshots.values()] }
    this.closed = true
    this.events.clear()
    this.snapshots.clear()
    return entry
  }
}

/**
 * Adds the events, or finds all of them stored. Events before a conflict stay in the records, which are discarded with
 * their transaction.
 */
const append = (
  records: Records,
  events: ReadonlyArray<Event.StoredEvent>
): Effect.Effect<"appended" | "duplicate", StoreError.RetryCommand> =>
  Effect.suspend(() => {
    const isStored = ({ aggregateId, sequence, timestamp }: Event.StoredEvent) =>
      records.read({ aggregateId, minSequence: sequence, maxSequence: sequence })[0]?.timestamp === timestamp
    if (events.every(isStored)) return Effect.succeed("duplicate")
    for (const event of events) {
      const { aggregateId, follows, sequence } = event
      const [before] = records.read({ aggregateId, minSequence: sequence - 1, maxSequence: sequence - 1 })
      const isAfterOther = follows !== undefined && before?.timestamp !== follows
      if (sequence !== records.head(aggregateId) + 1 || isAfterOther) {
        return Effect.fail(new StoreError.RetryCommand({ aggregateId, sequence }))
      }
      records.add({ events: [event], snapshots: [] })
    }
    return Effect.succeed("appended")
  })

/** The records of the journal. */
const replay = ({ entries, file }: Journal.Journal<Entry>): Effect.Effect<Records, StoreError.StoreError> =>
  Effect.gen(function* () {
    const records = new Records()
    for (const [index, { events, snapshots }] of entries.entries()) {
      // The line is whole, but one before it is missing.
      yield* Effect.mapError(append(records, events), () => Journal.broken(file, index + 1))
      records.add({ events: [], snapshots })
    }
    return records
  })

const transactionEnded = (operation: string): StoreError.StoreError =>
  new StoreError.StoreError({
    reason: "Unknown",
    operation,
    description: "the commit whose projection started this one has ended before it"
  })
