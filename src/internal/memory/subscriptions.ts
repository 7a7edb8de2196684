/**
 * The subscriptions of the store in memory: checkpoints, leases and parked events. A lease ends with its scope, and
 * stores nothing afterwards.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { order, type Position, type StreamPosition } from "../../EventFeed.js"
import {
  type Attempts,
  type EventFailure,
  type JoinOptions,
  type Key,
  type Lease,
  LeaseLost,
  type LeaseOptions,
  type ParkedEvent,
  type PartitionState,
  PartitionsChanged,
  type SubscriptionStoreService
} from "../../SubscriptionStore.js"
import { checkPosition } from "../store/readOptions.js"
import { feedEventAt, sliceOf } from "./feed.js"
import type { MemoryLog } from "./log.js"
import { makeMemoryNodes } from "./nodes.js"

export const makeMemorySubscriptions = (log: MemoryLog): SubscriptionStoreService => {
  const rows = new Map<string, ReadonlyArray<Row>>()
  const waiting = new Set<() => void>()
  const retrying = Effect.unsafeMakeSemaphore(1)
  const members = makeMemoryNodes((name) => rows.get(name)?.[0]?.partitions)

  const changed = () => {
    for (const wake of [...waiting]) wake()
  }
  const change: Effect.Effect<void> = Effect.async((resume) => {
    const wake = () => {
      waiting.delete(wake)
      resume(Effect.void)
    }
    waiting.add(wake)
    return Effect.sync(() => waiting.delete(wake))
  })

  /** The row of a partition. Those of a subscription that has never run are made together. */
  const rowOf = (key: Key, from: Position): Effect.Effect<Row, PartitionsChanged> =>
    Effect.suspend((): Effect.Effect<Row, PartitionsChanged> => {
      const { name, partition, partitions } = key
      if (!rows.has(name)) {
        rows.set(name, newRows(name, partitions, from, 0))
        // A new subscription may begin at a position that a fiber waits for.
        changed()
      }
      const known = rows.get(name) ?? []
      const row = known[partition]
      return known.length === partitions && row !== undefined
        ? Effect.succeed(row)
        : new PartitionsChanged({ subscription: name, stored: known.length, requested: partitions })
    })

  /** Replaces all rows together, where that is possible. Earlier leases have lower fencing tokens. */
  const repartition = ({ name, partitions }: JoinOptions, from: number): Effect.Effect<boolean> =>
    Effect.sync(() => {
      const known = rows.get(name) ?? []
      const [first] = known
      if (first === undefined || known.length !== from) return false
      const isReady = known.every(
        (row) =>
          row.position === first.position && row.holder === undefined && !row.stopped && row.attempted === undefined
      )
      if (!isReady || members.listed(name).some((node) => node.partitions !== partitions)) return false
      const token = Math.max(...known.map((row) => row.token)) + 1
      const replaced = newRows(name, partitions, first.position, token)
      for (const { parked } of known) {
        for (const event of parked) {
          const partition = sliceOf(event.aggregateId, partitions)
          replaced[partition]?.parked.push({ ...event, partition })
        }
      }
      for (const row of known) row.token = token
      rows.set(name, replaced)
      members.unassign(name)
      changed()
      return true
    })

  /** Waits for the lease, takes it, and returns its row and its fencing token. The row may be replaced meanwhile. */
  const take = (
    options: LeaseOptions
  ): Effect.Effect<{ readonly row: Row; readonly token: number }, PartitionsChanged> =>
    Effect.flatMap(rowOf(options.key, options.from), (row) => {
      if (row.holder !== undefined || row.stopped) return Effect.zipRight(change, take(options))
      row.holder = options.holder
      return Effect.map(Clock.currentTimeMillis, (now) => {
        row.heldSince = now
        return { row, token: ++row.token }
      })
    })

  const each = (name: string, update: (row: Row) => void) =>
    Effect.sync(() => {
      for (const row of rows.get(name) ?? []) update(row)
      changed()
    })

  const parkedOf = (name: string): ReadonlyArray<ParkedEvent> => (rows.get(name) ?? []).flatMap((row) => row.parked)

  const discard: SubscriptionStoreService["discardParked"] = (name, place) =>
    Effect.sync(() => {
      for (const row of rows.get(name) ?? []) {
        const index = row.parked.findIndex((event) => isAt(event, place))
        if (index >= 0) {
          row.parked.splice(index, 1)
          return true
        }
      }
      return false
    })

  return {
    lease: (options) =>
      Effect.gen(function* () {
        const { from, key } = options
        yield* checkPosition("SubscriptionStore.lease", from, ["from"])
        const { row, token } = yield* Effect.acquireRelease(Effect.interruptible(take(options)), ({ row }) =>
          Effect.sync(() => {
            row.holder = undefined
            row.token++
            changed()
          })
        )
        const lost = new LeaseLost({ subscription: key.name, partition: key.partition })
        const whileHeld = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E | LeaseLost, R> =>
          Effect.suspend((): Effect.Effect<A, E | LeaseLost, R> => (row.token === token ? effect : lost))
        const pass = (position: Position) =>
          whileHeld(
            Effect.sync(() => {
              row.position = position
              row.attempted = undefined
              changed()
            })
          )
        const lease: Lease = {
          position: row.position,
          attempts: Option.fromNullable(row.attempted),
          // A lease never expires, because its holder is in this process and its scope ends.
          isTakenOver: false,
          lost: Effect.never,
          checkpoint: whileHeld(Effect.sync(() => row.position)),
          advance: (position, effect) => whileHeld(Effect.zipRight(effect, pass(position))),
          advanceTo: pass,
          park: (failure) =>
            Effect.map(Clock.currentTimeMillis, (since) => {
              if (!row.parked.some((event) => isAt(event, failure))) {
                row.parked.push({ ...failure, partition: row.partition, since })
              }
            }),
          parkedAggregates: (aggregateIds) =>
            Effect.sync(
              () => new Set(row.parked.map(({ aggregateId }) => aggregateId).filter((id) => aggregateIds.includes(id)))
            ),
          recordAttempt: ({ attempts, position }) =>
            whileHeld(
              Effect.sync(() => {
                row.attempted = { position, attempts }
              })
            ),
          recordFailure: (failure) =>
            whileHeld(
              Effect.sync(() => {
                row.lastFailure = failure
                row.attempted = failure && { position: failure.position, attempts: failure.attempts }
              })
            ),
          stop: (failure) =>
            whileHeld(
              Effect.sync(() => {
                row.stopped = true
                row.lastFailure = failure
              })
            )
        }
        return lease
      }),
    join: (options) =>
      Effect.map(members.join(options), (membership) => ({
        ...membership,
        repartition: (from) => repartition(options, from)
      })),
    nodes: (name) => Effect.sync(() => members.listed(name)),
    partitions: (name) =>
      Effect.sync(() =>
        (rows.get(name) ?? []).map(
          (row): PartitionState => ({
            name: row.name,
            partition: row.partition,
            partitions: row.partitions,
            position: row.position,
            holder: Option.fromNullable(row.holder),
            heldSince: row.holder === undefined ? Option.none() : Option.some(row.heldSince),
            stopped: row.stopped,
            retrying: row.attempted !== undefined,
            lastFailure: Option.fromNullable(row.lastFailure),
            parked: row.parked.length
          })
        )
      ),
    awaitPosition: (name, position, aggregateId) => {
      const wait: Effect.Effect<void> = Effect.suspend(() => {
        const known = rows.get(name) ?? []
        const awaited = known.filter(
          ({ partition, partitions }) => aggregateId === undefined || sliceOf(aggregateId, partitions) === partition
        )
        const expected = aggregateId === undefined ? known[0]?.partitions : 1
        return awaited.length === expected && awaited.every((row) => order(row.position, position) >= 0)
          ? Effect.void
          : Effect.zipRight(change, wait)
      })
      return Effect.zipRight(checkPosition("SubscriptionStore.awaitPosition", position, ["position"]), wait)
    },
    resume: (name) =>
      each(name, (row) => {
        if (!row.stopped) return
        row.lastFailure = undefined
        row.attempted = undefined
        row.stopped = false
      }),
    parked: (name) => Effect.sync(() => [...parkedOf(name)].sort((a, b) => order(a.position, b.position))),
    retryParked: (name, place, effect) =>
      // One after the other, so that a second call finds the event removed.
      retrying.withPermits(1)(
        Effect.suspend(() => {
          const index = log.indexOf(place.aggregateId, place.sequence)
          const stored = index === undefined ? undefined : log.at(index)
          const known = parkedOf(name).some((event) => isAt(event, place))
          return !known || index === undefined || stored === undefined
            ? Effect.succeed(false)
            : Effect.zipRight(effect(feedEventAt(index, stored)), discard(name, place))
        })
      ),
    discardParked: discard
  }
}

// --- internal ---

interface Row extends Key {
  position: Position
  holder: string | undefined
  heldSince: number
  /** The fencing token: it rises when the lease is taken and when it ends. */
  token: number
  stopped: boolean
  lastFailure: EventFailure | undefined
  attempted: Attempts | undefined
  readonly parked: Array<ParkedEvent>
}

const newRows = (name: string, partitions: number, position: Position, token: number): ReadonlyArray<Row> =>
  Array.from({ length: partitions }, (_, partition) => ({
    name,
    partition,
    partitions,
    position,
    holder: undefined,
    heldSince: 0,
    token,
    stopped: false,
    lastFailure: undefined,
    attempted: undefined,
    parked: []
  }))

const isAt = (event: StreamPosition, { aggregateId, sequence }: StreamPosition): boolean =>
  event.aggregateId === aggregateId && event.sequence === sequence
