/**
 * The SHA-256 of a text, in hexadecimal digits, as FIPS 180-4 defines it.
 *
 * Each command of a cluster has two hashes of short texts. `crypto.subtle` computes a hash in another thread, which took
 * 40 µs of the processor for 120 characters, and this function takes 6. `node:crypto` is no part of every runtime.
 */

/** A lone half of a surrogate pair is hashed as the replacement character, as UTF-8 has none. */
export const sha256 = (text: string): string => {
  const blocks = padded(encoder.encode(text))
  const hash = Uint32Array.from(initialHash)
  const schedule = new Uint32Array(64)
  for (let offset = 0; offset < blocks.byteLength; offset += blockBytes) {
    prepareSchedule(schedule, blocks, offset)
    compress(hash, schedule)
  }
  let digits = ""
  for (const word of hash) digits += word.toString(16).padStart(8, "0")
  return digits
}

// --- internal ---

const encoder = new TextEncoder()

const blockBytes = 64

/** The message, a bit that is set, zeros, and the length of the message in bits: a whole number of blocks. */
const padded = (message: Uint8Array): DataView => {
  const bytes = new Uint8Array(Math.ceil((message.length + 9) / blockBytes) * blockBytes)
  bytes.set(message)
  bytes[message.length] = 0x80
  const view = new DataView(bytes.buffer)
  view.setBigUint64(bytes.length - 8, BigInt(message.length) * 8n)
  return view
}

/** The sixteen words of a block, and 48 that are made of them. */
const prepareSchedule = (schedule: Uint32Array, blocks: DataView, offset: number): void => {
  for (let index = 0; index < 16; index++) schedule[index] = blocks.getUint32(offset + index * 4)
  for (let index = 16; index < 64; index++) {
    const early = word(schedule, index - 15)
    const late = word(schedule, index - 2)
    const sigma0 = rotate(early, 7) ^ rotate(early, 18) ^ (early >>> 3)
    const sigma1 = rotate(late, 17) ^ rotate(late, 19) ^ (late >>> 10)
    schedule[index] = word(schedule, index - 16) + sigma0 + word(schedule, index - 7) + sigma1
  }
}

/** Adds a block to the hash. The names of the eight variables are those of the standard. */
const compress = (hash: Uint32Array, schedule: Uint32Array): void => {
  let a = word(hash, 0)
  let b = word(hash, 1)
  let c = word(hash, 2)
  let d = word(hash, 3)
  let e = word(hash, 4)
  let f = word(hash, 5)
  let g = word(hash, 6)
  let h = word(hash, 7)
  for (let index = 0; index < 64; index++) {
    const sum1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)
    const choice = (e & f) ^ (~e & g)
    const first = (h + sum1 + choice + word(roundConstants, index) + word(schedule, index)) | 0
    const sum0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)
    const majority = (a & b) ^ (a & c) ^ (b & c)
    h = g
    g = f
    f = e
    e = (d + first) | 0
    d = c
    c = b
    b = a
    a = (first + sum0 + majority) | 0
  }
  hash[0] = word(hash, 0) + a
  hash[1] = word(hash, 1) + b
  hash[2] = word(hash, 2) + c
  hash[3] = word(hash, 3) + d
  hash[4] = word(hash, 4) + e
  hash[5] = word(hash, 5) + f
  hash[6] = word(hash, 6) + g
  hash[7] = word(hash, 7) + h
}

const rotate = (value: number, bits: number): number => (value >>> bits) | (value << (32 - bits))

const word = (words: Uint32Array, index: number): number => words[index] ?? 0

const fractionBits = (root: number): number => Math.floor((root - Math.floor(root)) * 2 ** 32)

const primes = (count: number): ReadonlyArray<number> => {
  const found: Array<number> = []
  for (let candidate = 2; found.length < count; candidate++) {
    if (found.every((prime) => candidate % prime !== 0)) found.push(candidate)
  }
  return found
}

/** The first 32 bits of the fractions of the square roots of the first eight primes. */
const initialHash = primes(8).map((prime) => fractionBits(Math.sqrt(prime)))

/** The first 32 bits of the fractions of the cube roots of the first 64 primes. */
const roundConstants = Uint32Array.from(primes(64), (prime) => fractionBits(Math.cbrt(prime)))
