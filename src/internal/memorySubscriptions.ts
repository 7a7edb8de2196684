/**
 * What subscriptions keep, in memory: who has a lease has it until it is given back.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { order, type Position } from "../EventFeed.js"
import { StoreError } from "../StoreError.js"
import type { Failure, Key, Lease, SetAside, Standing, SubscriptionStoreService } from "../SubscriptionStore.js"
import { type MemoryLog, positionAt, sliceOf } from "./memoryFeed.js"
import { restoreEvent } from "./record.js"

export const makeMemorySubscriptions = (log: MemoryLog): SubscriptionStoreService => {
  const rows = new Map<string, Array<Row>>()
  const waiting = new Set<() => void>()
  const takingBack = Effect.unsafeMakeSemaphore(1)

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

  const rowOf = (key: Key, from: Position): Effect.Effect<Row, StoreError> =>
    Effect.suspend(() => {
      const known = rows.get(key.name) ?? []
      rows.set(key.name, known)
      const other = known.find(({ partitions }) => partitions !== key.partitions)
      if (other !== undefined) {
        return new StoreError({
          reason: "Misconfigured",
          operation: "Subscription",
          description: `subscription ${JSON.stringify(key.name)} has ${other.partitions} partitions in the store, and ${key.partitions} here: what is in which would change`
        })
      }
      const found = known.find(({ partition }) => partition === key.partition)
      if (found !== undefined) return Effect.succeed(found)
      const row: Row = {
        ...key,
        position: from,
        holder: undefined,
        stopped: false,
        lastFailure: undefined,
        setAside: []
      }
      known.push(row)
      return Effect.succeed(row)
    })

  const take = (row: Row, holder: string): Effect.Effect<void> =>
    Effect.suspend(() => {
      if (row.holder !== undefined || row.stopped) return Effect.zipRight(change, take(row, holder))
      row.holder = holder
      return Effect.void
    })

  const each = (name: string, update: (row: Row) => void) =>
    Effect.sync(() => {
      for (const row of rows.get(name) ?? []) update(row)
      changed()
    })

  const setAsideOf = (name: string): ReadonlyArray<SetAside> => (rows.get(name) ?? []).flatMap((row) => row.setAside)

  const discard: SubscriptionStoreService["discard"] = (name, { aggregateId, sequence }) =>
    Effect.sync(() => {
      for (const row of rows.get(name) ?? []) {
        const index = row.setAside.findIndex(
          (event) => event.aggregateId === aggregateId && event.sequence === sequence
        )
        if (index >= 0) {
          row.setAside.splice(index, 1)
          return true
        }
      }
      return false
    })

  return {
    lease: ({ from, holder, key }) =>
      Effect.gen(function* () {
        const row = yield* rowOf(key, from)
        yield* Effect.acquireRelease(Effect.interruptible(take(row, holder)), () =>
          Effect.sync(() => {
            row.holder = undefined
            changed()
          })
        )
        const lease: Lease = {
          position: row.position,
          lost: Effect.never,
          checkpoint: Effect.sync(() => row.position),
          advance: (position, effect) =>
            Effect.tap(effect, () => {
              row.position = position
              changed()
            }),
          pass: (position) =>
            Effect.sync(() => {
              row.position = position
              changed()
            }),
          setAside: (failure) =>
            Effect.map(Clock.currentTimeMillis, (since) => {
              row.setAside.push({ ...failure, partition: row.partition, since })
            }),
          blocked: (aggregateIds) =>
            Effect.sync(
              () =>
                new Set(row.setAside.map(({ aggregateId }) => aggregateId).filter((id) => aggregateIds.includes(id)))
            ),
          failing: (failure) =>
            Effect.sync(() => {
              row.lastFailure = failure
            }),
          stop: (failure) =>
            Effect.sync(() => {
              row.stopped = true
              row.lastFailure = failure
            })
        }
        return lease
      }),
    standing: (name) =>
      Effect.sync(() =>
        (rows.get(name) ?? [])
          .map(
            (row): Standing => ({
              name: row.name,
              partition: row.partition,
              partitions: row.partitions,
              position: row.position,
              holder: Option.fromNullable(row.holder),
              stopped: row.stopped,
              lastFailure: Option.fromNullable(row.lastFailure),
              setAside: row.setAside.length
            })
          )
          .sort((a, b) => a.partition - b.partition)
      ),
    reached: (name, position, aggregateId) => {
      const wait: Effect.Effect<void> = Effect.suspend(() => {
        const known = (rows.get(name) ?? []).filter(
          ({ partition, partitions }) => aggregateId === undefined || sliceOf(aggregateId, partitions) === partition
        )
        return known.length > 0 && known.every((row) => order(row.position, position) >= 0)
          ? Effect.void
          : Effect.zipRight(change, wait)
      })
      return wait
    },
    resume: (name) =>
      each(name, (row) => {
        if (row.stopped) row.lastFailure = undefined
        row.stopped = false
      }),
    setAside: (name) => Effect.sync(() => [...setAsideOf(name)].sort((a, b) => order(a.position, b.position))),
    takeBack: (name, place, effect) =>
      // One after the other: who comes second finds it done.
      takingBack.withPermits(1)(
        Effect.suspend(() => {
          const index = log.indexOf(place.aggregateId, place.sequence)
          const stored = index === undefined ? undefined : log.at(index)
          const known = setAsideOf(name).some(
            ({ aggregateId, sequence }) => aggregateId === place.aggregateId && sequence === place.sequence
          )
          return !known || index === undefined || stored === undefined
            ? Effect.succeed(false)
            : Effect.zipRight(effect({ ...restoreEvent(stored), position: positionAt(index) }), discard(name, place))
        })
      ),
    discard
  }
}

// --- internal ---

interface Row extends Key {
  position: Position
  holder: string | undefined
  stopped: boolean
  lastFailure: Failure | undefined
  readonly setAside: Array<SetAside>
}
