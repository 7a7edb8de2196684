/** The fair lock, without a store: its order, and interruptions at every moment. */
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Random from "effect/Random"
import { type FairLock, grantNext, unlock, withLock } from "../src/internal/aggregate/fairLock.js"

it.effect("a free lock is acquired without waiting", () =>
  Effect.sync(() => {
    const lock = makeLock()
    expect(Effect.runSync(locking(lock, Effect.succeed("done")))).toBe("done")
    expect(lock).toEqual(makeLock())
  })
)

it.effect("requests are granted in order of arrival", () =>
  Effect.gen(function* () {
    const lock = makeLock()
    const order: Array<number> = []
    const go = yield* Deferred.make<void>()
    const first = yield* request(lock, Deferred.await(go))
    const others = yield* Effect.forEach(Arr.range(1, 20), (number) =>
      request(
        lock,
        Effect.zipRight(
          Effect.yieldNow(),
          Effect.sync(() => order.push(number))
        )
      )
    )
    expect(lock.requests?.size).toBe(20)
    yield* Deferred.succeed(go, undefined)
    yield* Fiber.join(first)
    yield* Effect.forEach(others, Fiber.join)
    expect(order).toEqual(Arr.range(1, 20))
    expect(lock).toEqual(makeLock())
  })
)

it.effect("the lock stays locked from one holder to the next, so a new request waits behind the others", () =>
  Effect.gen(function* () {
    const lock = makeLock()
    const order: Array<string> = []
    const note = (name: string) => Effect.sync(() => order.push(name))
    lock.isLocked = true
    const waiting = yield* request(lock, note("waiting"))
    expect(grantNext(lock)).toBe(true)
    // The fiber that waited has the lock, and has not run yet.
    expect(lock).toEqual({ isLocked: true, requests: new Set() })
    yield* locking(lock, note("late"))
    yield* Fiber.join(waiting)
    expect(order).toEqual(["waiting", "late"])
  })
)

it.effect("work that fails or dies releases the lock by its own means, and the next request is granted", () =>
  Effect.gen(function* () {
    const lock = makeLock()
    const exits = yield* Effect.forEach(
      [Effect.fail("no"), Effect.die("defect"), Effect.interrupt, Effect.succeed(1)],
      (work) => Effect.exit(locking(lock, work)),
      { concurrency: "unbounded" }
    )
    expect(exits.map(Exit.isSuccess)).toEqual([false, false, false, true])
    expect(lock).toEqual(makeLock())
  })
)

it.effect("an interrupted request leaves the queue, and those after it move up", () =>
  Effect.gen(function* () {
    const lock = makeLock()
    const go = yield* Deferred.make<void>()
    const holder = yield* request(lock, Deferred.await(go))
    const [second, third] = [yield* request(lock, Effect.succeed(2)), yield* request(lock, Effect.succeed(3))]
    expect(Exit.isInterrupted(yield* Fiber.interrupt(second))).toBe(true)
    expect(lock.requests?.size).toBe(1)
    yield* Deferred.succeed(go, undefined)
    yield* Fiber.join(holder)
    expect(yield* Fiber.join(third)).toBe(3)
    expect(lock).toEqual(makeLock())
  })
)

for (const order of ["before", "after"] as const) {
  it.effect(`an interruption in the same moment, ${order} the grant, releases the lock to the next request`, () =>
    Effect.gen(function* () {
      const lock = makeLock()
      lock.isLocked = true
      let ran = false
      const interrupted = yield* request(
        lock,
        Effect.sync(() => {
          ran = true
        })
      )
      const next = yield* request(lock, Effect.succeed("next"))
      const grant = Effect.sync(() => expect(grantNext(lock)).toBe(true))
      // Neither of the waiting fibers runs between the two.
      const both = [grant, interruptNow(interrupted)]
      yield* Effect.all(order === "after" ? both : both.reverse(), { discard: true })
      const exit = yield* Fiber.await(interrupted)
      expect(Exit.isInterrupted(exit)).toBe(true)
      expect(ran).toBe(false)
      expect(yield* Fiber.join(next)).toBe("next")
      expect(lock).toEqual(makeLock())
    })
  )
}

const seed = Math.floor(Math.random() * 2 ** 31)

it.effect(`100 requests, some interrupted at random moments, never share the lock or lose it (seed ${seed})`, () =>
  Effect.gen(function* () {
    const lock = makeLock()
    let holders = 0
    let finished = 0
    const work = Effect.acquireUseRelease(
      Effect.sync(() => expect(++holders).toBe(1)),
      () => Effect.flatMap(Random.nextIntBetween(0, 4), (turns) => Effect.repeatN(Effect.yieldNow(), turns)),
      () => Effect.sync(() => holders--)
    )
    const fibers = yield* Effect.forEach(Arr.range(1, 100), () =>
      Effect.flatMap(Random.nextIntBetween(0, 6), (turns) =>
        Effect.fork(Effect.zipRight(Effect.repeatN(Effect.yieldNow(), turns), locking(lock, work)))
      )
    )
    yield* Effect.forEach(fibers, (fiber) =>
      Effect.flatMap(Random.nextIntBetween(0, 3), (choice) =>
        choice === 0 ? Fiber.interruptFork(fiber) : Effect.repeatN(Effect.yieldNow(), choice)
      )
    )
    for (const fiber of fibers) if (Exit.isSuccess(yield* Fiber.await(fiber))) finished++
    expect(finished).toBeGreaterThan(0)
    expect(lock).toEqual(makeLock())
  }).pipe(Effect.withRandom(Random.make(seed)))
)

const makeLock = (): FairLock => ({ isLocked: false, requests: undefined })

const release = (lock: FairLock): Effect.Effect<void> =>
  Effect.sync(() => {
    if (!grantNext(lock)) unlock(lock)
  })

/** Runs interruptible work with the lock, and releases the lock afterwards. */
const locking = <A, E>(lock: FairLock, work: Effect.Effect<A, E>): Effect.Effect<A, E> =>
  withLock(
    () => lock,
    release,
    (_, restore) => Effect.ensuring(restore(work), release(lock))
  )

/** A fiber that has requested the lock. */
const request = <A, E>(lock: FairLock, work: Effect.Effect<A, E>): Effect.Effect<Fiber.RuntimeFiber<A, E>> =>
  Effect.zipLeft(Effect.fork(locking(lock, work)), Effect.repeatN(Effect.yieldNow(), 3))

/** Sends an interruption without running the fiber. */
const interruptNow = (fiber: Fiber.RuntimeFiber<unknown, unknown>): Effect.Effect<void> =>
  Effect.fiberIdWith((id) => Effect.sync(() => fiber.unsafeInterruptAsFork(id)))
