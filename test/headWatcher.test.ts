/** The head watcher: which signals wake which waiters, with how many polls, and at what pace. */
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type { Filter, Position } from "../src/EventFeed.js"
import { type HeadChange, makeHeadWatcher } from "../src/internal/sql/headWatcher.js"
import type { Signal } from "../src/internal/sql/signal.js"
import { macrotask } from "./nodes.js"
import { eventually } from "./subscribers.js"

const at = (text: string): Position => text as Position
const start = at("5-1")

const ofA: Filter = { types: ["A"] }
const ofB: Filter = { types: ["B"] }
const signalOf = (type: string, isOpen = false): Signal => ({ contents: { types: [type], kinds: ["Kind"] }, isOpen })
const unknown: Signal = { contents: undefined, isOpen: false }

/** A watcher whose polls the test answers, and whose signals the test sends. */
const aWatcher = (pollInterval: number) =>
  Effect.gen(function* () {
    let signal: (signal: Signal) => void = () => {}
    let polls = 0
    let change: HeadChange = { head: start, contents: { types: [], kinds: [] }, more: false }
    let hangs = false
    const watcher = yield* makeHeadWatcher(
      () =>
        Effect.suspend(() => {
          polls++
          return hangs ? Effect.never : Effect.succeed(change)
        }),
      {
        onCommit: (wake) => {
          signal = wake
          return () => {}
        },
        listen: () => Effect.never
      },
      pollInterval
    )
    const wait = (filter?: Filter, after = start) => Effect.fork(watcher.awaitAppend(after, filter))
    const polled = (least: number) =>
      eventually(
        Effect.sync(() => polls),
        (count) => count >= least
      )
    return {
      ...watcher,
      send: (sent: Signal) => signal(sent),
      polls: () => polls,
      polled,
      /** Waits with that filter, until a poll of the watcher is under way that never ends. */
      waitAtPoll: (filter: Filter) =>
        Effect.gen(function* () {
          const fiber = yield* wait(filter)
          yield* polled(1)
          hangs = true
          yield* polled(polls + 1)
          return fiber
        }),
      wait,
      show: (head: string, type: string) => {
        change = { head: at(head), contents: { types: [type], kinds: ["Kind"] }, more: false }
      }
    }
  })

const hour = 3_600_000
const isWaiting = (fiber: Fiber.RuntimeFiber<unknown, unknown>) =>
  Effect.zipRight(Effect.zipRight(macrotask, macrotask), Effect.map(Fiber.poll(fiber), Option.isNone))

it.scopedLive("a signal wakes the waiters that it may concern, without a poll, also while a poll is under way", () =>
  Effect.gen(function* () {
    const watcher = yield* aWatcher(hour)
    const a = yield* watcher.waitAtPoll(ofA)
    const b = yield* watcher.wait(ofB)
    const all = yield* watcher.wait()
    yield* macrotask
    watcher.send(signalOf("A"))
    expect(yield* Fiber.join(a)).toBe(start)
    expect(yield* Fiber.join(all)).toBe(start)
    expect(yield* isWaiting(b)).toBe(true)
    watcher.send(signalOf("B"))
    expect(yield* Fiber.join(b)).toBe(start)
  })
)

it.scopedLive("signals that concern no waiter cause no poll and no wake-up", () =>
  Effect.gen(function* () {
    const watcher = yield* aWatcher(hour)
    const waiters = yield* Effect.forEach(Arr.range(0, 9), () => watcher.wait(ofA))
    // The next poll without a signal is more than two seconds away then.
    yield* watcher.polled(6)
    const before = watcher.polls()
    for (let count = 0; count < 1000; count++) watcher.send(signalOf("B"))
    for (const waiter of waiters) expect(yield* isWaiting(waiter)).toBe(true)
    expect(watcher.polls()).toBe(before)
  })
)

it.scopedLive("a signal of unknown events causes a poll, which wakes the waiters that the events may concern", () =>
  Effect.gen(function* () {
    const watcher = yield* aWatcher(hour)
    const a = yield* watcher.wait(ofA)
    const b = yield* watcher.wait(ofB)
    yield* watcher.polled(1)
    watcher.show("6-1", "A")
    watcher.send(unknown)
    expect(yield* Fiber.join(a)).toBe(start)
    expect(yield* isWaiting(b)).toBe(true)
  })
)

it.scopedLive("a signal of an open transaction wakes no waiter, and the events are found by a poll", () =>
  Effect.gen(function* () {
    const watcher = yield* aWatcher(hour)
    const a = yield* watcher.wait(ofA)
    yield* watcher.polled(1)
    watcher.send(signalOf("A", true))
    expect(yield* isWaiting(a)).toBe(true)
    watcher.show("6-1", "A")
    expect(yield* Fiber.join(a)).toBe(start)
  })
)

it.scopedLive("a signal wakes a waiter whose read began before it, and no waiter whose read began after it", () =>
  Effect.gen(function* () {
    const watcher = yield* aWatcher(hour)
    const first = yield* watcher.wait(ofA)
    yield* watcher.polled(1)
    const begun = watcher.signals()
    watcher.endRead(start, begun)
    yield* Fiber.interrupt(first)
    watcher.send(signalOf("A"))
    watcher.send(signalOf("C"))
    expect(watcher.signals()).toBe(begun + 2)
    const other = yield* watcher.wait(ofB)
    expect(yield* isWaiting(other)).toBe(true)
    expect(yield* Fiber.join(yield* watcher.wait(ofA))).toBe(start)
    watcher.endRead(start, watcher.signals())
    expect(yield* isWaiting(yield* watcher.wait(ofA))).toBe(true)
  })
)

it.scopedLive("without a signal the events are found at the poll interval, and the position passes over others", () =>
  Effect.gen(function* () {
    const watcher = yield* aWatcher(20)
    const a = yield* watcher.wait(ofA)
    yield* watcher.polled(1)
    watcher.show("6-1", "B")
    yield* watcher.polled(watcher.polls() + 2)
    expect(yield* isWaiting(a)).toBe(true)
    watcher.show("7-1", "A")
    expect(yield* Fiber.join(a)).toBe("6-1")
  })
)

it.scopedLive("a burst of signals wakes in batches, of which each takes 15 milliseconds of the pace", () =>
  Effect.gen(function* () {
    const watcher = yield* aWatcher(hour)
    yield* Fiber.interrupt(yield* Effect.zipLeft(watcher.wait(ofA), watcher.polled(1)))
    let wakes = 0
    const reader = Effect.suspend(() => {
      const begun = watcher.signals()
      wakes++
      watcher.endRead(start, begun)
      return watcher.awaitAppend(start, ofA)
    })
    const began = performance.now()
    yield* Effect.fork(Effect.forever(reader))
    for (let count = 0; count < 2000; count++) {
      watcher.send(signalOf("A"))
      yield* macrotask
    }
    const batches = (performance.now() - began + 75) / 15
    expect(wakes).toBeGreaterThan(1)
    // The first read, and one wake-up that was due before.
    expect(wakes).toBeLessThan(batches + 3)
  })
)
