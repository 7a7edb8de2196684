/**
 * The SHA-256 of a text, in hexadecimal digits.
 *
 * `crypto.subtle` computes a hash in another thread, which takes several times as long as the hash of a short text. `node:crypto` is no part of
 * every runtime.
 */
import { sha256 as digestOf } from "@noble/hashes/sha2"
import { bytesToHex, utf8ToBytes } from "@noble/hashes/utils"

/** A lone half of a surrogate pair is hashed as the replacement character, as UTF-8 has none. */
export const sha256 = (text: string): string => bytesToHex(digestOf(utf8ToBytes(text)))
