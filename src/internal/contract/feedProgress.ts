/**
 * The contract of checkpoints: how a holder moves on, a case to a sentence.
 */
import { expect } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import { beginning, order } from "../../EventFeed.js"
import type { Lease } from "../../SubscriptionStore.js"
import { failureOf, newId, passing, stream, test } from "./case.js"
import {
  at,
  briefly,
  commitShown,
  endedWithin,
  eventsOf,
  type FeedCase,
  failureAt,
  leaseOf,
  ports,
  readOn,
  shown,
  sqlClient,
  take
} from "./feedCase.js"

export const feedProgressCases: ReadonlyArray<FeedCase> = [
  test("pass, advance: they store the checkpoint, which is a position of the feed", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const all = yield* ports
        const { feed, subscriptions } = all
        const name = newId()
        const events = yield* commitShown(all, 4)
        const { lease } = yield* take(subscriptions, leaseOf(name))
        for (const [index, { position }] of events.entries()) {
          let ran = 0
          yield* index % 2 === 0
            ? lease.advanceTo(position)
            : lease.advance(
                position,
                Effect.sync(() => {
                  ran++
                })
              )
          expect(ran).toBe(index % 2)
          const checkpoint = yield* lease.checkpoint
          expect(checkpoint).toBe(position)
          expect(order(checkpoint, at(events, 0).position)).toBe(index === 0 ? 0 : 1)
          expect(yield* subscriptions.partitions(name)).toMatchObject([{ position }])
          const rest = yield* readOn(feed, { after: checkpoint })
          expect(eventsOf(rest, [at(events, 0).aggregateId])).toEqual(events.slice(index + 1))
        }
      })
    )),

  test("advance: an effect that fails, dies or is interrupted comes back unchanged, and the checkpoint stays", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const all = yield* ports
        const { subscriptions } = all
        const events = yield* commitShown(all, 2)
        const [first, second] = [at(events, 0).position, at(events, 1).position]
        const { lease } = yield* take(subscriptions, leaseOf(newId()))
        yield* lease.advanceTo(first)
        const failure = { reason: "not today" }
        expect(yield* Effect.flip(lease.advance(second, Effect.fail(failure)))).toStrictEqual(failure)
        expect(yield* lease.checkpoint).toBe(first)
        expect(yield* Effect.exit(lease.advance(second, Effect.die("defect")))).toEqual(Exit.die("defect"))
        expect(yield* lease.checkpoint).toBe(first)
        const began = yield* Deferred.make<void>()
        const hanging = yield* Effect.fork(
          lease.advance(second, Effect.zipRight(Deferred.succeed(began, undefined), Effect.never))
        )
        yield* Deferred.await(began)
        expect(Exit.isInterrupted(yield* Fiber.interrupt(hanging))).toBe(true)
        expect(yield* lease.checkpoint).toBe(first)
        yield* lease.advance(second, Effect.void)
        expect(yield* lease.checkpoint).toBe(second)
      })
    )),

  test("advance: the effect runs with the services of its caller", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const all = yield* ports
        const { position } = at(yield* commitShown(all, 1), 0)
        const { lease } = yield* take(all.subscriptions, leaseOf(newId()))
        let seen = ""
        const looking = Effect.map(Caller, (caller) => {
          seen = caller
        })
        yield* Effect.provideService(lease.advance(position, looking), Caller, "this one")
        expect(seen).toBe("this one")
      })
    )),

  test("advance: events that its effect commits are stored with the checkpoint, and the feed shows them", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const all = yield* ports
        const { feed, store, subscriptions } = all
        const { position } = at(yield* commitShown(all, 1), 0)
        const { lease } = yield* take(subscriptions, leaseOf(newId()))
        const [plain, projected] = [yield* stream(newId(), 1, 2), yield* stream(newId(), 1, 1)]
        const ids = [at(plain, 0).aggregateId, at(projected, 0).aggregateId]
        const waiting = yield* Effect.fork(shown(feed, { after: position }, ids, 3))
        yield* lease.advance(
          position,
          Effect.zipRight(store.commitEvents(plain), store.commitAll(projected, [passing]))
        )
        expect((yield* Fiber.join(waiting)).map(({ timestamp }) => timestamp)).toEqual(
          [...plain, ...projected].map(({ timestamp }) => timestamp)
        )
      })
    )),

  ...(["fails", "dies", "is interrupted"] as const).map((ending) =>
    test(
      `advance: events that an effect which ${ending} has committed are undone, and never shown`,
      () =>
        Effect.scoped(
          Effect.gen(function* () {
            const all = yield* ports
            const { feed, store, subscriptions } = all
            const { position } = at(yield* commitShown(all, 1), 0)
            const { lease } = yield* take(subscriptions, leaseOf(newId()))
            const [plain, projected] = [yield* stream(newId(), 1, 2), yield* stream(newId(), 1, 1)]
            const began = yield* Deferred.make<void>()
            const failing = store
              .commitEvents(plain)
              .pipe(
                Effect.zipRight(store.commitAll(projected, [passing])),
                Effect.zipRight(Deferred.succeed(began, undefined)),
                Effect.zipRight(
                  ending === "fails" ? Effect.fail("no") : ending === "dies" ? Effect.die("no") : Effect.never
                )
              )
            const fiber = yield* Effect.fork(lease.advance(position, failing))
            yield* Deferred.await(began)
            const exit = yield* ending === "is interrupted" ? Fiber.interrupt(fiber) : Fiber.await(fiber)
            expect(Exit.isFailure(exit)).toBe(true)
            const ids = [at(plain, 0).aggregateId, at(projected, 0).aggregateId]
            for (const id of ids) expect(yield* store.getEvents(id, 1)).toEqual([])
            expect(yield* lease.checkpoint).toBe(beginning)
            // Nor do they hold up what comes after.
            const next = yield* commitShown(all, 1)
            expect(next).toHaveLength(1)
            expect(eventsOf(yield* readOn(feed, { after: position }), ids)).toEqual([])
            yield* lease.advance(position, store.commitEvents(plain))
            expect(yield* store.getEvents(at(ids, 0), 1)).toEqual(plain)
          })
        ),
      "transactionalEffects"
    )
  ),

  test(
    "advance: until its effect has ended the checkpoint is the one before",
    () =>
      Effect.scoped(
        Effect.gen(function* () {
          const all = yield* ports
          const { subscriptions } = all
          const name = newId()
          const { position } = at(yield* commitShown(all, 1), 0)
          const { lease } = yield* take(subscriptions, leaseOf(name))
          const [inside, leave] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
          const advancing = yield* Effect.fork(
            lease.advance(position, Effect.zipRight(Deferred.succeed(inside, undefined), Deferred.await(leave)))
          )
          yield* Deferred.await(inside)
          const reached = yield* Effect.fork(subscriptions.awaitPosition(name, position))
          expect(yield* subscriptions.partitions(name)).toMatchObject([{ position: beginning }])
          expect(yield* endedWithin(reached, briefly)).toEqual(Option.none())
          yield* Deferred.succeed(leave, undefined)
          yield* Fiber.join(advancing)
          yield* Fiber.join(reached)
          expect(yield* subscriptions.partitions(name)).toMatchObject([{ position }])
        })
      ),
    "concurrentReads"
  ),

  test(
    "caller's transaction: advance, pass, failing and stop share its fate",
    () =>
      Effect.scoped(
        Effect.gen(function* () {
          const all = yield* ports
          const { store, subscriptions } = all
          const sql = yield* sqlClient
          const name = newId()
          const events = yield* commitShown(all, 2)
          const [first, second] = [at(events, 0), at(events, 1)]
          const { lease } = yield* take(subscriptions, leaseOf(name))
          const undone = yield* stream(newId(), 1, 1)
          const operations: ReadonlyArray<Effect.Effect<void, unknown>> = [
            lease.advanceTo(second.position),
            lease.advance(second.position, store.commitEvents(undone)),
            lease.recordFailure(failureAt(second)),
            lease.stop(failureAt(second))
          ]
          for (const operation of operations) {
            const exit = yield* Effect.exit(sql.withTransaction(Effect.zipRight(operation, Effect.fail("rolled back"))))
            expect(failureOf(exit)).toBe("rolled back")
          }
          const before = { position: beginning, stopped: false, lastFailure: Option.none() }
          expect(yield* subscriptions.partitions(name)).toMatchObject([before])
          expect(yield* store.getEvents(at(undone, 0).aggregateId, 1)).toEqual([])
          yield* sql.withTransaction(
            Effect.gen(function* () {
              yield* lease.advanceTo(first.position)
              expect(yield* lease.checkpoint).toBe(first.position)
              yield* lease.advance(second.position, store.commitEvents(undone))
              yield* lease.recordFailure(failureAt(second))
            })
          )
          expect(yield* subscriptions.partitions(name)).toMatchObject([
            { position: second.position, lastFailure: Option.some(failureAt(second)) }
          ])
          expect(yield* store.getEvents(at(undone, 0).aggregateId, 1)).toEqual(undone)
        })
      ),
    "callerTransaction"
  ),

  test("attempt, failing: the next holder finds the attempts, until the checkpoint moves on or the failure is taken off", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const all = yield* ports
        const { subscriptions } = all
        const name = newId()
        const events = yield* commitShown(all, 2)
        const [first, second] = [at(events, 0), at(events, 1)]
        const attempts = { position: first.position, attempts: 2 }
        const found = (change: (lease: Lease) => Effect.Effect<void, unknown>) =>
          Effect.scoped(
            Effect.flatMap(subscriptions.lease(leaseOf(name)), (lease) => Effect.as(change(lease), lease.attempts))
          )
        expect(yield* found((lease) => lease.recordAttempt(attempts))).toEqual(Option.none())
        expect(yield* found((lease) => lease.recordAttempt({ ...attempts, attempts: 3 }))).toEqual(
          Option.some(attempts)
        )
        expect(yield* found((lease) => lease.advanceTo(first.position))).toEqual(
          Option.some({ ...attempts, attempts: 3 })
        )
        expect(yield* found((lease) => lease.recordFailure({ ...failureAt(second), attempts: 5 }))).toEqual(
          Option.none()
        )
        const ofFailure = { position: second.position, attempts: 5 }
        expect(yield* found((lease) => lease.recordFailure(undefined))).toEqual(Option.some(ofFailure))
        expect(yield* found((lease) => lease.recordAttempt(ofFailure))).toEqual(Option.none())
        expect(yield* found((lease) => lease.advance(second.position, Effect.void))).toEqual(Option.some(ofFailure))
        expect(yield* found(() => Effect.void)).toEqual(Option.none())
      })
    )),

  test("resume: the attempts at the event that a subscription stopped at are counted anew", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const all = yield* ports
        const { subscriptions } = all
        const name = newId()
        const one = at(yield* commitShown(all, 1), 0)
        yield* Effect.scoped(
          Effect.flatMap(subscriptions.lease(leaseOf(name)), (lease) =>
            Effect.zipRight(lease.recordFailure(failureAt(one)), lease.stop(failureAt(one)))
          )
        )
        yield* subscriptions.resume(name)
        const { lease } = yield* take(subscriptions, leaseOf(name))
        expect(lease.attempts).toEqual(Option.none())
        expect(lease.isTakenOver).toBe(false)
      })
    )),

  test("failing: the last failure is kept as it is, and can be taken off", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const all = yield* ports
        const { subscriptions } = all
        const name = newId()
        const events = yield* commitShown(all, 2)
        const { lease } = yield* take(subscriptions, leaseOf(name))
        const failures = [
          failureAt(at(events, 0), "first"),
          { ...failureAt(at(events, 1), "\ufeffsecond 🎉 '\"\\ {a,b}\n\t"), aggregateId: "\ufeffa'\"", type: "\ufefft" }
        ]
        for (const failure of failures) {
          yield* lease.recordFailure(failure)
          expect(yield* subscriptions.partitions(name)).toMatchObject([
            { stopped: false, lastFailure: Option.some(failure) }
          ])
        }
        yield* lease.recordFailure(undefined)
        expect(yield* subscriptions.partitions(name)).toMatchObject([{ lastFailure: Option.none() }])
        expect(yield* lease.checkpoint).toBe(beginning)
      })
    ))
]

// --- internal ---

class Caller extends Context.Reference<Caller>()("effect-maestro/FeedContract/Caller", {
  defaultValue: () => "another one"
}) {}
