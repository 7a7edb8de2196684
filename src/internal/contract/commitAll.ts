/**
 * The contract of `commitAll`, one case for each sentence.
 */
import { expect } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type { Event } from "../../Event.js"
import type { Projection } from "../../Projection.js"
import { StoreAdapter } from "../../StoreAdapter.js"
import { RetryCommand, StoreError, ValidationError } from "../../StoreError.js"
import {
  type Case,
  event,
  failureOf,
  idOf,
  macrotask,
  mixed,
  newId,
  passing,
  projecting,
  recording,
  type Settings,
  snapshot,
  stream,
  test
} from "./case.js"

export const commitAllCases = ({ lacks }: Settings): ReadonlyArray<Case> => [
  test("commitAll: without projections it is commitEvents", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const events = yield* stream(newId(), 1, 2)
      yield* store.commitAll(events, [])
      yield* store.commitAll(events, [])
      expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
      expect(yield* Effect.flip(store.commitAll(yield* stream(idOf(events), 2, 1), []))).toBeInstanceOf(RetryCommand)
      expect(yield* Effect.flip(store.commitAll(yield* stream(idOf(events), 0, 1), []))).toBeInstanceOf(ValidationError)
    })),

  test("commitAll: projections run one after the other, each event by event, and never concurrently", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const [a, b] = [yield* stream(newId(), 1, 2), yield* stream(newId(), 1, 1)]
      const log: Array<string> = []
      const slow = (name: string): Projection => ({
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
    })),

  test("commitAll: every projection receives every event of a commit of 120 events", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const events = mixed(yield* stream(newId(), 1, 60), yield* stream(newId(), 1, 60))
      const [first, second]: [Array<string>, Array<string>] = [[], []]
      yield* store.commitAll(events, [recording(first), recording(second)])
      const all = events.map(({ aggregateId, sequence }) => `${aggregateId} ${sequence}`)
      expect(first).toEqual(all)
      expect(second).toEqual(all)
    })),

  test("commitAll: a projection that names its events receives no others of the commit", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const events = yield* stream(newId(), 1, 3)
      const mixedTypes = events.map((one) => (one.sequence === 2 ? { ...one, type: "Other" } : one))
      const received: Array<number> = []
      const naming: Projection = {
        name: "naming",
        events: ["Happened"],
        project: ({ sequence }) => Effect.sync(() => received.push(sequence))
      }
      yield* store.commitAll(mixedTypes, [naming])
      expect(received).toEqual([1, 3])
    })),

  test("commitAll: a projection of one aggregate receives no events of others in the commit", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const kind = newId()
      const ids = [`${kind}/a`, `${kind}/a/b`, kind, `${kind}s/a`, `s${kind}/a`, `s/${kind}`].map(
        (id) => `${id} ${newId()}`
      )
      const events = yield* Effect.forEach(ids, (id) => event(id, 1))
      const received = new Map<string, Array<string>>()
      const of = (name: string, origin: Projection["of"]): Projection => ({
        name,
        of: origin,
        project: ({ aggregateId }) =>
          Effect.sync(() => received.set(name, [...(received.get(name) ?? []), aggregateId]))
      })
      yield* store.commitAll(events, [
        of("one", { name: kind, kind, streams: "byKind" }),
        of("all", "all"),
        of("plain", { name: kind, kind, streams: "plain" }),
        of("none", { name: kind, kind: newId(), streams: "byKind" })
      ])
      expect(Object.fromEntries(received)).toEqual({ one: ids.slice(0, 2), all: ids, plain: ids })
    })),

  test("commitAll: a projection receives the event as it is stored", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const received: Array<Event> = []
      const events = yield* stream(newId(), 1, 3)
      yield* store.commitAll(events, [{ name: "collect", project: (one) => Effect.sync(() => received.push(one)) }])
      expect(received).toEqual(events)
    })),

  test("commitAll: a failed projection rolls back the whole commit, which fails with the same failure", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const events = yield* stream(newId(), 1, 3)
      const failure = { reason: "not today" }
      const ran: Array<string> = []
      const failing: Projection<typeof failure> = {
        name: "failing",
        project: (one) => (one.sequence === 2 ? Effect.fail(failure) : Effect.void)
      }
      const result = yield* Effect.flip(store.commitAll(events, [recording(ran), failing, recording(ran)]))
      // Equal and not identical, because inside a span Effect wraps failures in proxies.
      expect(result).toStrictEqual(failure)
      expect(ran).toHaveLength(3)
      expect(yield* store.getEvents(idOf(events), 1)).toEqual([])
      yield* store.commitAll(events, [recording(ran)])
      expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
    })),

  test("commitAll: a projection's StoreError that names no aggregate gets the names of projection and event", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const events = yield* stream(newId(), 1, 3)
      const full = new StoreError({ reason: "Exhausted", operation: "x", description: "full", code: "53100" })
      const failing = (error: StoreError): Projection<StoreError> => ({
        name: "failing",
        project: (one) => (one.sequence === 2 ? Effect.fail(error) : Effect.void)
      })
      expect(yield* Effect.flip(store.commitAll(events, [passing, failing(full)]))).toEqual(
        new StoreError({ ...full, projection: "failing", aggregateId: idOf(events), sequence: 2, type: "Happened" })
      )
      const ofAnother = new StoreError({ ...full, aggregateId: newId() })
      expect(yield* Effect.flip(store.commitAll(events, [failing(ofAnother)]))).toEqual(ofAnother)
      expect(yield* store.getEvents(idOf(events), 1)).toEqual([])
    })),

  test("commitAll: a projection that dies or is interrupted rolls back the whole commit, which ends in the same way", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const events = yield* stream(newId(), 1, 2)
      const dying = yield* Effect.exit(store.commitAll(events, [{ name: "dies", project: () => Effect.die("defect") }]))
      expect(dying).toEqual(Exit.die("defect"))
      expect(yield* store.getEvents(idOf(events), 1)).toEqual([])
      const started = yield* Deferred.make<void>()
      const hangs: Projection = {
        name: "hangs",
        project: () => Effect.zipRight(Deferred.succeed(started, undefined), Effect.never)
      }
      const fiber = yield* Effect.fork(store.commitAll(events, [hangs]))
      yield* Deferred.await(started)
      expect(Exit.isInterrupted(yield* Fiber.interrupt(fiber))).toBe(true)
      expect(yield* store.getEvents(idOf(events), 1)).toEqual([])
      yield* store.commitEvents(events)
    })),

  test("commitAll: projections run neither for a commit that is stored already nor for one that is refused", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
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
    })),

  ...["succeeds", "fails"].map((ending) =>
    test(`commitAll: until all projections have succeeded only they see the commit, which then ${ending}`, () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter
        const [events, inner] = [yield* stream(newId(), 1, 2), yield* stream(newId(), 1, 2)]
        const [old, saved] = [yield* snapshot(newId(), 1), yield* snapshot(newId(), 1)]
        const replacing = yield* snapshot(old.aggregateId, 2)
        yield* store.commitSnapshot(old)
        const reads: ReadonlyArray<Read> = [
          { read: store.getEvents(idOf(events), 1), before: [], after: events },
          { read: store.getEvents(idOf(inner), 1), before: [], after: inner },
          { read: store.getSnapshot(saved.aggregateId, 0), before: Option.none(), after: Option.some(saved) },
          { read: store.getSnapshot(old.aggregateId, 0), before: Option.some(old), after: Option.some(replacing) }
        ]
        const [started, go] = [yield* Deferred.make<void, unknown>(), yield* Deferred.make<void>()]
        const looking: Projection<unknown> = {
          name: "looking",
          project: ({ sequence }) =>
            Effect.gen(function* () {
              if (sequence === 1) return
              yield* store.commitAll(inner, [projecting(store.commitSnapshot(saved))])
              yield* store.commitSnapshot(replacing)
              for (const { after, read } of reads) expect(yield* read).toEqual(after)
              yield* Deferred.succeed(started, undefined)
              yield* Deferred.await(go)
              return yield* ending === "fails" ? Effect.fail("no") : Effect.void
            })
        }
        const committing = yield* Effect.fork(store.commitAll(events, [looking]))
        yield* Effect.raceFirst(Deferred.await(started), Fiber.join(committing))
        const readers = yield* Effect.forEach(reads, ({ read }) => Effect.fork(read))
        // In a store with one connection a reader outside the transaction waits for its end, or fails.
        const lacking = lacks.includes("concurrentReads")
        const whileOpen = Effect.forEach(readers, Fiber.await, { concurrency: "unbounded" })
        if (lacking) yield* Effect.timeoutOption(whileOpen, "100 millis")
        else yield* whileOpen
        const early = yield* Effect.forEach(readers, Fiber.poll)
        yield* Deferred.succeed(go, undefined)
        const exit = yield* Fiber.await(committing)
        expect(exit).toEqual(ending === "fails" ? Exit.fail("no") : Exit.void)
        for (const [index, reader] of readers.entries()) {
          const { after, before, read } = reads[index] as Read
          const answer = yield* Fiber.await(reader)
          if (Exit.isSuccess(answer)) {
            const mayBeThere = Option.isNone(early[index] ?? Option.none()) && ending === "succeeds"
            expect(mayBeThere ? [before, after] : [before]).toContainEqual(answer.value)
          } else expect(lacking && failureOf(answer)).toBeInstanceOf(StoreError)
          expect(yield* read).toEqual(ending === "fails" ? before : after)
        }
      }))
  ),

  test("commitAll: the commits of a projection are part of the same transaction", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const [inner, snapshotId] = [newId(), newId()]
      const cascading: Projection<unknown> = {
        name: "cascading",
        project: () =>
          Effect.gen(function* () {
            yield* store.commitEvents(yield* stream(inner, 1, 2))
            yield* store.commitSnapshot(yield* snapshot(snapshotId, 1))
            expect(yield* store.getEvents(inner, 1)).toHaveLength(2)
            // A refused commit inside the transaction does not end it.
            expect(yield* Effect.flip(store.commitEvents(yield* stream(inner, 2, 2)))).toBeInstanceOf(RetryCommand)
          })
      }
      const failing: Projection<string> = { name: "failing", project: () => Effect.fail("no") }
      const rolledBack = yield* stream(newId(), 1, 1)
      expect(yield* Effect.flip(store.commitAll(rolledBack, [cascading, failing]))).toBe("no")
      expect(yield* store.getEvents(inner, 1)).toEqual([])
      expect(yield* store.getSnapshot(snapshotId, 0)).toEqual(Option.none())
      yield* store.commitAll(rolledBack, [cascading])
      expect(yield* store.getEvents(inner, 1)).toHaveLength(2)
      expect(Option.isSome(yield* store.getSnapshot(snapshotId, 0))).toBe(true)
      expect(yield* store.getEvents(idOf(rolledBack), 1)).toEqual(rolledBack)
    })),

  test("commitAll: a failed commit inside a projection undoes only itself, and the projection can continue", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const [outer, before, after] = [
        yield* stream(newId(), 1, 1),
        yield* stream(newId(), 1, 1),
        yield* stream(newId(), 1, 1)
      ]
      const undone = yield* Effect.forEach(["fails", "dies", "is interrupted"] as const, (ending) =>
        Effect.gen(function* () {
          const [events, inner, saved] = [yield* stream(newId(), 1, 2), yield* stream(newId(), 1, 1), newId()]
          return { ending, events, inner, saved: yield* snapshot(saved, 1) }
        })
      )
      const nothingOf = ({ events, inner, saved }: (typeof undone)[number]) =>
        Effect.gen(function* () {
          expect(yield* store.getEvents(idOf(events), 1)).toEqual([])
          expect(yield* store.getEvents(idOf(inner), 1)).toEqual([])
          expect(yield* store.getSnapshot(saved.aggregateId, 0)).toEqual(Option.none())
        })
      const going: Projection<unknown> = {
        name: "going",
        project: () =>
          Effect.gen(function* () {
            yield* store.commitEvents(before)
            for (const one of undone) {
              const reached = yield* Deferred.make<void>()
              const ending =
                one.ending === "fails"
                  ? Effect.fail("no")
                  : one.ending === "dies"
                    ? Effect.die("defect")
                    : Effect.zipRight(Deferred.succeed(reached, undefined), Effect.never)
              const nested = store.commitAll<unknown, never>(one.events, [
                projecting(store.commitSnapshot(one.saved)),
                projecting(store.commitAll(one.inner, [passing])),
                projecting(ending)
              ])
              const fiber = yield* Effect.fork(nested)
              if (one.ending === "is interrupted") {
                yield* Effect.raceFirst(Deferred.await(reached), Fiber.join(fiber))
                yield* Fiber.interrupt(fiber)
              }
              const exit = yield* Fiber.await(fiber)
              if (one.ending === "is interrupted") expect(Exit.isInterrupted(exit)).toBe(true)
              else expect(exit).toEqual(one.ending === "fails" ? Exit.fail("no") : Exit.die("defect"))
              yield* nothingOf(one)
            }
            yield* store.commitAll(after, [passing])
          })
      }
      yield* store.commitAll(outer, [going])
      for (const one of undone) yield* nothingOf(one)
      for (const events of [outer, before, after]) {
        expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
      }
    })),

  ...["first", "last"].map((failsWhen) =>
    test(`commitAll: of the concurrent commits of a projection a failing one, which ends ${failsWhen}, undoes only itself`, () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter
        const [outer, kept, lost, plain] = [
          yield* stream(newId(), 1, 1),
          yield* stream(newId(), 1, 2),
          yield* stream(newId(), 1, 2),
          yield* stream(newId(), 1, 2)
        ]
        const saved = yield* snapshot(newId(), 1)
        const turns = (count: number) => Effect.repeatN(macrotask, count)
        const failing = projecting(Effect.zipRight(turns(failsWhen === "first" ? 2 : 20), Effect.fail("no")))
        const succeeding = projecting(turns(failsWhen === "first" ? 20 : 2))
        const concurrent = projecting(
          Effect.gen(function* () {
            const exits = yield* Effect.all(
              [
                store.commitAll(kept, [succeeding]),
                store.commitAll(lost, [failing]),
                store.commitEvents(plain),
                store.commitSnapshot(saved)
              ].map((commit: Effect.Effect<void, unknown>) => Effect.exit(commit)),
              { concurrency: "unbounded" }
            )
            expect(exits).toEqual([Exit.void, Exit.fail("no"), Exit.void, Exit.void])
          })
        )
        yield* store.commitAll(outer, [concurrent])
        expect(yield* store.getEvents(idOf(lost), 1)).toEqual([])
        for (const events of [outer, kept, plain]) {
          expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
        }
        expect(yield* store.getSnapshot(saved.aggregateId, 0)).toEqual(Option.some(saved))
      }))
  ),

  test("commitAll: of the concurrent commits of a projection at one sequence exactly one succeeds", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const id = newId()
      const racing = projecting(
        Effect.gen(function* () {
          const results = yield* Effect.forEach(
            Arr.range(1, 6),
            (index) =>
              Effect.flatMap(stream(id, 1, 1), (events) =>
                Effect.either(store.commitAll(events, index % 2 === 0 ? [] : [passing]))
              ),
            { concurrency: "unbounded" }
          )
          expect(results.filter(Either.isRight)).toHaveLength(1)
          for (const error of Arr.getLefts(results)) expect(error).toBeInstanceOf(RetryCommand)
        })
      )
      yield* store.commitAll(yield* stream(newId(), 1, 1), [racing])
      expect(yield* store.getEvents(id, 1)).toHaveLength(1)
    })),

  ...["succeeded", "failed"].map((ended) =>
    test(`commitAll: a fiber that a projection left running can't commit once the commit has ${ended}`, () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter
        const [outer, plain, projected] = [
          yield* stream(newId(), 1, 1),
          yield* stream(newId(), 1, 2),
          yield* stream(newId(), 1, 2)
        ]
        const saved = yield* snapshot(newId(), 1)
        const go = yield* Deferred.make<void>()
        const late: Array<Fiber.Fiber<void, unknown>> = []
        const leaving: Projection<unknown> = {
          name: "leaving",
          project: () =>
            Effect.gen(function* () {
              for (const commit of [
                store.commitEvents(plain),
                store.commitAll(projected, [passing]),
                store.commitSnapshot(saved)
              ] satisfies ReadonlyArray<Effect.Effect<void, unknown>>) {
                late.push(yield* Effect.forkDaemon(Effect.zipRight(Deferred.await(go), commit)))
              }
              return yield* ended === "failed" ? Effect.fail("no") : Effect.void
            })
        }
        const exit = yield* Effect.exit(store.commitAll(outer, [leaving]))
        expect(exit).toEqual(ended === "failed" ? Exit.fail("no") : Exit.void)
        // Other commits begin, which may use the connection of the ended transaction.
        const [started, end] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
        const holding = projecting(Effect.zipRight(Deferred.succeed(started, undefined), Deferred.await(end)))
        const others = yield* Effect.forEach(Arr.range(1, 5), () =>
          Effect.flatMap(stream(newId(), 1, 1), (events) => Effect.fork(store.commitAll(events, [holding])))
        )
        yield* Deferred.await(started)
        yield* Effect.sleep("20 millis")
        yield* Deferred.succeed(go, undefined)
        const ending = Effect.forEach(late, Fiber.await, { concurrency: "unbounded" })
        // A late commit may wait for these commits, so they end before its result is read.
        yield* Effect.timeoutOption(ending, "100 millis")
        yield* Deferred.succeed(end, undefined)
        const exits = yield* ending
        yield* Effect.forEach(others, Fiber.join)
        // A successful late commit would be lost, or would be part of the transaction of another commit.
        expect(exits.map(Exit.isSuccess)).toEqual([false, false, false])
        expect(yield* store.getEvents(idOf(plain), 1)).toEqual([])
        expect(yield* store.getEvents(idOf(projected), 1)).toEqual([])
        expect(yield* store.getSnapshot(saved.aggregateId, 0)).toEqual(Option.none())
        expect(yield* store.getEvents(idOf(outer), 1)).toEqual(ended === "failed" ? [] : outer)
        // The late commits do not block the next ones.
        yield* store.commitEvents(plain)
        yield* store.commitAll(projected, [passing])
      }))
  ),

  test("commitAll: of concurrent commits at one sequence exactly one succeeds, and only its projections have an effect", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const id = newId()
      const commits = yield* Effect.forEach(Arr.range(1, 10), () => stream(id, 1, 2))
      const results = yield* Effect.forEach(
        commits,
        (events) =>
          Effect.gen(function* () {
            const ran: Array<string> = []
            const projected = yield* stream(newId(), 1, 2)
            const keeping: Projection<unknown> = {
              name: "keeping",
              project: ({ sequence }) => store.commitEvents(projected.slice(sequence - 1, sequence))
            }
            const result = yield* Effect.either(store.commitAll(events, [recording(ran), keeping]))
            return { projected, ran, result }
          }),
        { concurrency: "unbounded" }
      )
      expect(results.filter(({ result }) => Either.isRight(result))).toHaveLength(1)
      for (const { projected, ran, result } of results) {
        // A store that finds conflicts at the end has run the projections of the refused commits too, and undone their
        // writes.
        if (Either.isRight(result)) expect(ran).toHaveLength(2)
        else expect(result.left).toBeInstanceOf(RetryCommand)
        expect(yield* store.getEvents(idOf(projected), 1)).toEqual(Either.isRight(result) ? projected : [])
      }
      expect(yield* store.getEvents(id, 1)).toEqual(commits[results.findIndex(({ result }) => Either.isRight(result))])
    }))
]

// --- internal ---

/** A read, and its results before and after a commit. */
interface Read {
  readonly read: Effect.Effect<unknown, unknown>
  readonly before: unknown
  readonly after: unknown
}
