/** Events that a subscription can't handle, on each store of this library. */
import * as SqlClient from "@effect/sql/SqlClient"
import { describe, expect, it, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/TestClock"
import * as TestContext from "effect/TestContext"
import { type EventFeed, Projection, Subscription } from "effect-maestro"
import {
  caughtUp,
  commitOf,
  eventually,
  newId,
  placeOf,
  placesOf,
  type StoreServices,
  shortly,
  start,
  stores,
  write,
  written
} from "./subscribers.js"

for (const [name, store] of stores) suite(name, store, name !== "MemoryStore")

function suite(name: string, store: Layer.Layer<StoreServices, unknown>, transactional: boolean) {
  layer(store, { excludeTestServices: true, timeout: 60_000 })(name, (it) => {
    it.scoped("retries an event by its schedule, and goes on when it succeeds", () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("retried")]
        let tries = 0
        const retried = Subscription.make(by, {
          filter: { types: [a] },
          retry: Schedule.spaced("1 minute").pipe(Schedule.intersect(Schedule.recurs(3))),
          handle: (event) => (event.sequence === 1 && ++tries <= 3 ? Effect.fail(`no ${tries}`) : write(by)(event))
        })
        yield* commitOf(a, 1, 1, a)
        yield* start(retried)
        for (const attempt of Arr.range(1, 3)) {
          const { partitions } = yield* eventually(retried.status, ({ partitions: [only] }) =>
            Option.exists(only?.lastFailure ?? Option.none(), ({ attempts }) => attempts === attempt)
          )
          expect(partitions[0]?.lastFailure).toMatchObject({
            value: { aggregateId: a, sequence: 1, type: a, error: expect.stringContaining(`no ${attempt}`) }
          })
          expect(partitions[0]?.stopped).toBe(false)
          yield* passes(59)
          expect(tries).toBe(attempt)
          yield* passes(1)
        }
        yield* eventually(written(by), (all) => all.length === 1)
        expect(tries).toBe(4)
        yield* eventually(retried.status, ({ partitions: [only] }) => Option.isNone(only?.lastFailure ?? Option.none()))
      }).pipe(Effect.provide(TestContext.TestContext))
    )

    it.scoped("stops before the event when its retries are used up, and handles it first after `resume`", () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("stops")]
        let [broken, tries] = [true, 0]
        const stops = Subscription.make(by, {
          filter: { types: [a] },
          retry: Schedule.recurs(2),
          handle: (event) =>
            event.sequence === 3 && broken ? Effect.suspend(() => Effect.fail(`try ${++tries}`)) : write(by)(event)
        })
        yield* commitOf(a, 1, 2, a)
        yield* Effect.forkScoped(Effect.ignore(stops.run)).pipe(Effect.zipRight(caughtUp(stops)), Effect.scoped)
        yield* commitOf(a, 3, 5, a)
        expect(yield* Effect.flip(stops.run)).toMatchObject({
          _tag: "SubscriptionStopped",
          subscription: by,
          partition: 0,
          aggregateId: a,
          sequence: 3,
          type: a,
          attempts: 3
        })
        expect(yield* stops.status).toMatchObject({
          state: "stopped",
          eventsBehind: 3,
          partitions: [{ holder: Option.none(), lastFailure: { value: { sequence: 3, attempts: 3 } } }]
        })
        const attempts = tries
        // No process gets the lease before `resume`.
        const waiting = yield* Effect.forkScoped(stops.run)
        yield* Effect.repeatN(shortly, 5)
        expect(tries).toBe(attempts)
        expect(yield* stops.status).toMatchObject({ state: "stopped" })
        broken = false
        yield* Subscription.resume(by)
        yield* caughtUp(stops)
        expect((yield* written(by)).slice(-3)).toEqual(placesOf(a, 3, 5))
        expect(yield* stops.status).toMatchObject({ state: "running", partitions: [{ lastFailure: Option.none() }] })
        yield* Fiber.interrupt(waiting)
      })
    )

    it.scoped("a stopped layer logs an error, waits, and goes on after `resume`", () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("waits")]
        let broken = true
        const waits = Subscription.make(by, {
          filter: { types: [a] },
          retry: Schedule.stop,
          handle: (event) => (broken ? Effect.fail("no") : write(by)(event))
        })
        const said: Array<string> = []
        const hearing = Logger.replace(
          Logger.defaultLogger,
          Logger.make(({ message }) => void said.push(String(message)))
        )
        yield* commitOf(a, 1, 2, a)
        yield* Effect.provide(start(waits), hearing)
        yield* eventually(waits.status, ({ state }) => state === "stopped")
        yield* eventually(
          Effect.sync(() => said.join()),
          (text) => text.includes(`"${by}" stopped at event 1`)
        )
        broken = false
        yield* Subscription.resume(by)
        yield* caughtUp(waits)
        expect(yield* written(by)).toEqual(placesOf(a, 1, 2))
      })
    )

    it.scoped("does not retry an event that its schemas can't read", () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("unreadable")]
        let tries = 0
        const Odd = Schema.TaggedStruct("OddlyNumbered", { sequence: Schema.Literal(1, 3) })
        const reading = Subscription.fromProjections(
          by,
          [
            Projection.make({
              name: by,
              of: "all",
              events: Odd,
              project: { OddlyNumbered: ({ sequence }) => Effect.sync(() => void seen.push(sequence)) }
            })
          ],
          {
            onFailure: "park",
            retry: Schedule.forever.pipe(Schedule.tapOutput(() => Effect.sync(() => void tries++)))
          }
        )
        const seen: Array<number> = []
        yield* commitOf(a, 1, 3, "OddlyNumbered")
        yield* start(reading)
        yield* caughtUp(reading)
        expect(yield* Subscription.parked(by)).toMatchObject([{ sequence: 2, attempts: 1 }])
        expect(tries).toBe(0)
        expect(seen.at(-1)).toBe(3)
      })
    )

    it.scoped("parks an event that can't be handled and goes on; the event can be retried, or discarded", () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("aside")]
        let broken = true
        const aside = Subscription.make(by, {
          filter: { types: [a] },
          retry: Schedule.recurs(1),
          onFailure: "park",
          batchSize: 3,
          handle: (event) => (broken && event.sequence % 2 === 0 ? Effect.fail("even") : write(by)(event))
        })
        yield* commitOf(a, 1, 7, a)
        yield* start(aside)
        yield* caughtUp(aside)
        expect(new Set(yield* written(by))).toEqual(new Set([1, 3, 5, 7].map((sequence) => `${a}/${sequence}`)))
        const listed = yield* Subscription.parked(by)
        expect(listed.map(placeOf)).toEqual([2, 4, 6].map((sequence) => `${a}/${sequence}`))
        expect(listed[0]).toMatchObject({ type: a, error: expect.stringContaining("even"), attempts: 2, partition: 0 })
        expect(Math.abs(Date.now() - (listed[0]?.since ?? 0))).toBeLessThan(60_000)
        expect(yield* aside.status).toMatchObject({ state: "running", eventsBehind: 0, parked: 3 })
        // After a failed retry the event is still parked.
        expect(yield* Effect.flip(aside.retryParked({ aggregateId: a, sequence: 2 }))).toBe("even")
        expect(yield* Subscription.parked(by)).toHaveLength(3)
        broken = false
        expect(yield* aside.retryParked({ aggregateId: a, sequence: 2 })).toBe(true)
        expect(yield* aside.retryParked({ aggregateId: a, sequence: 2 })).toBe(false)
        expect(yield* Subscription.discardParked(by, { aggregateId: a, sequence: 4 })).toBe(true)
        expect(yield* Subscription.discardParked(by, { aggregateId: a, sequence: 4 })).toBe(false)
        expect(yield* aside.retryAllParked).toBe(1)
        expect(yield* Subscription.parked(by)).toEqual([])
        expect((yield* written(by)).slice(-2)).toEqual([`${a}/2`, `${a}/6`])
      })
    )

    it.scoped("concurrent retries of one event handle it once", () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("at-once")]
        let broken = true
        const aside = Subscription.make(by, {
          filter: { types: [a] },
          retry: Schedule.stop,
          onFailure: "park",
          handle: (event) => (broken ? Effect.fail("no") : Effect.zipRight(shortly, write(by)(event)))
        })
        yield* commitOf(a, 1, 1, a)
        yield* start(aside)
        yield* caughtUp(aside)
        broken = false
        const answers = yield* Effect.all(
          Arr.makeBy(4, () => aside.retryParked({ aggregateId: a, sequence: 1 })),
          { concurrency: "unbounded" }
        )
        expect(answers.filter((done) => done)).toHaveLength(1)
        expect(yield* written(by)).toEqual([`${a}/1`])
      })
    )

    for (const delivery of ["exactly-once", "at-least-once"] as const) {
      it.scoped(
        `${delivery}: later events of an aggregate join the one parked, in their order, while others go on`,
        () =>
          Effect.gen(function* () {
            const [a, b, kind, by] = [newId("a"), newId("b"), newId("kind"), newId("joins")]
            let broken = true
            const joins = Subscription.make(by, {
              filter: { types: [kind] },
              delivery,
              retry: Schedule.stop,
              onFailure: "parkAggregate",
              handle: (event) =>
                broken && event.aggregateId === a && event.sequence === 2 ? Effect.fail("two") : write(by)(event)
            })
            yield* start(joins)
            yield* commitOf(a, 1, 1, kind)
            yield* commitOf(a, 2, 3, kind)
            yield* commitOf(b, 1, 2, kind)
            yield* commitOf(a, 4, 4, kind)
            yield* caughtUp(joins)
            const of = (one: string) =>
              Effect.map(
                written(by),
                Arr.filter((place) => place.startsWith(one))
              )
            expect(Arr.dedupe(yield* of(b))).toEqual(placesOf(b, 1, 2))
            expect(Arr.dedupe(yield* of(a))).toEqual(placesOf(a, 1, 1))
            expect((yield* Subscription.parked(by)).map(placeOf)).toEqual(placesOf(a, 2, 4))
            // It fails again, so no event after it is handled.
            expect(yield* Effect.flip(joins.retryAllParked)).toBe("two")
            broken = false
            expect(yield* joins.retryAllParked).toBe(3)
            yield* commitOf(a, 5, 6, kind)
            yield* caughtUp(joins)
            expect(Arr.dedupe(yield* of(a))).toEqual(placesOf(a, 1, 6))
            expect(yield* Subscription.parked(by)).toEqual([])
          })
      )
    }

    it.scoped("waitFor succeeds where the event was parked, because the subscription went on behind it", () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("parks")]
        yield* commitOf(a, 1, 1, a)
        yield* start(
          Subscription.make(by, {
            filter: { types: [a] },
            retry: Schedule.stop,
            onFailure: "park",
            handle: () => Effect.fail("no")
          })
        )
        yield* Subscription.waitFor(by, { aggregateId: a, sequence: 1 }, "30 seconds")
        expect((yield* Subscription.parked(by)).map(({ sequence }) => sequence)).toEqual([1])
      })
    )

    it.scoped("parked events are retried while it runs, and none is lost, doubled or out of order", () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("race")]
        let broken = true
        const race = Subscription.make(by, {
          filter: { types: [a] },
          retry: Schedule.stop,
          onFailure: "parkAggregate",
          batchSize: 4,
          handle: (event) => (broken ? Effect.fail("no") : write(by)(event))
        })
        yield* start(race)
        yield* commitOf(a, 1, 2, a)
        yield* caughtUp(race)
        broken = false
        const retrying = yield* Effect.fork(Effect.forever(Effect.zipRight(race.retryAllParked, shortly)))
        for (const sequence of Arr.range(3, 40)) yield* commitOf(a, sequence, sequence, a)
        yield* Subscription.waitFor(by, { aggregateId: a, sequence: 40 }, "30 seconds")
        yield* eventually(Subscription.parked(by), (left) => left.length === 0)
        yield* Fiber.interrupt(retrying)
        expect(yield* written(by)).toEqual(placesOf(a, 1, 40))
      })
    )

    it.scoped.runIf(transactional)(
      "exactly once: what a handler wrote before it failed is not there, nor what the batch wrote before that",
      () =>
        Effect.gen(function* () {
          const [a, by] = [newId("a"), newId("undone")]
          const undone = Subscription.make(by, {
            filter: { types: [a] },
            retry: Schedule.recurs(2),
            onFailure: "park",
            handle: (event) =>
              Effect.zipRight(write(by)(event), event.sequence === 3 ? Effect.fail("three") : Effect.void)
          })
          yield* commitOf(a, 1, 5, a)
          yield* start(undone)
          yield* caughtUp(undone)
          expect(yield* written(by)).toEqual([1, 2, 4, 5].map((sequence) => `${a}/${sequence}`))
          expect(yield* Effect.flip(undone.retryParked({ aggregateId: a, sequence: 3 }))).toBe("three")
          expect(yield* written(by)).toHaveLength(4)
        })
    )

    it.scoped.runIf(transactional)(
      "exactly once: a handler that passes over the failure of its own statement has not handled the event",
      () =>
        Effect.gen(function* () {
          const [a, by] = [newId("a"), newId("swallows")]
          const sql = yield* client
          const swallows = Subscription.make(by, {
            filter: { types: [a] },
            retry: Schedule.recurs(1),
            onFailure: "park",
            handle: (event) =>
              event.sequence === 2
                ? Effect.ignore(Effect.zipRight(write(by)(event), sql`select 1 / 0`))
                : event.sequence === 3
                  ? // This handler rolls its failed statement back, and succeeds.
                    Effect.zipRight(Effect.ignore(sql.withTransaction(sql`select 1 / 0`)), write(by)(event))
                  : write(by)(event)
          })
          yield* commitOf(a, 1, 4, a)
          yield* start(swallows)
          yield* caughtUp(swallows)
          expect(yield* written(by)).toEqual([1, 3, 4].map((sequence) => `${a}/${sequence}`))
          expect(yield* Subscription.parked(by)).toMatchObject([{ sequence: 2, attempts: 2 }])
        })
    )

    it.scoped.runIf(transactional)("exactly once: a handler may take longer than the lease", () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("long")]
        const sql = yield* client
        let begun = 0
        const long = Subscription.make(by, {
          filter: { types: [a] },
          lease: "150 millis",
          handleBatch: ([first]) =>
            Effect.suspend(() => {
              begun++
              // A busy transaction, because the database would end an idle one.
              return Effect.zipRight(Effect.repeatN(sql`select pg_sleep(0.03)`, 15), write(by)(first))
            })
        })
        yield* commitOf(a, 1, 1, a)
        yield* start(long)
        yield* caughtUp(long)
        expect(begun).toBe(1)
        expect(yield* written(by)).toEqual([`${a}/1`])
      })
    )

    it.scoped.runIf(name === "SqlStore on PGlite")(
      "exactly once: a handler that idles beyond the lease handles its event, and the database goes on",
      () =>
        Effect.gen(function* () {
          const [a, by] = [newId("a"), newId("idle")]
          const sql = yield* client
          let tries = 0
          const idles = Subscription.make(by, {
            filter: { types: [a] },
            lease: "50 millis",
            handle: (event) =>
              Effect.suspend(() => {
                tries++
                return Effect.zipRight(Effect.repeatN(shortly, 20), write(by)(event))
              })
          })
          yield* commitOf(a, 1, 2, a)
          yield* start(idles)
          yield* caughtUp(idles)
          expect(tries).toBe(2)
          expect(yield* written(by)).toEqual(placesOf(a, 1, 2))
          expect(yield* sql`show idle_in_transaction_session_timeout`).toMatchObject([
            { idle_in_transaction_session_timeout: "0" }
          ])
        })
    )

    it.scoped.runIf(transactional)(
      "exactly once: a retry that waits for a lock of the one at work, and the other way round, both end",
      () =>
        Effect.gen(function* () {
          const [a, kind, by] = [newId("a"), newId("kind"), newId("deadlock")]
          const sql = yield* client
          yield* sql`create table if not exists totals (id text primary key, n int not null)`
          yield* sql`insert into totals values (${by}, 0)`
          const [holding, go] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
          let broken = true
          const locks = Subscription.make(by, {
            filter: { types: [kind] },
            retry: Schedule.stop,
            onFailure: "park",
            handle: (event) =>
              Effect.gen(function* () {
                if (broken) return yield* Effect.fail("no")
                yield* sql`update totals set n = n + 1 where id = ${by}`
                if (event.aggregateId === a) return
                yield* Deferred.succeed(holding, undefined)
                yield* Deferred.await(go)
              })
          })
          yield* commitOf(a, 1, 1, kind)
          yield* start(locks)
          yield* caughtUp(locks)
          broken = false
          yield* commitOf(newId("b"), 1, 1, kind)
          yield* Deferred.await(holding)
          const retrying = yield* Effect.fork(locks.retryParked({ aggregateId: a, sequence: 1 }))
          yield* Effect.repeatN(shortly, 10)
          yield* Deferred.succeed(go, undefined)
          expect(yield* Fiber.join(retrying)).toBe(true)
          yield* caughtUp(locks)
          expect(yield* sql`select n from totals where id = ${by}`).toEqual([{ n: 2 }])
        })
    )
    describe("each way in which a handler can fail", () => {
      const ways: ReadonlyArray<
        readonly [way: string, handle: (event: EventFeed.FeedEvent) => Effect.Effect<void, unknown>, error: RegExp]
      > = [
        ["it fails with an object", () => Effect.fail({ reason: "object" }), /object/],
        ["it fails with what JSON can't tell", () => Effect.fail({ many: 10n }), /./],
        ["it dies", () => Effect.die(new Error("dead")), /dead/],
        ["it is interrupted", () => Effect.interrupt, /interrupt/i],
        [
          "it throws before there is an effect",
          () => {
            throw new Error("thrown")
          },
          /thrown/
        ],
        ["its text has NUL in it", () => Effect.fail("a\0b"), /ab/],
        ["its text has halves of surrogate pairs in it", () => Effect.fail("x\uD800y\uDC00z"), /x\uFFFDy\uFFFDz/],
        ["its text is a megabyte", () => Effect.fail("m".repeat(1_000_000)), /^.{0,20}m{3000}/],
        ["its text is cut in a surrogate pair", () => Effect.fail("😀".repeat(5000)), /😀/]
      ]
      for (const delivery of ["exactly-once", "at-least-once"] as const) {
        for (const batch of [true, false]) {
          it.scoped(
            `${delivery}, ${batch ? "a batch" : "one by one"}: the event is parked with the failure, and the next one is handled`,
            () =>
              Effect.gen(function* () {
                const [a, by] = [newId("a"), newId("ways")]
                const failing = (event: EventFeed.FeedEvent): Effect.Effect<void, unknown> =>
                  ways[event.sequence - 1]?.[1](event) ?? Effect.void
                const told = Subscription.make(by, {
                  filter: { types: [a] },
                  retry: Schedule.stop,
                  onFailure: "park",
                  delivery,
                  ...(batch
                    ? {
                        handleBatch: (events: ReadonlyArray<EventFeed.FeedEvent>) => {
                          const [first] = events
                          return first === undefined ? Effect.void : failing(first)
                        },
                        batchSize: 1
                      }
                    : { handle: failing })
                })
                yield* commitOf(a, 1, ways.length + 1, a)
                yield* start(told)
                yield* caughtUp(told)
                const listed = yield* Subscription.parked(by)
                expect(listed.map(({ sequence }) => sequence)).toEqual(Arr.range(1, ways.length))
                for (const [index, [way, , error]] of ways.entries()) {
                  expect(listed[index]?.error, way).toMatch(error)
                  expect(listed[index]?.error.length, way).toBeLessThan(5000)
                }
              })
          )
        }
      }
    })
  })
}

it("the message of SubscriptionStopped names the event, the number of attempts and the failure", () => {
  const stoppedAfter = (attempts: number) =>
    new Subscription.SubscriptionStopped({
      subscription: "s",
      partition: 0,
      aggregateId: "a",
      sequence: 3,
      type: "T",
      error: "because",
      attempts
    })
  const where = 'subscription "s" stopped at event 3 of aggregate "a", of type "T"'
  expect(stoppedAfter(1).message).toBe(`${where}, after 1 attempt: because`)
  expect(stoppedAfter(2).message).toBe(`${where}, after 2 attempts: because`)
})

/** The client of the store, if it has one. */
const client = Effect.map(Effect.serviceOption(SqlClient.SqlClient), Option.getOrThrow)

/** Adjusts the program's clock once a retry sleeps. */
const passes = (seconds: number) =>
  Effect.gen(function* () {
    const left = Effect.map(Effect.all([TestClock.sleeps(), TestClock.currentTimeMillis]), ([sleeps, now]) =>
      Arr.fromIterable(sleeps).map((at) => at - now)
    )
    // The lag is measured every fifteen seconds, and sleeps, too.
    yield* eventually(left, (all) => seconds === 1 || all.some((millis) => millis > 15_000))
    yield* TestClock.adjust(`${seconds} seconds`)
    yield* shortly
  })
