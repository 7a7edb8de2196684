/** Input that breaks stores: what has to come back as it went in, and what has to be refused. */
import * as FastCheck from "effect/FastCheck"

const nested = (depth: number): unknown => {
  let value: unknown = "deep"
  for (let level = 0; level < depth; level++) value = level % 2 === 0 ? { next: value } : [value]
  return value
}

/** JSON values that have to be stored as they are. */
export const awkwardValues: Record<string, unknown> = {
  "deep nesting": nested(900),
  "the key __proto__": JSON.parse(
    '{"__proto__": {"polluted": true}, "constructor": 1, "toString": null, "hasOwnProperty": []}'
  ),
  "big and small numbers": [
    2 ** 53,
    -(2 ** 53) - 2,
    1.7976931348623157e308,
    5e-324,
    0.1 + 0.2,
    1e21,
    123456789.12345679
  ],
  "-0": [-0, { minus: -0, plus: 0 }],
  "keys in an order of their own": JSON.parse(
    '{"zoe":1,"al":{"b":2,"aa":3},"bartholomew":[{"y":4,"x":5}],"10":6,"2":7,"":8}'
  ),
  emoji: "👩‍👩‍👧‍👦 🇨🇭 é é ﷽ 🏳️‍🌈",
  "empty texts and keys": { "": "", list: [], object: {}, nothing: null },
  "control characters and quotes": "\u0001\b\f\n\r\t\"'\\ \u2028\u2029 \u007f \ufeff \uffff {}[],:%_?$1 :x --",
  "a megabyte": "x€".repeat(500_000),
  "thirty thousand keys": Object.fromEntries(Array.from({ length: 30_000 }, (_, index) => [`key ${index}`, index])),
  "what reads like SQL": "'; drop table event_log; --",
  "what reads like an array": '{"a",NULL,"b\\"c"}'
}

/** Ids and types that have to be told apart. */
export const awkwardIds: ReadonlyArray<string> = [
  "a",
  "A",
  "á",
  "a\u0301",
  " ",
  " a",
  "a ",
  "%",
  "_",
  "%%",
  "__",
  "'",
  '"',
  "''",
  "\\",
  "\\\\",
  "\\'",
  "{}",
  "{a,b}",
  "NULL",
  "null",
  "(",
  "a,b",
  "a\nb",
  "a\tb",
  "a\u0001b",
  "\ufeffmark",
  "日本語",
  "עברית",
  "ДОБРО",
  "добро",
  "ß",
  "ss",
  "İ",
  "ı",
  "🎉",
  "0",
  "00",
  "-1",
  "1e3",
  "..",
  "/etc",
  "$1",
  ":x",
  "?",
  "--",
  ";",
  "x".repeat(255),
  "語".repeat(255),
  "🎉".repeat(255)
]

/** Texts that are no id and no type. */
export const refusedNames: ReadonlyArray<readonly [what: string, value: unknown]> = [
  ["empty", ""],
  ["256 characters long", "x".repeat(256)],
  ["256 characters of two units each long", "🎉".repeat(256)],
  ["a megabyte long", "x".repeat(1_000_000)],
  ["one with NUL", "a\0b"],
  ["one with half a surrogate pair", "a\ud800b"],
  ["a number", 1],
  ["null", null],
  ["undefined", undefined],
  ["an object", {}]
]

/** Numbers, and others, that are no sequence. */
export const refusedSequences: ReadonlyArray<unknown> = [
  0,
  -1,
  1.5,
  2_147_483_648,
  Number.MAX_SAFE_INTEGER,
  Number.NaN,
  Number.POSITIVE_INFINITY,
  "1",
  null,
  undefined,
  1n
]

const cyclic: { self?: unknown } = {}
cyclic.self = cyclic

/** A small value whose text is longer than anything can hold: each level is three times the one below. */
export const billionLaughs = (): Record<string, unknown> => {
  let value: unknown = "ha".repeat(50)
  for (let level = 0; level < 100; level++) value = [value, value, value]
  return { value }
}

/** What is no JSON object or holds what JSON or a text of Postgres can't, and where in it. */
export const refusedBodies: ReadonlyArray<readonly [what: string, path: string, body: unknown]> = [
  ["null", "", null],
  ["undefined", "", undefined],
  ["a list", "", [1]],
  ["a text", "", "{}"],
  ["a number", "", 1],
  ["a function", "", () => 1],
  ["a date as the whole", "", new Date(0)],
  ["a map", "", new Map()],
  ["undefined inside", ".a", { a: undefined }],
  ["NaN inside", ".a.0", { a: [Number.NaN] }],
  ["infinity inside", ".a", { a: Number.NEGATIVE_INFINITY }],
  ["a bigint inside", ".a", { a: 1n }],
  ["a date inside", ".a.b", { a: { b: new Date(0) } }],
  ["a function inside", ".a", { a: () => 1 }],
  ["a symbol inside", ".a", { a: Symbol("s") }],
  ["a key that is a symbol", "", { [Symbol("s")]: 1 }],
  ["a class instance inside", ".a", { a: new (class Money {})() }],
  ["a byte array inside", ".a", { a: new Uint8Array(1) }],
  ["its own toJSON", ".toJSON", { toJSON: () => ({}) }],
  ["a cycle", ".self", cyclic],
  ["a hole in a list", ".a.1", { a: Object.assign([1], { 2: 3 }) }],
  ["NUL in a text", ".a", { a: "x\0" }],
  ["NUL in a key", ".a\0", { "a\0": 1 }],
  ["half a surrogate pair in a text", ".a", { a: "\udc00" }],
  ["half a surrogate pair in a key", ".\ud800", { "\ud800": 1 }],
  [
    "a thousand and one levels",
    `.a${".0".repeat(999)}`,
    { a: Array.from({ length: 1001 }).reduce<unknown>((inner) => [inner], 1) }
  ],
  [
    "a getter that throws",
    ".a",
    Object.defineProperty({}, "a", {
      enumerable: true,
      get: () => {
        throw new Error("no")
      }
    })
  ]
]

/** Arbitrary JSON objects without what has to be refused. */
export const jsonObject: FastCheck.Arbitrary<Record<string, unknown>> = FastCheck.dictionary(
  FastCheck.string({ unit: "grapheme" }).filter((key) => !key.includes("\0")),
  FastCheck.oneof(
    FastCheck.jsonValue({ maxDepth: 4, stringUnit: "grapheme" }).filter(
      (value) => !JSON.stringify(value).includes("\\u0000")
    ),
    // Hardly ever drawn otherwise.
    FastCheck.constantFrom(-0, [-0, 1e308])
  )
)
