/** The hash of receipts and digests, beside that of Node. */
import { createHash } from "node:crypto"
import { expect, it } from "@effect/vitest"
import * as fc from "effect/FastCheck"
import { sha256 } from "../src/internal/codec/sha256.js"

const ofNode = (text: string): string => createHash("sha256").update(text).digest("hex")

it("the hash of a text is that of Node, for each length around the ends of blocks", () => {
  for (let length = 0; length <= 260; length++) {
    const text = "a".repeat(length)
    expect(sha256(text)).toBe(ofNode(text))
  }
})

it("the examples of the standard have their hashes", () => {
  expect(sha256("abc")).toBe("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
  expect(sha256("")).toBe("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
  expect(sha256("a".repeat(1_000_000))).toBe("cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0")
})

it("any text has the hash of Node, also one of halves of surrogate pairs", () => {
  fc.assert(
    fc.property(fc.oneof(fc.string({ unit: "binary" }), fc.string16bits()), (text) => {
      expect(sha256(text)).toBe(ofNode(text))
    })
  )
})
