/**
 * An event store on plain files: a whole adapter, to read before you write one of your own.
 *
 * `StoreAdapter.makeEncoded` checks the input, makes JSON of it and runs the projections. What is left is here: what fits
 * where, who sees what, and all or nothing. `Journal.ts` is the file, and knows nothing of events.
 *
 * Everything is kept in memory as well, and is read from there, so it is for some hundred megabytes and one process at a time.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { type Event, type Snapshot, StoreAdapter, StoreError } from "effect-maestro"
import * as Journal from "./Journal.js"

/** Opens the store in the folder, which is created where there is none. It has to be on a disk of this machine. */
export const make = (
  folder: string
): Effect.Effect<StoreAdapter.StoreAdapterService, StoreError.StoreError, Scope.Scope> =>
  Effect.gen(function* () {
    const journal = yield* Journal.open<Entry>(folder)
    const committed = yield* replay(journal)

    // The transaction that a fiber is in. A tag for each folder: a projection here may commit to a second store, and a
    // projection there to this one again. With one tag for all it would not know its own transaction any more, and wait
    // for its end for ever.
    const Transaction = Context.GenericTag<Records>(`FileStore/Transaction/${journal.folder}`)
    const visible = Effect.map(
      Effect.serviceOption(Transaction),
      Option.getOrElse(() => committed)
    )

    /**
     * Runs the body on records of its own, and keeps them once it has succeeded: in the transaction around it, or else as
     * one line of the journal. However else it ends they are dropped, and nobody has seen them.
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
        // What a body finds free must still be free when its records are kept. To wait for one's turn can be interrupted.
        return outer.turn.withPermits(1)(transaction)
      })

    const keep = (operation: string, outer: Records, entry: Entry): Effect.Effect<void, StoreError.StoreError> =>
      Effect.suspend(() => {
        // A commit that was stored already, or a snapshot that is too old.
        if (entry.events.length === 0 && entry.snapshots.length === 0) return Effect.void
        if (outer === committed) {
          // Seen only when it is durable. Interrupted between the two, memory would not have what the disk has.
          return Effect.uninterruptible(
            Effect.zipRight(
              journal.append(operation, entry),
              Effect.sync(() => committed.add(entry))
            )
          )
        }
        // By a fiber that a projection left running. Success would be a lie: nobody keeps what that transaction gets now.
        if (outer.closed) return Effect.fail(transactionEnded(operation))
        return Effect.sync(() => outer.add(entry))
      })

    return StoreAdapter.makeEncoded({
      name: "FileStore",
      append: (events) => transact("commitEvents", (records) => append(records, events)),
      appendWith: (events, { project }) =>
        transact("commitAll", (records) =>
          Effect.flatMap(append(records, events), (outcome) =>
            outcome === "stored" ? Effect.void : Effect.provideService(project, Transaction, records)
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

/** What a transaction adds: a line of the journal. */
interface Entry {
  readonly events: ReadonlyArray<Event.StoredEvent>
  readonly snapshots: ReadonlyArray<Snapshot.StoredSnapshot>
}

/** The committed records, or what an open transaction adds to those around it. */
class Records {
  /** One transaction at a time directly inside of this one; a projection may start several at once. */
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
    // Sequences have no gaps, so an event's place follows from that of the first.
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

  /** Ends the transaction and hands over what it added. Who still reads in it sees the records around it. */
  close(): Entry {
    const entry = { events: [...this.events.values()].flat(), snapshots: [...this.snapshots.values()] }
    this.closed = true
    this.events.clear()
    this.snapshots.clear()
    return entry
  }
}

/**
 * Adds the events, or finds them there already. Those before one that does not fit stay in the records, which are a
 * transaction's own and dropped with it.
 */
const append = (
  records: Records,
  events: ReadonlyArray<Event.StoredEvent>
): Effect.Effect<"written" | "stored", StoreError.RetryCommand> =>
  Effect.suspend(() => {
    const isStored = ({ aggregateId, sequence, timestamp }: Event.StoredEvent) =>
      records.read({ aggregateId, minSequence: sequence, maxSequence: sequence })[0]?.timestamp === timestamp
    if (events.every(isStored)) return Effect.succeed("stored")
    for (const event of events) {
      const { aggregateId, sequence } = event
      if (sequence !== records.head(aggregateId) + 1) {
        return Effect.fail(new StoreError.RetryCommand({ aggregateId, sequence }))
      }
      records.add({ events: [event], snapshots: [] })
    }
    return Effect.succeed("written")
  })

/** The records that the journal tells. */
const replay = ({ entries, file }: Journal.Journal<Entry>): Effect.Effect<Records, StoreError.StoreError> =>
  Effect.gen(function* () {
    const records = new Records()
    for (const [index, { events, snapshots }] of entries.entries()) {
      // The line is as it was written, but one before it is missing.
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
