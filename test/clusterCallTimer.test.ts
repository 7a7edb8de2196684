/** The timer of the calls of a client: when it wakes them, and what is left of it. */
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/TestClock"
import { vi } from "vitest"
import { type CallTimer, clockOf, makeCallTimer, nowOf } from "../src/internal/cluster/callTimer.js"
import { liveClock } from "../src/internal/runtime/clock.js"

/** Adds a call that is due after so many milliseconds. Returns a function that removes it. */
const add = (timer: CallTimer, woken: Array<number>, millis: number) =>
  Effect.withFiberRuntime<() => void>((fiber) => {
    const call = { due: nowOf(clockOf(fiber)) + millis, wake: () => void woken.push(millis) }
    timer.add(fiber, call)
    return Effect.succeed(() => timer.remove(fiber, call))
  })

/** The sleeps that the test clock still has to end. */
const sleeps = Effect.map(TestClock.sleeps(), (all) => [...all].length)

it.scoped("each call is woken once, when it is due, also where it was added after later ones", () =>
  Effect.gen(function* () {
    const [timer, woken] = [yield* makeCallTimer, [] as number[]]
    for (const millis of [3000, 5000, 1000, 4000]) yield* add(timer, woken, millis)
    yield* TestClock.adjust("999 millis")
    expect(woken).toEqual([])
    yield* TestClock.adjust("1 millis")
    expect(woken).toEqual([1000])
    yield* add(timer, woken, 500)
    yield* TestClock.adjust("3 seconds")
    expect(woken).toEqual([1000, 500, 3000, 4000])
    yield* TestClock.adjust("1 minute")
    expect(woken).toEqual([1000, 500, 3000, 4000, 5000])
  })
)

it.scoped("a call that was removed is not woken, and the others are", () =>
  Effect.gen(function* () {
    const [timer, woken] = [yield* makeCallTimer, [] as number[]]
    const remove = yield* add(timer, woken, 1000)
    yield* add(timer, woken, 2000)
    remove()
    yield* TestClock.adjust("1 minute")
    expect(woken).toEqual([2000])
  })
)

it.scoped("one fiber sleeps for all calls, and none when it has found no call", () =>
  Effect.gen(function* () {
    const [timer, woken] = [yield* makeCallTimer, [] as number[]]
    const removes = yield* Effect.forEach([1000, 1001, 1002, 1003], (millis) => add(timer, woken, millis))
    yield* Effect.yieldNow()
    expect(yield* sleeps).toBe(1)
    for (const remove of removes) remove()
    yield* TestClock.adjust("1 seconds")
    expect(yield* sleeps).toBe(0)
    yield* add(timer, woken, 1000)
    yield* TestClock.adjust("1 seconds")
    expect(woken).toEqual([1000])
  })
)

it.effect("when its scope closes each call is woken, so is one that comes later, and nothing is left", () =>
  Effect.gen(function* () {
    const scope = yield* Scope.make()
    const woken: number[] = []
    const timer = yield* Scope.extend(makeCallTimer, scope)
    yield* add(timer, woken, 1000)
    yield* Effect.yieldNow()
    expect(yield* sleeps).toBe(1)
    expect(timer.isClosed()).toBe(false)
    yield* Scope.close(scope, Exit.void)
    expect(timer.isClosed()).toBe(true)
    expect(woken).toEqual([1000])
    yield* add(timer, woken, 2000)
    expect(woken).toEqual([1000, 2000])
    yield* TestClock.adjust("1 minute")
    expect(woken).toEqual([1000, 2000])
  })
)

it.scoped("calls of different clocks are woken by their own", () =>
  Effect.gen(function* () {
    const [timer, tested, live] = [yield* makeCallTimer, [] as number[], [] as number[]]
    yield* add(timer, tested, 1000)
    yield* Effect.withClock(add(timer, live, 1), liveClock)
    yield* Effect.promise(() => vi.waitFor(() => expect(live).toEqual([1])))
    expect(tested).toEqual([])
    yield* TestClock.adjust("1 seconds")
    expect(tested).toEqual([1000])
  })
)
