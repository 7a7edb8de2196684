/** What the test kit takes for equal. */
import { it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as Data from "effect/Data"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import * as Hash from "effect/Hash"
import * as HashMap from "effect/HashMap"
import * as HashSet from "effect/HashSet"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { Aggregate } from "effect-maestro"
import * as AggregateTest from "effect-maestro/AggregateTest"
import { describe, expect } from "vitest"
import { failureOf } from "./assertionFailure.js"

class Go extends Schema.TaggedClass<Go>()("Go", {}) {}

/** Compares a state with an expected one. */
const compare = (actual: unknown, expected: unknown): void => {
  const Holder = Aggregate.make("Holder", {
    state: Schema.Unknown,
    initialState: undefined,
    events: Go,
    commands: Go,
    decide: { Go: (command) => Effect.succeed([command]) },
    evolve: { Go: () => actual }
  })
  AggregateTest.of(Holder).when(new Go()).thenState(expected)
}

class Hidden {
  readonly #value: number
  constructor(value: number) {
    this.#value = value
  }
  get value(): number {
    return this.#value
  }
}

/** Has an equality of its own, and a field that says less. */
class Counted implements Equal.Equal {
  readonly unit = "m"
  readonly #value: number
  constructor(value: number) {
    this.#value = value
  }
  [Equal.symbol](that: Equal.Equal): boolean {
    return that instanceof Counted && that.#value === this.#value
  }
  [Hash.symbol](): number {
    return 1
  }
}

class Failed extends Data.TaggedError("Failed")<{ readonly message: string }> {}
class WithDefect extends Schema.TaggedError<WithDefect>()("WithDefect", { cause: Schema.Defect }) {}

const symbol = Symbol("field")
const [first, second] = [{ v: 1 }, { v: 2 }]

const different: Readonly<Record<string, readonly [unknown, unknown]>> = {
  URL: [new URL("http://a"), new URL("http://b")],
  URLSearchParams: [new URLSearchParams("a=1"), new URLSearchParams("a=2")],
  Redacted: [Redacted.make("a"), Redacted.make("b")],
  "the message of an error": [new Error("a"), new Error("b")],
  "the cause of an error": [new Error("a", { cause: 1 }), new Error("a", { cause: 2 })],
  "the message of a tagged error": [new Failed({ message: "a" }), new Failed({ message: "b" })],
  "a defect": [new WithDefect({ cause: new Error("a") }), new WithDefect({ cause: new Error("b") })],
  "a cause": [Cause.die(new Error("a")), Cause.die(new Error("b"))],
  ArrayBuffer: [new Uint8Array([1]).buffer, new Uint8Array([2]).buffer],
  Blob: [new Blob(["a"]), new Blob(["b"])],
  Headers: [new Headers({ a: "1" }), new Headers({ a: "2" })],
  "a boxed number": [Object(1), Object(2)],
  "a boxed symbol": [Object(Symbol("a")), Object(Symbol("a"))],
  "private fields": [new Hidden(1), new Hidden(2)],
  "an equality of its own": [new Counted(1), new Counted(2)],
  "symbol keys": [{ [symbol]: 1 }, { [symbol]: 2 }],
  // biome-ignore lint/suspicious/noSparseArray: the case is about holes
  "holes of lists": [[,], [5]],
  dates: [new Date(Number.NaN), new Date(0)],
  options: [Option.some({ x: 1 }), Option.some({ x: 2 })],
  "time zones": [
    DateTime.unsafeMakeZoned(0, { timeZone: "Europe/Berlin" }),
    DateTime.unsafeMakeZoned(0, { timeZone: "Europe/London" })
  ],
  "pairs that were compared before": [
    new Set([
      { x: first, n: 1 },
      { n: 2, x: first }
    ]),
    new Set([
      { x: second, n: 2 },
      { x: first, n: 1 }
    ])
  ]
}

const alike: Readonly<Record<string, readonly [unknown, unknown]>> = {
  URL: [new URL("http://a"), new URL("http://a/")],
  Headers: [new Headers({ a: "1" }), new Headers({ A: "1" })],
  "boxed numbers": [Object(1), Object(1)],
  errors: [new Error("a", { cause: { x: 1 } }), new Error("a", { cause: { x: 1 } })],
  "invalid dates": [new Date(Number.NaN), new Date(Number.NaN)],
  "an equality of its own": [new Counted(1), new Counted(1)],
  "objects without a prototype": [Object.assign(Object.create(null), { a: 1 }), { a: 1 }],
  "sets of objects": [HashSet.make({ a: 1 }, { a: 2 }), HashSet.make({ a: 2 }, { a: 1 })],
  "maps of objects": [HashMap.make(["a", { x: 1 }]), HashMap.make(["a", { x: 1 }])],
  "maps by objects": [HashMap.make([{ a: 1 }, 1]), HashMap.make([{ a: 1 }, 1])],
  chunks: [Chunk.append(Chunk.make({ x: 1 }), { y: 2 }), Chunk.make({ x: 1 }, { y: 2 })],
  options: [Option.some({ x: 1 }), Option.some({ x: 1 })],
  durations: [Duration.millis(1000), Duration.seconds(1)],
  "data classes": [Data.struct({ a: { b: 1 } }), Data.struct({ a: { b: 1 } })]
}

describe("values are compared by what they contain", () => {
  for (const [name, [one, other]] of Object.entries(different)) {
    it(`different: ${name}`, () => {
      expect(failureOf(() => compare(one, other))).toContain("another state than expected")
      compare(one, one)
    })
  }

  for (const [name, [one, other]] of Object.entries(alike)) it(`equal: ${name}`, () => compare(one, other))

  it("cycles of different lengths end", () => {
    const one: Record<string, unknown> = {}
    one.next = one
    const two: Record<string, unknown> = { next: { next: undefined } }
    two.next = { next: two }
    compare(one, two)
  })
})
