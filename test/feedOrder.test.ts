/**
 * The feed keeps the order of every aggregate and of every transaction, and skips nothing, while random transactions
 * overlap.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Stream from "effect/Stream"
import { EventFeed, Projection, Rebuild, Subscription } from "effect-maestro"
import { inject } from "vitest"
import { Account, Deposit } from "./account.js"
import { type Book, clean, foldBooks, outOfOrder, type Place, placeOf, textOf, verdictOf } from "./feedOrderModel.js"
import { onMemory, onPglite, onPostgres } from "./feedOrderNodes.js"
import {
  evaluating,
  faultsOf,
  follower,
  live,
  type Reading,
  randomReader,
  readsOwnWrite,
  recording,
  until
} from "./feedOrderReaders.js"
import { ByEffect, createBooks, type Node, Record, storm } from "./feedOrderWorkload.js"
import { eventually, lastPosition, start, written } from "./subscribers.js"

const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31))
const isLong = inject("runs") > 100

const stores = [
  ["two nodes on Postgres", onPostgres, isLong ? 12_000 : 150],
  ["SqlStore on PGlite", onPglite, isLong ? 12_000 : 40],
  ["MemoryStore", onMemory, isLong ? 12_000 : 200]
] as const

layer(Layer.empty, { excludeTestServices: true })("while random transactions overlap", (it) => {
  for (const [name, makeNodes, commands] of stores) {
    it.scoped(
      `on ${name} the feed, its readers, subscriptions and rebuilds see every stream in its order (seed ${seed})`,
      () =>
        Effect.gen(function* () {
          const nodes = yield* makeNodes
          const [first, last = first] = [nodes[0], nodes.at(-1)]
          if (first === undefined || last === undefined) return
          if (Option.isSome(first.onSql)) yield* Effect.provide(createBooks, first.onSql.value)

          const record = new Record()
          const readings: Array<Reading> = []
          const positions = new Map<string, EventFeed.Position>()
          const checks: Array<Fiber.RuntimeFiber<ReadonlyArray<string>, unknown>> = []

          for (const node of nodes) {
            const subscriptions = [...recording.map(start), ...evaluating.map(start)]
            yield* Effect.provide(Effect.all(subscriptions, { discard: true }), node.onAny)
          }
          const end = "account-end"
          const followReading = [
            yield* Effect.fork(Effect.provide(follower("follower", end), first.onAny)),
            yield* Effect.fork(Effect.provide(live("stream", end), last.onAny))
          ]
          const randomReading = yield* Effect.forEach(nodes, ({ onAny }, index) =>
            Effect.fork(
              Effect.provide(
                randomReader(`reader ${index}`, () => record.commands, commands, readings),
                onAny
              )
            )
          )
          const rebuilding = yield* Effect.fork(
            Effect.zipRight(
              until(() => record.commands > commands / 3),
              rebuild(last, "in the middle")
            )
          )

          const after = (node: Node, places: ReadonlyArray<Place>) =>
            Effect.gen(function* () {
              const place = places.at(-1)
              if (place === undefined) return
              const position = yield* Effect.flatMap(EventFeed.EventFeed, (feed) => feed.positionOf(place))
              if (Option.isSome(position)) positions.set(textOf(place), position.value)
              if ((yield* Random.next) < 0.02)
                checks.push(yield* Effect.fork(Effect.provide(readsOwnWrite(place), node.onAny)))
            }).pipe(Effect.provide(node.onAny), Effect.orDie)
          yield* storm(record, nodes, { workers: 10, commands, seed, after })

          yield* Fiber.join(rebuilding)
          yield* Fiber.joinAll(randomReading)
          yield* Effect.provide(allSalesHandled, first.onAny)
          yield* Effect.provide(Account.evaluate(end, new Deposit({ amount: 1 })), last.onAny)
          readings.push(...(yield* Fiber.joinAll(followReading)))

          // --- the final state ---

          const feed = [...(yield* Effect.provide(Stream.runCollect(EventFeed.streamStored()), last.onAny))]
          expect(record.unexpected).toEqual([])
          expect(verdictOf(feed, record.attempts, record.undone)).toEqual(clean)
          expect(readings.flatMap((reading) => faultsOf(feed, reading))).toEqual([])
          const shown = new Map(feed.map((event) => [textOf(event), event.position]))
          expect([...positions].filter(([place, position]) => shown.get(place) !== position)).toEqual([])
          expect((yield* Fiber.joinAll(checks)).flat()).toEqual([])

          const [once, again, shares] = yield* Effect.provide(
            Effect.forEach(recording, ({ name }) => eventually(written(name), ({ length }) => length >= feed.length)),
            first.onAny
          )
          const places = feed.map(textOf)
          expect(once).toEqual(places)
          expect([...new Set(again)]).toEqual(places)
          expect(shares?.toSorted()).toEqual(places.toSorted())
          expect(outOfOrder((shares ?? []).map(placeOf))).toBe(0)

          if (Option.isSome(first.onSql)) {
            const expected = foldBooks(feed)
            expect(yield* Effect.provide(books, first.onSql.value)).toEqual(expected)
            yield* rebuild(first, "at the end")
            expect(yield* Effect.provide(books, first.onSql.value)).toEqual(expected)
          }
        }).pipe(Effect.withRandom(Random.make(seed)), Logger.withMinimumLogLevel(LogLevel.Error)),
      5 * inject("timeout")
    )
  }
})

// --- internal ---

const rebuild = (node: Node, name: string): Effect.Effect<void, unknown> =>
  Option.match(node.onSql, {
    onNone: () => Effect.void,
    onSome: (services) =>
      Effect.provide(
        Effect.asVoid(
          Rebuild.run({ name, projections: [Projection.of("all", ByEffect)], tables: ["books"], batchSize: 300 })
        ),
        services
      )
  })

/** Waits until the subscriptions that evaluate commands have evaluated them all. */
const allSalesHandled = Effect.gen(function* () {
  yield* lastPosition
  const sales = yield* Stream.runLast(EventFeed.streamStored({ filter: { types: ["Sold"] } }))
  if (Option.isNone(sales)) return
  yield* Effect.forEach(evaluating, ({ name }) => Subscription.waitFor(name, sales.value, "30 seconds"))
})

const books = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  Effect.map(sql<Book & { account: string }>`select * from books`, (rows) =>
    Object.fromEntries(rows.map(({ account, ...book }) => [account, book]))
  )
)
