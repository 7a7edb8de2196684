/**
 * The size of messages. `@effect/rpc` reads 16 MiB of one message at most. A larger one breaks its connection, and other calls of the client
 * fail with it. So `messages.ts` sends no such message.
 */

/**
 * Whether an encoded value is too large for a message in MessagePack or in JSON. It counts a few bytes more than either has, because it counts
 * each name of a property, and the brackets of JSON with the lengths of MessagePack.
 */
export const isTooLarge = (encoded: unknown): boolean =>
  // The first count takes the longest that a text or a number can be, and reads none.
  exceeds(encoded, longest) && exceeds(encoded, bytesOf)

/** Why a value is not sent. */
export const tooLarge = "the message is larger than the 16 MiB that `@effect/rpc` reads"

// --- internal ---

/** The rest of the 16 MiB is for what the cluster puts around a value. */
const maxBytes = 16 * 1024 * 1024 - 65_536

/** Counts until the limit, so it ends where a value contains itself or has no end, too. Throws for a value that no message can have. */
const exceeds = (encoded: unknown, bytesOf: (leaf: Leaf) => number): boolean => {
  let bytes = 0
  const rest: Array<object> = []
  const count = (value: unknown): void => {
    bytes += between
    if (typeof value === "string" || typeof value === "number") bytes += bytesOf(value)
    else if (typeof value === "object" && value !== null) rest.push(value)
    else if (typeof value === "bigint" && hasPlace(value)) bytes += bytesOf(value)
    else if (typeof value === "symbol" || typeof value === "bigint")
      throw new TypeError(`${String(value)} can't be sent`)
  }
  count(encoded)
  for (let value = rest.pop(); value !== undefined && bytes <= maxBytes; value = rest.pop()) {
    if (Array.isArray(value)) for (const item of value) count(item)
    else if (isLeaf(value)) bytes += bytesOf(value)
    else if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer) bytes += value.byteLength
    else if (isIterable(value)) {
      for (const item of value) {
        count(item)
        if (bytes > maxBytes) break
      }
    } else {
      for (const name in value) {
        bytes += bytesOf(name)
        count((value as Readonly<Record<string, unknown>>)[name])
      }
    }
  }
  return bytes > maxBytes
}

/** What is counted as a whole. An object with `toJSON` is what that returns. */
type Leaf = string | number | bigint | { readonly toJSON: () => unknown } | RegExp

const isLeaf = (value: object): value is Exclude<Leaf, string | number | bigint> =>
  ("toJSON" in value && typeof value.toJSON === "function") || value instanceof RegExp

/** Of each value: `false` and a comma in JSON, or its kind and its length in MessagePack. */
const between = 6

/** A character has six bytes where JSON escapes it, and a number up to 24 digits and signs. */
const longest = (leaf: Leaf): number =>
  typeof leaf === "string" ? 6 * leaf.length : typeof leaf === "object" ? Number.POSITIVE_INFINITY : 24

const bytesOf = (leaf: Leaf): number => {
  if (typeof leaf === "string") return encoder.encode(JSON.stringify(leaf)).length
  if (typeof leaf === "number") return Math.max(3, String(leaf).length)
  if (typeof leaf === "object")
    return encoder.encode(leaf instanceof RegExp ? String(leaf) : JSON.stringify(leaf)).length
  return 24
}

/** MessagePack has integers of 64 bits. */
const hasPlace = (value: bigint): boolean => value === BigInt.asIntN(64, value) || value === BigInt.asUintN(64, value)

const encoder = new TextEncoder()

const isIterable = (value: object): value is Iterable<unknown> => Symbol.iterator in value
