/** Loads, pages of the feed and appends on several logs, in turns, so that other work of the machine slows all of them. */
import { randomInt } from "node:crypto"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { EventFeed, StoreAdapter, Timestamp } from "effect-maestro"
import {
  type Contestant,
  compete,
  contestant,
  type Effort,
  type Measured,
  medianLatency,
  type Round
} from "../measure.js"
import { Account, accountLength, accountsOf, bodyOf, idOf, metadata, Order, orderLength, ordersOf } from "./events.js"
import type { Log } from "./log.js"

/** The figures of a log: medians of the turns. */
export type Speeds = Readonly<Record<string, number>>

/** Measures all logs, and returns the figures of each by its name. */
export const measureSpeeds = async (
  logs: ReadonlyArray<Log>,
  effort: Effort
): Promise<Readonly<Record<string, Speeds>>> => {
  const middles = new Map<string, EventFeed.Position>()
  for (const log of logs) middles.set(log.name, await middleOf(log))
  const found: Record<string, Record<string, number>> = Object.fromEntries(logs.map(({ name }) => [name, {}]))
  for (const kind of kinds) {
    const contestants = logs.map((log) => kind.contestant(log, middles.get(log.name) ?? EventFeed.beginning))
    const measured = await compete(contestants, kind.clients, effort, kind.of)
    for (const { name } of logs) {
      const of = found[name]
      if (of !== undefined) of[kind.name] = checked(name, kind.name, measured[name])
    }
  }
  return found
}

/** The names of the figures, with their units. Rates are a second, times are milliseconds. */
export const speedNames = {
  appendNew: "append an event to a new aggregate, 16 clients, per second",
  appendOld: "append an event to an account at random, 16 clients, per second",
  loadOrder: "load an aggregate of 10 events, ms",
  loadAccount: "load an aggregate of 100 events, ms",
  pageFirst: "a page of 1000 events from the beginning of the feed, ms",
  pageMiddle: "a page of 1000 events from its middle, ms",
  pageKind: "a page of 1000 events of one kind, from the middle, ms",
  head: "the head of the feed, ms"
} as const

/**
 * Makes the appends of a log: to new orders, and to accounts of the log at random. Each of so many clients has accounts of its own, so
 * that no two of them append to one account.
 */
export const appendsOn = ({ lengths, ours, shape }: Log) => {
  const body = bodyOf(shape.body, 10_000)
  const commit = (events: number, aggregateId: string, first: number, type: string) =>
    ours.run(
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const clock = yield* Timestamp.HybridClock
        const timestamps = yield* Effect.replicateEffect(clock.now, events)
        yield* store.commitEvents(
          timestamps.map((timestamp, index) => ({
            timestamp,
            aggregateId,
            sequence: first + index,
            type,
            body,
            metadata,
            correlationId: timestamps[0]
          }))
        )
      })
    )
  return {
    toNew: async (events = 1) => commit(events, Order.streamId(await ours.run(Order.newId)), 1, "ItemAdded"),
    toOld: async (client: number, of: number) => {
      const account = randomInt(Math.floor(accountsOf(shape.events) / of)) * of + client
      const length = lengths.get(account) ?? accountLength
      await commit(1, Account.streamId(idOf(account)), length + 1, "Deposited")
      lengths.set(account, length + 1)
    }
  }
}

/** Removes the events that were appended to a small log, so that it keeps its size. */
export const removeAppended = async ({ lengths, pool, shape }: Log): Promise<void> => {
  if (shape.events > keptSize) return
  lengths.clear()
  await pool.query("delete from maestro.event_log where position > $1", [shape.events])
  await pool.query("vacuum maestro.event_log")
}

export const clients = 16

// --- internal ---

/** The largest log that keeps its size. What is appended to a larger one is a small part of it. */
const keptSize = 100_000

interface Kind {
  readonly name: keyof typeof speedNames
  readonly clients: number
  readonly of: (round: Round) => number
  readonly contestant: (log: Log, middle: EventFeed.Position) => Contestant<string>
}

const pageLength = 1000

const rate = ({ rate }: Round): number => rate

/** Reads first, because appends change a log. */
const kinds: ReadonlyArray<Kind> = [
  {
    name: "loadOrder",
    clients: 1,
    of: medianLatency,
    contestant: (log) => contestant(log.name, () => () => loadOrder(log))
  },
  {
    name: "loadAccount",
    clients: 1,
    of: medianLatency,
    contestant: (log) => contestant(log.name, () => () => loadAccount(log))
  },
  page("pageFirst", () => ({})),
  page("pageMiddle", (after) => ({ after })),
  page("pageKind", (after) => ({ after, filter: { kinds: [Account.kind] } })),
  {
    name: "head",
    clients: 1,
    of: medianLatency,
    contestant: ({ name, ours }) => contestant(name, () => () => ours.run(EventFeed.head))
  },
  appending(
    "appendNew",
    ({ toNew }) =>
      () =>
        toNew()
  ),
  appending(
    "appendOld",
    ({ toOld }) =>
      (client) =>
        toOld(client, clients)
  )
]

function page(name: Kind["name"], options: (middle: EventFeed.Position) => EventFeed.ReadOptions): Kind {
  return {
    name,
    clients: 1,
    of: medianLatency,
    contestant: ({ name, ours }, middle) =>
      contestant(name, () => async () => {
        const { events } = await ours.run(EventFeed.read({ ...options(middle), limit: pageLength }))
        if (events.length !== pageLength) throw new Error(`a page of ${events.length} events`)
      })
  }
}

function appending(
  name: Kind["name"],
  work: (appends: ReturnType<typeof appendsOn>) => (client: number) => Promise<unknown>
): Kind {
  return {
    name,
    clients,
    of: rate,
    contestant: (log) => {
      const appends = appendsOn(log)
      return contestant(log.name, async () => {
        await removeAppended(log)
        return work(appends)
      })
    }
  }
}

/** Loads by new layers, so without cached states. */
const loadOrder = async ({ ours, shape }: Log): Promise<void> => {
  const id = idOf(randomInt(ordersOf(shape.events)))
  expectCount(orderLength, await ours.run(Effect.provide(Order.fetch(id), Order.layer)))
}

const loadAccount = async ({ ours, shape }: Log): Promise<void> => {
  const id = idOf(randomInt(accountsOf(shape.events)))
  expectCount(accountLength, await ours.run(Effect.provide(Account.fetch(id), Account.layer)))
}

const expectCount = (expected: number, count: number): void => {
  if (count !== expected) throw new Error(`an aggregate of ${count} events`)
}

/** The position of the event in the middle of the feed. */
const middleOf = async ({ ours, pool, shape }: Log): Promise<EventFeed.Position> => {
  const { rows } = await pool.query<EventFeed.StreamPosition>(
    `select aggregate_id as "aggregateId", sequence from maestro.event_log where position = $1`,
    [shape.events / 2]
  )
  const [event] = rows
  if (event === undefined) throw new Error("the log has no middle")
  const found = await ours.run(Effect.flatMap(EventFeed.EventFeed, (feed) => feed.positionOf(event)))
  return Option.getOrThrow(found)
}

/** A figure is of use only where nothing failed. */
const checked = (log: string, kind: string, measured: Measured | undefined): number => {
  if (measured === undefined || (measured.failures ?? 0) > 0 || !(measured.median > 0))
    throw new Error(`${kind} failed on ${log}`)
  return measured.median
}
