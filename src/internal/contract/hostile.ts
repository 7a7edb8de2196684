/**
 * Arbitrary input of a program: JSON, JavaScript values, and values that throw or never end when they are read.
 */
import * as FastCheck from "effect/FastCheck"

/** Texts that break SQL, JSON, arrays and identifiers if they are not quoted. */
export const hostileText: FastCheck.Arbitrary<string> = FastCheck.oneof(
  FastCheck.string({ unit: "binary", maxLength: 20 }),
  FastCheck.string({ unit: "grapheme", maxLength: 20 }),
  FastCheck.array(
    FastCheck.constantFrom(
      "'",
      '"',
      "''",
      "\\",
      "\\'",
      "`",
      "$1",
      "$$",
      "?",
      ":a",
      "%s",
      "{",
      "}",
      "{}",
      ",",
      "NULL",
      "null",
      "--",
      "/*",
      "*/",
      ";",
      "(",
      ")",
      "\n",
      "\r",
      "\t",
      "\b",
      "\u0001",
      "\u2028",
      "\ufeff",
      "\uffff",
      "drop table maestro.event_log",
      "select pg_sleep(10)",
      "E'\\x00'",
      "__proto__",
      "constructor",
      "toString",
      "_tag",
      "🎉",
      "e\u0301",
      "\u202e",
      " "
    ),
    { maxLength: 6 }
  ).map((parts) => parts.join("")),
  FastCheck.constantFrom("\0", "a\0b", "\ud800", "\udc00x", "x\udbff", "x".repeat(256), "語".repeat(300))
)

/**
 * A value and its description. Each use makes a new value, because some can't even be read by a test library, and some
 * keep state.
 */
export interface Recipe {
  readonly what: string
  readonly make: () => unknown
}

const plain = (value: unknown): Recipe => ({ what: FastCheck.stringify(value), make: () => value })

const explode = (): never => {
  throw new Error("do not look")
}

const revoked = (target: object): unknown => {
  const { proxy, revoke } = Proxy.revocable(target, {})
  revoke()
  return proxy
}

/** Values that throw, change or never end when they are read. */
const biting: FastCheck.Arbitrary<Recipe> = FastCheck.constantFrom<Recipe>(
  ...Object.entries<() => unknown>({
    "an object that can't be read": () =>
      new Proxy({}, { get: explode, ownKeys: explode, getPrototypeOf: explode, has: explode }),
    "a list that can't be read": () => new Proxy([], { get: explode }),
    "an object whose properties can't be listed": () => new Proxy({ a: 1 }, { getOwnPropertyDescriptor: explode }),
    "a revoked object": () => revoked({}),
    "a revoked list": () => revoked([]),
    "a getter that throws": () => Object.defineProperty({}, "a", { enumerable: true, get: explode }),
    "a getter that throws null": () =>
      Object.defineProperty({}, "a", {
        enumerable: true,
        get: () => {
          throw null
        }
      }),
    "a toJSON that throws": () => ({ toJSON: explode }),
    "conversions that throw": () => ({ toString: explode, valueOf: explode, [Symbol.toPrimitive]: explode }),
    "an iterator that throws": () => ({ [Symbol.iterator]: explode }),
    "a function that throws": () => explode,
    "a class instance": () => new Map().entries(),
    "a cycle": () => {
      const cycle: Record<string, unknown> = {}
      cycle.again = { cycle }
      return cycle
    },
    "a list of four billion holes": () => Object.assign([], { length: 2 ** 32 - 1 }),
    "two thousand levels": () => Array.from({ length: 2000 }).reduce<unknown>((inner) => ({ inner }), 1),
    "a frozen object": () => Object.freeze({ a: Object.freeze([undefined]) }),
    "an inherited property": () => Object.create({ inherited: 1 }),
    "a symbol": () => Symbol("s"),
    "a bigint": () => 10n ** 30n,
    NaN: () => Number.NaN,
    "minus infinity": () => Number.NEGATIVE_INFINITY,
    "minus zero": () => -0,
    "2^53": () => 2 ** 53,
    "a date that is none": () => new Date(Number.NaN),
    "an error": () => new Error("an error"),
    "the global object": () => globalThis,
    "a promise": () => Promise.resolve(1),
    "a weak map": () => new WeakMap(),
    "a buffer": () => new ArrayBuffer(8),
    "a regular expression": () => /x/g
  }).map(([what, make]) => ({ what, make }))
)

/** Any value. */
export const anyValue: FastCheck.Arbitrary<Recipe> = FastCheck.oneof(
  { weight: 3, arbitrary: biting },
  { weight: 2, arbitrary: hostileText.map((text): Recipe => ({ what: JSON.stringify(text), make: () => text })) },
  { weight: 2, arbitrary: FastCheck.jsonValue({ maxDepth: 3, stringUnit: "binary" }).map(plain) },
  {
    weight: 3,
    arbitrary: FastCheck.anything({
      maxDepth: 3,
      key: hostileText,
      withBigInt: true,
      withBoxedValues: true,
      withDate: true,
      withMap: true,
      withNullPrototype: true,
      withObjectString: true,
      withSet: true,
      withSparseArray: true,
      withTypedArray: true
    }).map(plain)
  },
  {
    weight: 1,
    arbitrary: FastCheck.tuple(biting, hostileText).map(
      ([{ make, what }, key]): Recipe => ({
        what: `an object with ${what} at ${JSON.stringify(key)}`,
        make: () => ({ [key]: make() })
      })
    )
  },
  {
    weight: 1,
    arbitrary: biting.map(({ make, what }): Recipe => ({ what: `a list with ${what}`, make: () => [1, make()] }))
  }
)
