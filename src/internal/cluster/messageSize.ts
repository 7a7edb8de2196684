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

/** Counts until the limit, so it ends where a value contains itself, too. */
const exceeds = (encoded: unknown, bytesOf: (leaf: string | number) => number): boolean => {
  let bytes = 0
  const rest: Array<unknown> = [encoded]
  while (rest.length > 0 && bytes <= maxBytes) {
    const value = rest.pop()
    bytes += between
    if (typeof value === "string" || typeof value === "number") bytes += bytesOf(value)
    else if (ArrayBuffer.isView(value)) bytes += value.byteLength
    else if (isIterable(value)) for (const item of value) rest.push(item)
    else if (typeof value === "object" && value !== null) {
      for (const [name, property] of Object.entries(value)) {
        bytes += bytesOf(name)
        rest.push(property)
      }
    }
  }
  return bytes > maxBytes
}

/** Of each value: its brackets and its comma in JSON, or its kind in MessagePack. */
const between = 3

/** A character has six bytes where JSON escapes it, and a number up to 24 digits and signs. */
const longest = (leaf: string | number): number => (typeof leaf === "number" ? 24 : 6 * leaf.length + 5)

const bytesOf = (leaf: string | number): number =>
  typeof leaf === "number" ? Math.max(6, String(leaf).length) : encoder.encode(JSON.stringify(leaf)).length + 5

const encoder = new TextEncoder()

const isIterable = (value: unknown): value is Iterable<unknown> =>
  typeof value === "object" && value !== null && Symbol.iterator in value
