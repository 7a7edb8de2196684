/** The contract of `StoreAdapter`, sentence by sentence: one suite, which every store passes. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Fiber from "effect/Fiber"
import type * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { type Event, type Projection, type Snapshot, StoreAdapter, StoreError, Timestamp } from "effect-maestro"
import {
  awkwardIds,
  awkwardValues,
  billionLaughs,
  jsonObject,
  refusedBodies,
  refusedNames,
  refusedSequences
} from "./awkward.js"
import { uniqueName } from "./database.js"

/** What a store may lack. */
export interface Capabilities {
  /** Whether the store is on a `SqlClient` (which its layer provides then), and so takes part in its transactions. */
  readonly sql: boolean
}

const { RetryCommand, ValidationError } = StoreError

export const storeContract = <E>(
  name: string,
  layer: Layer.Layer<StoreAdapter.StoreAdapter, E>,
  capabilities: Capabilities
): void => {
  it.layer(layer, { timeout: 60_000 })(name, (it) => {
    const sqlIt = capabilities.sql ? it.effect : it.effect.skip

    // --- commitEvents ---

    it.effect("commitEvents: an empty list succeeds and writes nothing", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        yield* store.commitEvents([])
        yield* store.commitAll([], [recording([])])
      })
    )

    it.effect("commitEvents: what was stored comes back as it was, in order of sequence", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const events = yield* stream(newId(), 1, 5)
        yield* store.commitEvents(events.slice(0, 2))
        yield* store.commitEvents(events.slice(2))
        expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
      })
    )

    it.effect("commitEvents: any JSON comes back as it went in", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        yield* everyCase(FastCheck.tuple(jsonObject, jsonObject), ([body, metadata]) =>
          Effect.gen(function* () {
            const events = [{ ...(yield* event(newId(), 1)), body, metadata }]
            yield* store.commitEvents(events)
            const [stored] = yield* store.getEvents(idOf(events), 1)
            // What JSON text says of the value is the measure: it has no -0, and no order of keys.
            expect(stored?.body).toEqual(JSON.parse(JSON.stringify(body)))
            expect(stored?.metadata).toEqual(JSON.parse(JSON.stringify(metadata)))
          })
        )
      })
    )

    for (const [what, value] of Object.entries(awkwardValues)) {
      it.effect(`commitEvents: stores ${what}`, () =>
        Effect.gen(function* () {
          const store = yield* StoreAdapter.StoreAdapter
          const body = { value }
          const events = [{ ...(yield* event(newId(), 1)), body, metadata: body }]
          yield* store.commitEvents(events)
          expect(JSON.stringify(yield* store.getEvents(idOf(events), 1))).toHaveLength(JSON.stringify(events).length)
          expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
        })
      )
    }

    it.effect("commitEvents: ids and types are any text, and each is its own", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const unique = newId().slice(0, 12)
        const ids = awkwardIds.map((id) => (Array.from(id).length > 240 ? id : `${id}${unique}`))
        for (const id of ids) yield* store.commitEvents([{ ...(yield* event(id, 1)), type: id, body: { id } }])
        for (const id of ids) {
          const stored = yield* store.getEvents(id, 1)
          expect(stored.map((found) => [found.aggregateId, found.type, found.body])).toEqual([[id, id, { id }]])
        }
      })
    )

    it.effect("commitEvents: a commit of 10 000 events, and of 500 aggregates, is one commit", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const long = yield* stream(newId(), 1, 10_000)
        yield* store.commitEvents(long)
        expect(yield* store.getEvents(idOf(long), 1)).toEqual(long)
        const wide = yield* Effect.forEach(Arr.range(1, 500), () => event(newId(), 1))
        yield* store.commitEvents(wide)
        for (const one of wide) expect(yield* store.getEvents(one.aggregateId, 1)).toEqual([one])
      })
    )

    const refused: ReadonlyArray<readonly [what: string, path: string, change: object]> = [
      ...refusedNames.flatMap(([what, text]) => [
        [`an id that is ${what}`, "aggregateId", { aggregateId: text }] as const,
        [`a type that is ${what}`, "type", { type: text }] as const
      ]),
      ...refusedSequences.map((sequence) => [`the sequence ${sequence}`, "sequence", { sequence }] as const),
      ...refusedBodies.flatMap(([what, path, body]) => [
        [`a body with ${what}`, `body${path}`, { body }] as const,
        [`metadata with ${what}`, `metadata${path}`, { metadata: body }] as const
      ]),
      ["a timestamp that is none", "timestamp", { timestamp: "yesterday" }],
      ["a timestamp that is missing", "timestamp", { timestamp: undefined }]
    ]
    it.effect("commitEvents: refuses a bad event by a ValidationError that says where, and writes nothing", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        for (const [what, path, change] of refused) {
          const [good, other] = [yield* event(newId(), 1), yield* event(newId(), 1)]
          const bad = { ...other, ...change }
          const ran: Array<string> = []
          for (const commit of [store.commitEvents([good, bad]), store.commitAll([good, bad], [recording(ran)])]) {
            const error = yield* Effect.flip(commit)
            expect(error, what).toBeInstanceOf(ValidationError)
            const issues = error instanceof ValidationError ? error.issues : []
            expect(issues.map((issue) => `${issue.index} ${issue.path.join(".")}`)[0], what).toBe(`1 ${path}`)
            expect(issues[0]?.message, what).not.toBe("")
          }
          expect(yield* store.getEvents(good.aggregateId, 1), what).toEqual([])
          expect(ran, what).toEqual([])
        }
      })
    )

    it.effect("commitEvents: refuses a body beyond all bounds", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const error = yield* Effect.flip(store.commitEvents([{ ...(yield* event(newId(), 1)), body: billionLaughs() }]))
        expect(error instanceof ValidationError ? error.message : error).toContain("larger than 64 MB")
      })
    )

    it.effect("commitEvents: 2 147 483 647 is a sequence, though not the next one", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const error = yield* Effect.flip(store.commitEvents([yield* event(newId(), 2_147_483_647)]))
        expect(error).toBeInstanceOf(RetryCommand)
      })
    )

    it.effect("commitEvents: a ValidationError names every issue of every event, not the first", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const first = {
          ...(yield* event(newId(), 0)),
          type: "",
          body: { deep: [{ at: Number.NaN }], other: undefined }
        }
        const third = { ...(yield* event(newId(), 1)), metadata: { when: new Date(0) } }
        const error = yield* Effect.flip(store.commitEvents([first, yield* event(newId(), 1), third]))
        const issues = error instanceof ValidationError ? error.issues : []
        expect(issues.map(({ index, path }) => [index, ...path])).toEqual([
          [0, "type"],
          [0, "sequence"],
          [0, "body", "deep", 0, "at"],
          [0, "body", "other"],
          [2, "metadata", "when"]
        ])
      })
    )

    it.effect("commitEvents: refuses sequences of one aggregate that do not rise by one within the commit", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        for (const sequences of [
          [1, 3],
          [1, 1],
          [2, 1],
          [1, 2, 2]
        ]) {
          const id = newId()
          const other = yield* event(newId(), 1)
          const events = yield* Effect.forEach(sequences, (sequence) => event(id, sequence))
          const error = yield* Effect.flip(store.commitEvents([...events, other]))
          expect(error, `${sequences}`).toBeInstanceOf(ValidationError)
          expect(yield* store.getEvents(id, 1)).toEqual([])
          expect(yield* store.getEvents(other.aggregateId, 1)).toEqual([])
        }
      })
    )

    it.effect("commitEvents: stores several aggregates in one commit, however they are mixed", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const [a, b] = [yield* stream(newId(), 1, 3), yield* stream(newId(), 1, 2)]
        yield* store.commitEvents(mixed(a, b))
        expect(yield* store.getEvents(idOf(a), 1)).toEqual(a)
        expect(yield* store.getEvents(idOf(b), 1)).toEqual(b)
      })
    )

    it.effect("commitEvents: a conflict in one aggregate leaves nothing in any", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const taken = yield* stream(newId(), 1, 2)
        yield* store.commitEvents(taken)
        for (const sequence of [2, 4]) {
          const [before, after] = [yield* stream(newId(), 1, 2), yield* stream(newId(), 1, 2)]
          const conflict = yield* event(idOf(taken), sequence)
          const error = yield* Effect.flip(store.commitEvents([...before, conflict, ...after]))
          expect(error).toEqual(new RetryCommand({ aggregateId: idOf(taken), sequence }))
          expect(yield* store.getEvents(idOf(before), 1)).toEqual([])
          expect(yield* store.getEvents(idOf(after), 1)).toEqual([])
          expect(yield* store.getEvents(idOf(taken), 1)).toEqual(taken)
        }
      })
    )

    it.effect("commitEvents: a sequence that is taken is a RetryCommand that names aggregate and sequence", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const events = yield* stream(newId(), 1, 3)
        yield* store.commitEvents(events)
        for (const sequence of [1, 2, 3]) {
          for (const length of [1, 3]) {
            const stale = yield* stream(idOf(events), sequence, length)
            expect(yield* Effect.flip(store.commitEvents(stale))).toEqual(
              new RetryCommand({ aggregateId: idOf(events), sequence })
            )
            expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
          }
        }
      })
    )

    it.effect("commitEvents: a gap after the stored head is a RetryCommand, at the first event too", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const events = yield* stream(newId(), 1, 3)
        yield* store.commitEvents(events)
        for (const [aggregateId, sequence] of [
          [idOf(events), 5],
          [idOf(events), 6],
          [newId(), 2]
        ] as const) {
          const ahead = yield* stream(aggregateId, sequence, 2)
          expect(yield* Effect.flip(store.commitEvents(ahead))).toEqual(new RetryCommand({ aggregateId, sequence }))
          expect(yield* store.getEvents(aggregateId, 4)).toEqual([])
        }
      })
    )

    it.effect("commitEvents: of twenty writers at the same sequence exactly one wins", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        for (const round of [1, 2, 3]) {
          const id = newId()
          if (round > 1) yield* store.commitEvents(yield* stream(id, 1, round - 1))
          const commits = yield* Effect.forEach(Arr.range(1, 20), (length) => stream(id, round, (length % 3) + 1))
          const results = yield* Effect.forEach(commits, (events) => Effect.either(store.commitEvents(events)), {
            concurrency: "unbounded"
          })
          const winners = commits.filter((_, index) => results[index] !== undefined && Either.isRight(results[index]))
          expect(winners).toHaveLength(1)
          for (const result of results) {
            if (Either.isLeft(result)) expect(result.left).toBeInstanceOf(RetryCommand)
          }
          expect(yield* store.getEvents(id, round)).toEqual(winners[0])
        }
      })
    )

    it.effect("commitEvents: commits that want the same aggregates in opposite order end, and one wins", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        for (const _ of Arr.range(1, 3)) {
          // So many that two statements are at it at the same time.
          const ids = Arr.makeBy(500, newId)
          const commits = yield* Effect.forEach(Arr.range(1, 6), (index) =>
            Effect.forEach(index % 2 === 0 ? ids : Arr.reverse(ids), (id) => event(id, 1))
          )
          const results = yield* Effect.forEach(commits, (events) => Effect.either(store.commitEvents(events)), {
            concurrency: "unbounded"
          })
          expect(results.filter(Either.isRight)).toHaveLength(1)
          expect(Arr.getLefts(results).filter((error) => !(error instanceof RetryCommand))).toEqual([])
          const stored = yield* Effect.forEach(ids, (id) => store.getEvents(id, 1))
          const winner = commits[results.findIndex(Either.isRight)] ?? []
          expect(stored.flat().sort(byId)).toEqual([...winner].sort(byId))
        }
      })
    )

    it.effect("commitEvents: committing the very same events again succeeds and writes nothing", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const [a, b] = [yield* stream(newId(), 1, 3), yield* stream(newId(), 1, 1)]
        yield* store.commitEvents(mixed(a, b))
        yield* store.commitEvents(mixed(a, b))
        // Also when the stream has gone on since.
        yield* store.commitEvents(yield* stream(idOf(a), 4, 2))
        yield* store.commitEvents(mixed(a, b))
        yield* store.commitEvents(a.slice(1))
        expect((yield* store.getEvents(idOf(a), 1)).slice(0, 3)).toEqual(a)
        expect(yield* store.getEvents(idOf(a), 1)).toHaveLength(5)
        expect(yield* store.getEvents(idOf(b), 1)).toEqual(b)
      })
    )

    it.effect("commitEvents: the same commit from many at once succeeds for each and is stored once", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const events = yield* stream(newId(), 1, 3)
        yield* Effect.forEach(Arr.range(1, 10), () => store.commitEvents(events), { concurrency: "unbounded" })
        expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
      })
    )

    it.effect("commitEvents: a commit that mixes stored and new events is a conflict", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const events = yield* stream(newId(), 1, 3)
        const other = yield* stream(newId(), 1, 2)
        yield* store.commitEvents(events.slice(0, 2))
        yield* store.commitEvents(other.slice(0, 1))
        for (const commit of [events, events.slice(1), other, [...other.slice(0, 1), ...events.slice(2)]]) {
          expect(yield* Effect.flip(store.commitEvents(commit))).toBeInstanceOf(RetryCommand)
        }
        // Of two aggregates: one stored, one new.
        const fresh = yield* event(newId(), 1)
        expect(yield* Effect.flip(store.commitEvents([fresh, ...events.slice(0, 2)]))).toBeInstanceOf(RetryCommand)
        expect(yield* store.getEvents(fresh.aggregateId, 1)).toEqual([])
        expect(yield* store.getEvents(idOf(events), 1)).toEqual(events.slice(0, 2))
        expect(yield* store.getEvents(idOf(other), 1)).toEqual(other.slice(0, 1))
      })
    )

    it.effect("commitEvents, commitAll: interrupted at any step, all is stored or nothing", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        let stored = 0
        for (const steps of Arr.range(0, 80)) {
          const [a, b] = [yield* stream(newId(), 1, 2), yield* stream(newId(), 1, 2)]
          const commit =
            steps % 2 === 0 ? store.commitEvents([...a, ...b]) : store.commitAll([...a, ...b], [passing, passing])
          const fiber = yield* Effect.fork(commit)
          // First by single steps of the scheduler, then by turns of timers and sockets.
          for (let step = 0; step < steps >> 1; step++) yield* step < 10 ? Effect.yieldNow() : macrotask
          const exit = yield* Fiber.interrupt(fiber)
          const found = [...(yield* store.getEvents(idOf(a), 1)), ...(yield* store.getEvents(idOf(b), 1))]
          expect([0, 4]).toContain(found.length)
          if (Exit.isSuccess(exit)) expect(found).toHaveLength(4)
          stored += found.length / 4
        }
        // Nothing is left behind that would hold up the next one.
        yield* Effect.forEach(
          Arr.range(1, 30),
          () => Effect.flatMap(event(newId(), 1), (one) => store.commitEvents([one])),
          {
            concurrency: "unbounded"
          }
        )
        expect(stored).toBeGreaterThan(0)
        expect(stored).toBeLessThan(81)
      })
    )

    // --- commitAll ---

    it.effect("commitAll: without projections it is commitEvents", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const events = yield* stream(newId(), 1, 2)
        yield* store.commitAll(events, [])
        yield* store.commitAll(events, [])
        expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
        expect(yield* Effect.flip(store.commitAll(yield* stream(idOf(events), 2, 1), []))).toBeInstanceOf(RetryCommand)
        expect(yield* Effect.flip(store.commitAll(yield* stream(idOf(events), 0, 1), []))).toBeInstanceOf(
          ValidationError
        )
      })
    )

    it.effect("commitAll: projection by projection, event by event, never two at once", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const [a, b] = [yield* stream(newId(), 1, 2), yield* stream(newId(), 1, 1)]
        const log: Array<string> = []
        const slow = (name: string): Projection.Projection => ({
          name,
          project: (one) =>
            Effect.gen(function* () {
              log.push(`${name} begins ${one.aggregateId} ${one.sequence}`)
              yield* macrotask
              log.push(`${name} ends ${one.aggregateId} ${one.sequence}`)
            })
        })
        yield* store.commitAll(mixed(a, b), [slow("first"), slow("second")])
        expect(log).toEqual(
          ["first", "second"].flatMap((projection) =>
            mixed(a, b).flatMap((one) =>
              ["begins", "ends"].map((verb) => `${projection} ${verb} ${one.aggregateId} ${one.sequence}`)
            )
          )
        )
      })
    )

    it.effect("commitAll: a projection receives the event as it is stored", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const received: Array<Event.Event> = []
        const events = yield* stream(newId(), 1, 3)
        yield* store.commitAll(events, [{ name: "collect", project: (one) => Effect.sync(() => received.push(one)) }])
        expect(received).toEqual(events)
      })
    )

    it.effect("commitAll: a projection's failure rolls back everything and comes back unchanged", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const events = yield* stream(newId(), 1, 3)
        const failure = { reason: "not today" }
        const ran: Array<string> = []
        const failing: Projection.Projection<typeof failure> = {
          name: "failing",
          project: (one) => (one.sequence === 2 ? Effect.fail(failure) : Effect.void)
        }
        const result = yield* Effect.flip(store.commitAll(events, [recording(ran), failing, recording(ran)]))
        // Equal, not the same: inside a span Effect hands failures on as proxies that know the span.
        expect(result).toStrictEqual(failure)
        expect(ran).toHaveLength(3)
        expect(yield* store.getEvents(idOf(events), 1)).toEqual([])
        yield* store.commitAll(events, [recording(ran)])
        expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
      })
    )

    it.effect("commitAll: a projection's defect or interruption rolls back everything and stays what it is", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const events = yield* stream(newId(), 1, 2)
        const dying = yield* Effect.exit(
          store.commitAll(events, [{ name: "dies", project: () => Effect.die("defect") }])
        )
        expect(dying).toEqual(Exit.die("defect"))
        expect(yield* store.getEvents(idOf(events), 1)).toEqual([])
        const started = yield* Deferred.make<void>()
        const hangs: Projection.Projection = {
          name: "hangs",
          project: () => Effect.zipRight(Deferred.succeed(started, undefined), Effect.never)
        }
        const fiber = yield* Effect.fork(store.commitAll(events, [hangs]))
        yield* Deferred.await(started)
        expect(Exit.isInterrupted(yield* Fiber.interrupt(fiber))).toBe(true)
        expect(yield* store.getEvents(idOf(events), 1)).toEqual([])
        yield* store.commitEvents(events)
      })
    )

    it.effect(
      "commitAll: projections run neither for a commit that is stored already nor for one that is refused",
      () =>
        Effect.gen(function* () {
          const store = yield* StoreAdapter.StoreAdapter
          const events = yield* stream(newId(), 1, 2)
          const ran: Array<string> = []
          yield* store.commitAll(events, [recording(ran)])
          expect(ran).toHaveLength(2)
          yield* store.commitAll(events, [recording(ran)])
          expect(yield* Effect.flip(store.commitAll(yield* stream(idOf(events), 2, 2), [recording(ran)]))).toEqual(
            new RetryCommand({ aggregateId: idOf(events), sequence: 2 })
          )
          expect(yield* Effect.flip(store.commitAll(yield* stream(idOf(events), 4, 2), [recording(ran)]))).toEqual(
            new RetryCommand({ aggregateId: idOf(events), sequence: 4 })
          )
          expect(ran).toHaveLength(2)
        })
    )

    it.effect("commitAll: until all projections succeeded nobody but they sees the events", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const events = yield* stream(newId(), 1, 2)
        const [seen, started, go] = [
          yield* Deferred.make<ReadonlyArray<Event.Event>, unknown>(),
          yield* Deferred.make<void>(),
          yield* Deferred.make<void>()
        ]
        const looking: Projection.Projection = {
          name: "looking",
          project: (one) =>
            Effect.intoDeferred(store.getEvents(one.aggregateId, 1), seen).pipe(
              Effect.zipRight(Deferred.succeed(started, undefined)),
              Effect.zipRight(Deferred.await(go))
            )
        }
        // PGlite has one connection: who reads from outside waits for the end of the transaction.
        const outside = Effect.fork(store.getEvents(idOf(events), 1))
        const fiber = yield* Effect.fork(store.commitAll(events, [looking]))
        yield* Deferred.await(started)
        expect(yield* Deferred.await(seen)).toEqual(events)
        const reader = yield* outside
        if (!name.includes("PGlite")) expect(yield* Fiber.join(reader)).toEqual([])
        yield* Deferred.succeed(go, undefined)
        yield* Fiber.join(fiber)
        if (name.includes("PGlite")) expect(yield* Fiber.join(reader)).toEqual(events)
        expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
      })
    )

    it.effect("commitAll: what a projection commits to the store is part of the same transaction", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const [inner, snapshotId] = [newId(), newId()]
        const cascading: Projection.Projection<unknown> = {
          name: "cascading",
          project: () =>
            Effect.gen(function* () {
              yield* store.commitEvents(yield* stream(inner, 1, 2))
              yield* store.commitSnapshot(yield* snapshot(snapshotId, 1))
              expect(yield* store.getEvents(inner, 1)).toHaveLength(2)
              // A refused commit inside of it breaks nothing.
              expect(yield* Effect.flip(store.commitEvents(yield* stream(inner, 2, 2)))).toBeInstanceOf(RetryCommand)
            })
        }
        const failing: Projection.Projection<string> = { name: "failing", project: () => Effect.fail("no") }
        const rolledBack = yield* stream(newId(), 1, 1)
        expect(yield* Effect.flip(store.commitAll(rolledBack, [cascading, failing]))).toBe("no")
        expect(yield* store.getEvents(inner, 1)).toEqual([])
        expect(yield* store.getSnapshot(snapshotId, 0)).toEqual(Option.none())
        yield* store.commitAll(rolledBack, [cascading])
        expect(yield* store.getEvents(inner, 1)).toHaveLength(2)
        expect(Option.isSome(yield* store.getSnapshot(snapshotId, 0))).toBe(true)
        expect(yield* store.getEvents(idOf(rolledBack), 1)).toEqual(rolledBack)
      })
    )

    it.effect("commitAll: of many at the same sequence one wins, and only its projections count", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const id = newId()
        const commits = yield* Effect.forEach(Arr.range(1, 10), () => stream(id, 1, 2))
        const results = yield* Effect.forEach(
          commits,
          (events) => {
            const ran: Array<string> = []
            return Effect.map(Effect.either(store.commitAll(events, [recording(ran)])), (result) => ({ ran, result }))
          },
          { concurrency: "unbounded" }
        )
        expect(results.filter(({ result }) => Either.isRight(result))).toHaveLength(1)
        for (const { ran, result } of results) {
          expect(ran).toHaveLength(Either.isRight(result) ? 2 : 0)
          if (Either.isLeft(result)) expect(result.left).toBeInstanceOf(RetryCommand)
        }
        expect(yield* store.getEvents(id, 1)).toEqual(
          commits[results.findIndex(({ result }) => Either.isRight(result))]
        )
      })
    )

    // --- snapshots ---

    it.effect("commitSnapshot: replaces the stored one if and only if its sequence is higher", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const id = newId()
        const [five, otherFive, four, nine] = yield* Effect.forEach([5, 5, 4, 9], (sequence) => snapshot(id, sequence))
        if (!five || !otherFive || !four || !nine) return fail()
        yield* store.commitSnapshot(five)
        yield* store.commitSnapshot(otherFive)
        yield* store.commitSnapshot(four)
        expect(yield* store.getSnapshot(id, 0)).toEqual(Option.some(five))
        yield* store.commitSnapshot(nine)
        expect(yield* store.getSnapshot(id, 0)).toEqual(Option.some(nine))
        yield* store.commitSnapshot(five)
        expect(yield* store.getSnapshot(id, 0)).toEqual(Option.some(nine))
        expect(yield* store.getSnapshot(newId(), 0)).toEqual(Option.none())
      })
    )

    it.effect("commitSnapshot: in a race the highest stays", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const id = newId()
        const snapshots = yield* Effect.forEach(Arr.range(1, 20), (index) => snapshot(id, ((index * 7) % 20) + 1))
        yield* Effect.forEach(snapshots, store.commitSnapshot, { concurrency: "unbounded", discard: true })
        expect(yield* store.getSnapshot(id, 0)).toEqual(Option.some(snapshots.find(({ sequence }) => sequence === 20)))
      })
    )

    it.effect("getSnapshot: both bounds are inclusive", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const five = yield* snapshot(newId(), 5)
        yield* store.commitSnapshot(five)
        const found = (min: number, max?: number) =>
          Effect.map(
            store.getSnapshot(five.aggregateId, min, max === undefined ? undefined : { maxSequence: max }),
            Option.isSome
          )
        expect(yield* Effect.all([found(0), found(4), found(5), found(6)])).toEqual([true, true, true, false])
        expect(yield* Effect.all([found(0, 4), found(0, 5), found(5, 5), found(6, 9), found(0, 6)])).toEqual([
          false,
          true,
          true,
          false,
          true
        ])
      })
    )

    it.effect("commitSnapshot: refuses a bad snapshot by a ValidationError, and keeps the stored one", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const good = yield* snapshot(newId(), 5)
        yield* store.commitSnapshot(good)
        const changes: ReadonlyArray<readonly [string, object]> = [
          ...refusedNames.map(([, aggregateId]) => ["aggregateId", { aggregateId }] as const),
          ...refusedSequences.map((sequence) => ["sequence", { sequence }] as const),
          ...refusedBodies.flatMap(([, path, body]) => [
            [`body${path}`, { sequence: 6, body }] as const,
            [`metadata${path}`, { sequence: 6, metadata: body }] as const
          ]),
          ["timestamp", { sequence: 6, timestamp: "x" }]
        ]
        for (const [path, change] of changes) {
          const error = yield* Effect.flip(store.commitSnapshot({ ...good, ...change }))
          expect(error instanceof ValidationError ? error.issues[0].path.join(".") : error).toBe(path)
        }
        expect(yield* store.getSnapshot(good.aggregateId, 0)).toEqual(Option.some(good))
      })
    )

    it.effect("commitSnapshot: a snapshot is any JSON, and no event", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        for (const value of Object.values(awkwardValues)) {
          const one = { ...(yield* snapshot(newId(), 2_147_483_647)), body: { value }, metadata: { value } }
          yield* store.commitSnapshot(one)
          expect(yield* store.getSnapshot(one.aggregateId, 2_147_483_647)).toEqual(Option.some(one))
          expect(yield* store.getEvents(one.aggregateId, 0)).toEqual([])
        }
      })
    )

    // --- getEvents ---

    it.effect("getEvents: both bounds are inclusive; 0 and 1 mean all", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const events = yield* stream(newId(), 1, 5)
        yield* store.commitEvents(events)
        const read = (min: number, max?: number) =>
          Effect.map(
            store.getEvents(idOf(events), min, max === undefined ? undefined : { maxSequence: max }),
            (found) => found.map(({ sequence }) => sequence)
          )
        expect(yield* read(0)).toEqual([1, 2, 3, 4, 5])
        expect(yield* read(1)).toEqual([1, 2, 3, 4, 5])
        expect(yield* read(2)).toEqual([2, 3, 4, 5])
        expect(yield* read(5)).toEqual([5])
        expect(yield* read(6)).toEqual([])
        expect(yield* read(2, 4)).toEqual([2, 3, 4])
        expect(yield* read(3, 3)).toEqual([3])
        expect(yield* read(0, 1)).toEqual([1])
        expect(yield* read(0, 0)).toEqual([])
        expect(yield* read(4, 2)).toEqual([])
        expect(yield* read(0, 2_147_483_647)).toEqual([1, 2, 3, 4, 5])
        expect(yield* read(2_147_483_647)).toEqual([])
        expect(yield* store.getEvents(newId(), 0)).toEqual([])
      })
    )

    it.effect("getEvents, getSnapshot: refuse bad arguments by a ValidationError that names them", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const reads: ReadonlyArray<
          (
            ...args: Parameters<typeof store.getEvents>
          ) => Effect.Effect<unknown, StoreError.ValidationError | StoreError.StoreError>
        > = [store.getEvents, store.getSnapshot]
        for (const read of reads) {
          const pathOf = (error: unknown) => (error instanceof ValidationError ? error.issues[0].path.join(".") : error)
          for (const [, id] of refusedNames) {
            expect(pathOf(yield* Effect.flip(read(id as string, 1)))).toBe("aggregateId")
          }
          for (const sequence of refusedSequences.filter((bad) => bad !== 0)) {
            expect(pathOf(yield* Effect.flip(read("a", sequence as number)))).toBe("minSequence")
            if (sequence === undefined || sequence === null) continue
            expect(pathOf(yield* Effect.flip(read("a", 1, { maxSequence: sequence as number })))).toBe("maxSequence")
          }
        }
      })
    )

    // --- the caller's transaction ---

    const committing = (yes: boolean) => (yes ? "commits" : "rolls back")
    for (const commits of [true, false]) {
      sqlIt(`caller's transaction: what is stored in one that ${committing(commits)} shares its fate`, () =>
        Effect.gen(function* () {
          const store = yield* StoreAdapter.StoreAdapter
          const { count, insert, sql } = yield* table
          const [a, b] = [yield* stream(newId(), 1, 2), yield* stream(newId(), 1, 2)]
          const saved = yield* snapshot(newId(), 3)
          const result = yield* sql
            .withTransaction(
              Effect.gen(function* () {
                yield* insert
                yield* store.commitEvents(a)
                yield* store.commitAll(b, [{ name: "insert", project: () => insert }])
                yield* store.commitSnapshot(saved)
                // The same again, inside the same transaction.
                yield* store.commitEvents(a)
                yield* store.commitAll(b, [{ name: "insert", project: () => insert }])
                expect(yield* store.getEvents(idOf(a), 1)).toEqual(a)
                return commits ? "done" : yield* Effect.fail("rolled back")
              })
            )
            .pipe(Effect.merge)
          expect(result).toBe(commits ? "done" : "rolled back")
          expect(yield* store.getEvents(idOf(a), 1)).toEqual(commits ? a : [])
          expect(yield* store.getEvents(idOf(b), 1)).toEqual(commits ? b : [])
          expect(Option.isSome(yield* store.getSnapshot(saved.aggregateId, 0))).toBe(commits)
          expect(yield* count).toBe(commits ? 3 : 0)
        })
      )
    }

    for (const isolation of ["read committed", "repeatable read", "serializable"]) {
      sqlIt(`caller's transaction (${isolation}): it stays usable after every failure`, () =>
        Effect.gen(function* () {
          const store = yield* StoreAdapter.StoreAdapter
          const { count, insert, sql } = yield* table
          const [taken, good, other] = [
            yield* stream(newId(), 1, 2),
            yield* stream(newId(), 1, 2),
            yield* stream(newId(), 1, 2)
          ]
          yield* store.commitEvents(taken)
          const conflict = yield* stream(idOf(taken), 2, 1)
          const failing: Projection.Projection<unknown> = {
            name: "failing",
            project: () => Effect.zipRight(insert, Effect.fail("no"))
          }
          const broken: Projection.Projection<unknown> = { name: "broken", project: () => sql`select * from nowhere` }
          yield* sql.withTransaction(
            Effect.gen(function* () {
              yield* sql`set transaction isolation level ${sql.literal(isolation)}`
              yield* insert
              expect(yield* Effect.flip(store.commitEvents(conflict))).toBeInstanceOf(RetryCommand)
              expect(yield* Effect.flip(store.commitAll(conflict, [failing]))).toBeInstanceOf(RetryCommand)
              expect(yield* Effect.flip(store.commitEvents(yield* stream("", 1, 1)))).toBeInstanceOf(ValidationError)
              expect(yield* Effect.flip(store.commitAll(other, [failing]))).toBe("no")
              expect(yield* Effect.flip(store.commitAll(other, [broken]))).toMatchObject({ _tag: "SqlError" })
              yield* store.commitEvents(good)
              yield* insert
            })
          )
          expect(yield* store.getEvents(idOf(good), 1)).toEqual(good)
          expect(yield* store.getEvents(idOf(other), 1)).toEqual([])
          expect(yield* store.getEvents(idOf(taken), 1)).toEqual(taken)
          expect(yield* count).toBe(2)
        })
      )
    }

    sqlIt("commitAll: what a projection writes through SqlClient is part of the commit", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const { count, insert } = yield* table
        const inserting: Projection.Projection<unknown> = { name: "inserting", project: () => insert }
        const failing: Projection.Projection<string> = {
          name: "failing",
          project: (one) => (one.sequence === 3 ? Effect.fail("no") : Effect.void)
        }
        const events = yield* stream(newId(), 1, 3)
        expect(yield* Effect.flip(store.commitAll(events, [inserting, failing]))).toBe("no")
        expect(yield* count).toBe(0)
        yield* store.commitAll(events, [inserting])
        yield* store.commitAll(events, [inserting])
        expect(yield* count).toBe(3)
        expect(yield* Effect.flip(store.commitAll(yield* stream(idOf(events), 3, 1), [inserting]))).toBeInstanceOf(
          RetryCommand
        )
        expect(yield* count).toBe(3)
      })
    )
  })
}

// --- what the cases are made of ---

const newId = (): string => crypto.randomUUID()

const event = (aggregateId: string, sequence: number): Effect.Effect<Event.Event> =>
  Effect.gen(function* () {
    const { now } = yield* Timestamp.HybridClock
    return {
      timestamp: yield* now,
      aggregateId,
      sequence,
      type: "Happened",
      body: { amount: sequence, text: `event ${sequence}` },
      metadata: { aggregate: "Test" }
    }
  })

const stream = (aggregateId: string, first: number, length: number): Effect.Effect<ReadonlyArray<Event.Event>> =>
  Effect.forEach(
    Arr.makeBy(length, (index) => first + index),
    (sequence) => event(aggregateId, sequence)
  )

const snapshot = (aggregateId: string, sequence: number): Effect.Effect<Snapshot.Snapshot> =>
  Effect.gen(function* () {
    const { now } = yield* Timestamp.HybridClock
    return {
      timestamp: yield* now,
      aggregateId,
      sequence,
      body: { state: { total: sequence } },
      metadata: { version: 1 }
    }
  })

const idOf = (events: ReadonlyArray<Event.Event>): string => events[0]?.aggregateId ?? fail()

const fail = (): never => {
  throw new Error("the test has no events")
}

const byId = (a: Event.Event, b: Event.Event): number => (a.aggregateId < b.aggregateId ? -1 : 1)

/** Two streams in one commit, their events by turns. */
const mixed = (a: ReadonlyArray<Event.Event>, b: ReadonlyArray<Event.Event>): ReadonlyArray<Event.Event> =>
  Arr.makeBy(Math.max(a.length, b.length), (index) => [a[index], b[index]])
    .flat()
    .filter((one) => one !== undefined)

const recording = (ran: Array<string>): Projection.Projection => ({
  name: "recording",
  project: (one) => Effect.sync(() => ran.push(`${one.aggregateId} ${one.sequence}`))
})

const passing: Projection.Projection = { name: "passing", project: () => Effect.yieldNow() }

/** Lets timers and sockets have their turn. */
const macrotask = Effect.async<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})

const everyCase = <A, E, R>(
  cases: FastCheck.Arbitrary<A>,
  test: (value: A) => Effect.Effect<void, E, R>
): Effect.Effect<void, never, R> =>
  Effect.flatMap(Effect.runtime<R>(), (runtime) =>
    Effect.promise(() =>
      FastCheck.assert(
        // On failure fast-check prints the seed and the smallest case.
        FastCheck.asyncProperty(cases, (value) => Effect.runPromise(Effect.provide(test(value), runtime))),
        { numRuns: 100 }
      )
    )
  )

/** A table of the application, new for each test. */
const table = Effect.gen(function* () {
  const sql = Option.getOrThrow(yield* Effect.serviceOption(SqlClient.SqlClient))
  const name = sql(uniqueName("rows"))
  yield* sql`create table ${name} (id serial primary key)`
  return {
    sql,
    insert: sql`insert into ${name} default values`,
    count: Effect.map(sql<{ n: string }>`select count(*) as n from ${name}`, ([row]) => Number(row?.n))
  }
})
