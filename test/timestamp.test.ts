/** Hybrid logical time. */
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Clock from "effect/Clock"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as FastCheck from "effect/FastCheck"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/TestClock"
import { Timestamp } from "effect-maestro"

const take = (clock: Timestamp.HybridClockService, count: number) =>
  Effect.forEach(Arr.range(1, count), () => clock.now)

const risesAndIsUnique = (timestamps: ReadonlyArray<Timestamp.Timestamp>) => {
  expect([...timestamps].sort()).toEqual(timestamps)
  expect(new Set(timestamps).size).toBe(timestamps.length)
  expect(timestamps.every(Timestamp.isTimestamp)).toBe(true)
}

it.prop(
  "a timestamp of parts is a UUIDv7, has these parts, and sorts as its text",
  [partsArbitrary(), partsArbitrary()],
  ([a, b]) => {
    const [first, second] = [Timestamp.fromParts(a), Timestamp.fromParts(b)]
    expect(Timestamp.toParts(first)).toEqual(a)
    expect(Timestamp.isTimestamp(first)).toBe(true)
    expect(first).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
    const order = (parts: Timestamp.Parts) =>
      (BigInt(parts.millis) << 74n) | (BigInt(parts.counter) << 62n) | parts.node
    expect(first < second).toBe(order(a) < order(b))
    expect(Timestamp.toMillis(first)).toBe(a.millis)
  }
)

it.effect("has the time of the wall clock, which is TestClock here", () =>
  Effect.gen(function* () {
    yield* TestClock.setTime(1_700_000_000_000)
    const { now } = Timestamp.make()
    expect(DateTime.formatIso(Timestamp.toDateTime(yield* now))).toBe("2023-11-14T22:13:20.000Z")
    yield* TestClock.adjust("1 second")
    expect(Timestamp.toMillis(yield* now)).toBe(1_700_000_001_000)
  })
)

it.effect("rises under a stalled clock, past the end of the counter", () =>
  Effect.gen(function* () {
    const clock = Timestamp.make()
    yield* TestClock.setTime(1000)
    const timestamps = yield* take(clock, 10_000)
    risesAndIsUnique(timestamps)
    const last = Timestamp.toParts(timestamps.at(-1) ?? (yield* Effect.die("none")))
    // The counter has 4096 values for each millisecond.
    expect([last.millis, last.counter]).toEqual([1002, 10_000 - 2 * 4096 - 1])
  })
)

it.effect("rises when the clock jumps back, and follows the clock again after it has caught up", () =>
  Effect.gen(function* () {
    const clock = Timestamp.make()
    yield* TestClock.setTime(500_000)
    const before = yield* take(clock, 3)
    yield* TestClock.setTime(100)
    const during = yield* take(clock, 5000)
    yield* TestClock.setTime(600_000)
    const after = yield* take(clock, 3)
    risesAndIsUnique([...before, ...during, ...after])
    expect(Timestamp.toMillis(after[0] ?? (yield* Effect.die("none")))).toBe(600_000)
  })
)

it.effect.prop(
  "rises and stays unique on several nodes that receive each other's timestamps, for any wall clocks",
  [
    FastCheck.array(
      FastCheck.record({
        node: FastCheck.nat(2),
        time: FastCheck.integer({ min: 0, max: 1_000_000 }),
        hears: FastCheck.boolean()
      }),
      { maxLength: 100 }
    )
  ],
  ([steps]) =>
    Effect.gen(function* () {
      const nodes = Arr.makeBy(3, (node) => Timestamp.make({ node: BigInt(node), maxDrift: "1 day" }))
      const given = new Map<Timestamp.HybridClockService, Array<Timestamp.Timestamp>>()
      const all: Array<Timestamp.Timestamp> = []
      for (const { hears, node, time } of steps) {
        const clock = nodes[node] ?? Timestamp.make()
        yield* TestClock.setTime(time)
        const last = all.at(-1)
        if (hears && last !== undefined) yield* clock.receive(last)
        const next = yield* clock.now
        if (hears && last !== undefined) expect(next > last).toBe(true)
        given.set(clock, [...(given.get(clock) ?? []), next])
        all.push(next)
      }
      expect(new Set(all).size).toBe(all.length)
      for (const timestamps of given.values()) risesAndIsUnique(timestamps)
    })
)

it.effect("a ClockDrift under TestClock names TestClock and the remedy, and under a live clock the wrong node", () =>
  Effect.gen(function* () {
    yield* TestClock.setTime(86_400_000)
    const ahead = Timestamp.fromParts({ millis: 1_700_000_000_000, counter: 0, node: 1n })
    const error = yield* Effect.flip(Timestamp.make().receive(ahead))
    expect(error.message).toContain("this clock is TestClock, which stands at 1970-01-02T00:00:00.000Z")
    expect(error.message).toContain("Set it by TestClock.setTime")
    expect(error.message).not.toContain("the clock of a node is wrong")
    // A time beyond the range of dates.
    yield* TestClock.setTime(-1e300)
    expect((yield* Effect.flip(Timestamp.make().receive(ahead))).message).toContain("1970-01-01T00:00:00.000Z")
    const far = Timestamp.fromParts({ millis: 2 ** 47, counter: 0, node: 1n })
    const live = yield* Effect.flip(Effect.withClock(Timestamp.make().receive(far), Clock.make()))
    expect(live.message).toContain("the clock of a node is wrong")
    expect(live.message).not.toContain("TestClock")
  })
)

it.effect("refuses a timestamp that is more than maxDrift ahead, and does not change the clock", () =>
  Effect.gen(function* () {
    const [clock, other] = [Timestamp.make({ maxDrift: "1 minute" }), Timestamp.make()]
    yield* TestClock.setTime(1_000_000)
    const [ok, bad] = [
      Timestamp.fromParts({ millis: 1_060_000, counter: 7, node: 1n }),
      Timestamp.fromParts({ millis: 1_060_001, counter: 0, node: 1n })
    ]
    expect(yield* Effect.flip(clock.receive(bad))).toMatchObject({ _tag: "StoreError", reason: "ClockDrift" })
    expect(Timestamp.toMillis(yield* clock.now)).toBe(1_000_000)
    yield* clock.receive(ok)
    const next = yield* clock.now
    expect([Timestamp.toParts(next).millis, Timestamp.toParts(next).counter]).toEqual([1_060_000, 8])
    // The default of maxDrift is an hour.
    expect(
      Either.isRight(
        yield* Effect.either(other.receive(Timestamp.fromParts({ millis: 4_600_000, counter: 0, node: 1n })))
      )
    ).toBe(true)
    expect(
      Either.isLeft(
        yield* Effect.either(other.receive(Timestamp.fromParts({ millis: 4_600_001, counter: 0, node: 1n })))
      )
    ).toBe(true)
  })
)

it.effect("a node whose clock jumped back still accepts its own timestamps", () =>
  Effect.gen(function* () {
    const clock = Timestamp.make({ maxDrift: "1 minute" })
    yield* TestClock.setTime(10_000_000)
    const own = yield* clock.now
    yield* TestClock.setTime(0)
    yield* clock.receive(own)
    expect((yield* clock.now) > own).toBe(true)
  })
)

it.effect("every clock has a node of its own, and every TestClock a time line of its own", () =>
  Effect.gen(function* () {
    const ids = yield* Effect.forEach(Arr.range(1, 100), () => Timestamp.make().now)
    expect(new Set(ids.map((id) => Timestamp.toParts(id).node)).size).toBe(100)
    const { now } = yield* Timestamp.HybridClock
    const inTest = yield* now
    const live = yield* Effect.withClock(now, Clock.make())
    expect(Timestamp.toMillis(inTest)).toBe(0)
    expect(Timestamp.toMillis(live)).toBeGreaterThan(1_700_000_000_000)
    expect(Timestamp.toMillis(yield* now)).toBe(0)
  })
)

it.effect("layerWith sets the node", () =>
  Effect.gen(function* () {
    const { now } = yield* Timestamp.HybridClock
    expect(Timestamp.toParts(yield* now).node).toBe(42n)
  }).pipe(Effect.provide(Timestamp.layerWith({ node: 42n })))
)

it("the schema refuses any text but a UUIDv7 in lower case", () => {
  const is = Schema.is(Timestamp.Timestamp)
  expect(is("018bcfe5-6800-7000-8000-000000000001")).toBe(true)
  for (const text of [
    "",
    "018BCFE5-6800-7000-8000-000000000001",
    "018bcfe5-6800-4000-8000-000000000001",
    "018bcfe568007000800000000000001",
    "018bcfe5-6800-7000-0000-000000000001",
    " 018bcfe5-6800-7000-8000-000000000001"
  ]) {
    expect(is(text), text).toBe(false)
  }
})

function partsArbitrary(): FastCheck.Arbitrary<Timestamp.Parts> {
  return FastCheck.record({
    millis: FastCheck.integer({ min: 0, max: 2 ** 48 - 1 }),
    counter: FastCheck.integer({ min: 0, max: 4095 }),
    node: FastCheck.bigInt({ min: 0n, max: 2n ** 62n - 1n })
  })
}
