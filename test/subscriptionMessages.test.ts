/** The messages of a subscription: of failures, of refused options, and of `waitFor` after its timeout. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it, layer } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Schedule from "effect/Schedule"
import { EventFeed, Projection, SqlStore, Subscription } from "effect-maestro"
import { lineOf, textOf } from "../src/internal/subscription/failureText.js"
import { Account, Deposited } from "./account.js"
import { layerPg, layerPglite } from "./database.js"
import { commitOf, newId, stores } from "./subscribers.js"

class NoRoom extends Data.TaggedError("NoRoom") {
  override get message(): string {
    return "no such room"
  }
}

for (const [name, client] of [
  ["PGlite", layerPglite],
  ["Postgres", layerPg()]
] as const) {
  layer(Layer.provideMerge(SqlStore.layer, client), { excludeTestServices: true, timeout: 60_000 })(name, (it) => {
    it.scoped("a failed statement is one line with the database's message, and each attempt is logged", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const [a, by] = [newId("a"), newId("told")]
        yield* sql`create table if not exists limited (amount int constraint "small amounts" check (amount < 10))`
        const { layer: logs, said } = hearing()
        const reason =
          /^SqlError: Failed to execute statement: new row for relation "limited" violates .*"small amounts" \(23514\)$/
        const stops = Subscription.make(by, {
          filter: { types: [a] },
          retry: Schedule.recurs(1),
          handle: () => sql`insert into limited values (${77_777})`
        })
        yield* commitOf(a, 1, 1, a)
        const stopped = yield* Effect.provide(Effect.flip(stops.run), logs)
        expect(stopped).toMatchObject({ _tag: "SubscriptionStopped", attempts: 2 })
        const [first, ...stack] = stopped._tag === "SubscriptionStopped" ? stopped.error.split("\n") : []
        expect(first).toMatch(reason)
        expect(stack[0]).toMatch(/^\s+at /)
        expect(JSON.stringify([stopped, said])).not.toContain("77777")
        expect(said).toEqual(
          [1, 2].map((attempt) =>
            expect.stringMatching(
              new RegExp(
                `^WARN attempt ${attempt} at event 1 of aggregate "${a}", of type "${a}", failed: SqlError: .*"small`
              )
            )
          )
        )
        const { partitions } = yield* stops.status
        expect(partitions).toMatchObject([
          { lastFailure: { value: { error: stopped._tag === "SubscriptionStopped" && stopped.error } } }
        ])

        const aside = Subscription.make(newId("aside"), {
          filter: { types: [a] },
          retry: Schedule.stop,
          onFailure: "park",
          handle: () => sql`insert into nowhere values (1)`
        })
        yield* Effect.forkScoped(aside.run)
        yield* Subscription.waitFor(aside.name, { aggregateId: a, sequence: 1 }, "30 seconds")
        const [event] = yield* Subscription.parked(aside.name)
        expect(event?.error.split("\n")[0]).toBe(
          'SqlError: Failed to execute statement: relation "nowhere" does not exist (42P01)'
        )
      })
    )
  })
}

for (const [name, store] of stores) {
  layer(store, { excludeTestServices: true, timeout: 60_000 })(name, (it) => {
    it.scoped("NotReached says whether the subscription is slow, idle, stopped, or has never run", () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("awaited")]
        const [began, leave] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
        const awaited = Subscription.make(by, {
          filter: { types: [a] },
          delivery: "at-least-once",
          retry: Schedule.stop,
          handle: (event) =>
            event.sequence === 1
              ? Effect.zipRight(Deferred.succeed(began, undefined), Deferred.await(leave))
              : new NoRoom()
        })
        const refused = (subscription: string | typeof awaited, sequence: number) =>
          Effect.flip(Subscription.waitFor(subscription, { aggregateId: a, sequence }, "1 millis"))
        yield* commitOf(a, 1, 2, a)
        expect(yield* refused(awaited, 1)).toMatchObject({ _tag: "NotReached", subscription: by, reason: "NeverRun" })
        const running = yield* Effect.fork(awaited.run)
        yield* Deferred.await(began)
        expect(yield* refused(awaited, 1)).toMatchObject({ reason: "Behind" })
        yield* Deferred.succeed(leave, undefined)
        yield* Effect.flip(Fiber.join(running))
        const stopped = yield* refused(awaited, 2)
        expect(stopped).toMatchObject({
          reason: "Stopped",
          failure: { aggregateId: a, sequence: 2, type: a, attempts: 1 }
        })
        expect(stopped.message).toMatch(/stopped at event 2 of aggregate "a-.*", of type "a-.*": NoRoom: no such room$/)
        yield* Subscription.resume(awaited)
        expect(yield* refused(by, 2)).toMatchObject({ reason: "Idle" })
        const misspelt = yield* refused(`${by}s`, 1)
        expect(misspelt).toMatchObject({ reason: "NeverRun" })
        expect(misspelt.message).toContain("no subscription of that name has run")
        expect(yield* Effect.flip(Subscription.resume(`${by}s`))).toMatchObject({
          _tag: "ValidationError",
          operation: "Subscription.resume",
          issues: [{ path: ["name"], message: `no subscription of the name "${by}s" has run` }]
        })
        expect(yield* Subscription.parked(awaited)).toEqual([])
        expect(yield* Subscription.discardParked(awaited, { aggregateId: a, sequence: 2 })).toBe(false)
      })
    )

    it.scoped("NotReached says at which event the subscription retries after a failure", () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("retrying")]
        const subscription = Subscription.make(by, {
          filter: { types: [a] },
          delivery: "at-least-once",
          retry: Schedule.spaced("1 hour"),
          handle: () => new NoRoom()
        })
        yield* commitOf(a, 1, 2, a)
        const running = yield* Effect.fork(subscription.run)
        const error = yield* Subscription.waitFor(by, { aggregateId: a, sequence: 2 }, "10 millis").pipe(
          Effect.flip,
          Effect.repeat({ until: (delay) => delay._tag !== "NotReached" || delay.failure !== undefined })
        )
        expect(error).toMatchObject({
          _tag: "NotReached",
          reason: "Behind",
          failure: { aggregateId: a, sequence: 1, type: a, attempts: 1 }
        })
        expect(error.message).toMatch(
          /in time: it retries event 1 of aggregate "a-.*", of type "a-.*", because attempt 1 failed: NoRoom: no such room$/
        )
        yield* Fiber.interrupt(running)
        // No process retries it any more.
        expect(yield* Effect.flip(Subscription.waitFor(by, { aggregateId: a, sequence: 2 }, "1 millis"))).toMatchObject(
          {
            reason: "Idle"
          }
        )
      })
    )

    it.scoped("`waitFor` names itself where it refuses an argument, and says what is wrong", () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("refusing")]
        yield* commitOf(a, 1, 1, a)
        const position = { aggregateId: a, sequence: 1 }
        const refusedTo = (place: unknown, timeout: unknown) =>
          Effect.flip(Subscription.waitFor(by, place as typeof position, timeout as "1 second"))
        const result = { state: {}, sequence: 1, events: [], position, duplicate: false }
        for (const [error, path, message] of [
          [refusedTo(result, "1 second"), "position", "must be the `position` of a result, and not the result itself"],
          [refusedTo({ sequence: 1 }, "1 second"), "aggregateId", "must be a text"],
          [refusedTo({ aggregateId: 5, sequence: 0 }, "1 second"), "aggregateId", "must be a text"],
          [
            refusedTo({ aggregateId: a, sequence: 2 }, "1 second"),
            "sequence",
            `must be that of a stored event, and no event 2 of aggregate "${a}" is stored; the id has the kind of the aggregate, as its \`streamId(id)\` returns it`
          ],
          [refusedTo(position, undefined), "timeout", 'must be a duration, such as "2 seconds"'],
          [refusedTo(position, "soon"), "timeout", 'must be a duration, such as "2 seconds"'],
          [refusedTo(position, null), "timeout", 'must be a duration, such as "2 seconds"']
        ] as const) {
          expect(yield* error).toMatchObject({
            _tag: "ValidationError",
            operation: "Subscription.waitFor",
            issues: [{ path: [path], message }]
          })
        }
      })
    )

    it.scoped("an argument that is no position fails with ValidationError", () =>
      Effect.gen(function* () {
        const by = newId("junk")
        const subscription = Subscription.make(by, { handle: () => Effect.void })
        for (const junk of ["zz", "1-x", "", null, 5]) {
          const place = junk as EventFeed.Position
          expect(yield* Effect.flip(Subscription.waitFor(by, place, "1 second"))).toMatchObject({
            _tag: "ValidationError",
            operation: "Subscription.waitFor",
            issues: [{ path: ["position"] }]
          })
        }
        for (const sequence of [1.5, -1, Number.NaN]) {
          const place = { aggregateId: "a", sequence }
          for (const refused of [
            Subscription.waitFor(by, place, "1 second"),
            Subscription.discardParked(by, place),
            subscription.retryParked(place)
          ]) {
            expect(yield* Effect.flip(refused)).toMatchObject({
              _tag: "ValidationError",
              issues: [{ path: ["sequence"] }]
            })
          }
        }
      })
    )
  })
}

it("the text of a failure begins with a line of the messages of all its causes", () => {
  const refused = Object.assign(new Error("connect ECONNREFUSED ::1:5432"), { code: "ECONNREFUSED" })
  const outer = new Error("no mail", { cause: new Error("no relay", { cause: new AggregateError([refused]) }) })
  const line = "Error: no mail: no relay: connect ECONNREFUSED ::1:5432"
  for (const cause of [Cause.fail(outer), Cause.die(outer)]) {
    expect(lineOf(cause)).toBe(line)
    expect(textOf(cause).split("\n")[0]).toBe(line)
    expect(textOf(cause).split("\n")[1]).toMatch(/^\s+at /)
  }
  const driver = Object.assign(new Error("no"), { code: "23505", table: "t", constraint: "c", detail: "Key (id)=(7)" })
  expect(lineOf(Cause.fail(driver))).toBe('Error: no (23505, table "t", constraint "c")')
})

it("a subscription that would handle no events is refused by `make`", () => {
  const nothing: ReadonlyArray<readonly [make: () => unknown, message: string]> = [
    [() => Subscription.make("idle", { on: [] }), "would handle no events"],
    [() => Subscription.make("idle", { on: Subscription.on(Account, {}) }), "no handler for events of Account"],
    [
      () => Subscription.make("idle", { on: [onDeposits, Subscription.on(Account, {})] }),
      "no handler for events of Account"
    ],
    [() => Subscription.make("idle", { on: onDeposits, filter: { kinds: ["Order"] } }), "no kinds"],
    [() => Subscription.make("idle", { filter: { types: [] }, handle: () => Effect.void }), "no types"],
    [() => Subscription.make("idle", JSON.parse("{}")), "has no handler"],
    [() => Subscription.fromProjections("idle", []), "would handle no events"]
  ]
  for (const [make, message] of nothing) {
    expect(make).toThrow(TypeError)
    expect(make).toThrow(message)
  }
})

it("a projection that owns tables runs from the beginning only, because its next version has all events", () => {
  const owned = Projection.of(
    Account,
    Projection.makeSql({
      name: "owned",
      events: Deposited,
      tables: { owned: (sql) => sql`create table owned (account text)` },
      project: { Deposited: (_, { id }, sql) => sql`insert into owned (account) values (${id})` }
    })
  )
  const make = (from?: Subscription.Options["from"]) => () => Subscription.fromProjections("owned", [owned], { from })
  expect(make()).not.toThrow()
  expect(make("beginning")).not.toThrow()
  expect(make("now")).toThrow('`from` must be "beginning"')
  expect(make(EventFeed.beginning)).toThrow(TypeError)
})

// --- internal ---

const onDeposits = Subscription.on(Account, { Deposited: () => Effect.void })

/** Collects the logged warnings and errors. */
const hearing = () => {
  const said: Array<string> = []
  const logger = Logger.make(({ logLevel, message }) => {
    if (logLevel.ordinal >= 30_000) said.push(`${logLevel.label} ${String(message)}`)
  })
  return { said, layer: Logger.replace(Logger.defaultLogger, logger) }
}
