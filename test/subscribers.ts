/** Parts of the tests of subscriptions: events, stores with a ledger for handlers, and waits. */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { type Event, EventFeed, MemoryStore, SqlStore, StoreAdapter, Subscription, Timestamp } from "effect-maestro"
import { layerPg, layerPglite } from "./database.js"

export const newId = (text: string): string => `${text}-${crypto.randomUUID()}`

export const event = (
  aggregateId: string,
  sequence: number,
  options: { readonly type?: string } = {}
): Effect.Effect<Event.Event> =>
  Effect.map(
    Effect.flatMap(Timestamp.HybridClock, ({ now }) => now),
    (timestamp) => ({
      timestamp,
      aggregateId,
      sequence,
      type: options.type ?? "Happened",
      version: 1,
      body: { of: aggregateId, sequence },
      metadata: {}
    })
  )

/** Commits the events together, and returns them. */
export const commit = (...events: ReadonlyArray<Effect.Effect<Event.Event>>) =>
  Effect.flatMap(Effect.all(events), (all) =>
    Effect.as(
      Effect.flatMap(StoreAdapter.StoreAdapter, (store) => store.commitEvents(all)),
      all
    )
  )

/** Commits the events of an aggregate, from one sequence to another, all of one type. */
export const commitOf = (aggregateId: string, first: number, last: number, type: string) =>
  commit(...Arr.range(first, last).map((sequence) => event(aggregateId, sequence, { type })))

export const placeOf = ({ aggregateId, sequence }: EventFeed.StreamPosition): string => `${aggregateId}/${sequence}`

export const placesOf = (aggregateId: string, first: number, last: number): ReadonlyArray<string> =>
  Arr.range(first, last).map((sequence) => placeOf({ aggregateId, sequence }))

/** The events that handlers write, in the current transaction where the store has one. */
export class Ledger extends Context.Tag("test/Ledger")<
  Ledger,
  {
    readonly write: (by: string, event: EventFeed.FeedEvent) => Effect.Effect<void>
    /** The written events, in the order of writing. */
    readonly written: (by: string) => Effect.Effect<ReadonlyArray<string>>
  }
>() {
  static readonly layerMemory = Layer.sync(Ledger, () => {
    const lines: Array<readonly [by: string, place: string]> = []
    return {
      write: (by, event) => Effect.sync(() => void lines.push([by, placeOf(event)])),
      written: (by) => Effect.sync(() => lines.filter(([writer]) => writer === by).map(([, place]) => place))
    }
  })

  static readonly layerSql = Layer.effect(
    Ledger,
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* sql`create table if not exists ledger (line bigint generated always as identity, by text, place text)`
      return {
        write: (by, event) =>
          Effect.orDie(Effect.asVoid(sql`insert into ledger (by, place) values (${by}, ${placeOf(event)})`)),
        written: (by) =>
          Effect.orDie(
            Effect.map(sql<{ place: string }>`select place from ledger where by = ${by} order by line`, (rows) =>
              rows.map(({ place }) => place)
            )
          )
      }
    })
  )
}

export const written = (by: string) => Effect.flatMap(Ledger, (ledger) => ledger.written(by))
export const write = (by: string) => (event: EventFeed.FeedEvent) =>
  Effect.flatMap(Ledger, (ledger) => ledger.write(by, event))

/** The stores of this library, each with a ledger. */
const onMemory = Layer.merge(MemoryStore.layer, Ledger.layerMemory)
const onPglite = Layer.provideMerge(Layer.merge(SqlStore.layer, Ledger.layerSql), layerPglite)
const onPostgres = Layer.provideMerge(Layer.merge(SqlStore.layer, Ledger.layerSql), layerPg())

export type StoreServices = Layer.Layer.Success<typeof onMemory>

export const stores: ReadonlyArray<readonly [name: string, layer: Layer.Layer<StoreServices, unknown>]> = [
  ["MemoryStore", onMemory],
  ["SqlStore on PGlite", onPglite],
  ["SqlStore on Postgres", onPostgres]
]

/** Runs the subscription until the scope closes. */
export const start = <E, R>(subscription: Subscription.Subscription<E, R>) =>
  Layer.build(Layer.fresh(subscription.layer))

/** Waits until the subscription has reached the last event. */
export const caughtUp = (subscription: { readonly name: string }) =>
  Effect.flatMap(lastPosition, (last) => Subscription.waitFor(subscription.name, last, "30 seconds"))

/**
 * The head of the feed as soon as it has all events. An open transaction holds events back, also that of an `analyze` by the
 * server.
 */
export const lastPosition = Effect.suspend(() =>
  Effect.zipRight(eventually(EventFeed.heldBack(), Option.isNone), EventFeed.head)
)

/** Waits 10 milliseconds by the live clock. */
export const shortly: Effect.Effect<void> = Effect.async((resume) => {
  const timer = setTimeout(() => resume(Effect.void), 10)
  return Effect.sync(() => clearTimeout(timer))
})

/** Polls until the condition holds, and returns the last value. Dies with the last value after the timeout. */
export const eventually = <A, E, R>(
  look: Effect.Effect<A, E, R>,
  isSo: (seen: NoInfer<A>) => boolean,
  within = 30_000
): Effect.Effect<A, E, R> =>
  Effect.suspend(() => {
    const until = Date.now() + within
    const again: Effect.Effect<A, E, R> = Effect.flatMap(look, (seen) =>
      isSo(seen)
        ? Effect.succeed(seen)
        : Date.now() > until
          ? Effect.dieMessage(`the condition never held; last value: ${JSON.stringify(seen)}`)
          : Effect.zipRight(shortly, again)
    )
    return again
  })
