/** What a notification says of the events of its commits. */
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import { contentsOf, mayMatch, PendingSignals, type Signal, SignalLog, signalOf } from "../src/internal/sql/signal.js"

const events = (...types: ReadonlyArray<string>) =>
  types.map((type, index) => ({ aggregateId: `K${index % 2}/1`, type }))
const committed = (...types: ReadonlyArray<string>): Signal => ({
  contents: contentsOf(events(...types)),
  isOpen: false
})

const sent = (...signals: ReadonlyArray<Signal>) => {
  const pending = new PendingSignals()
  for (const signal of signals) pending.add(signal)
  return signalOf(pending.payload("12"))
}

it("a notification has the types and kinds of all its commits, each once", () => {
  expect(sent(committed("A", "B", "A"), committed("C", "A"))).toEqual({
    from: "12",
    isOpen: false,
    contents: { types: ["A", "B", "C"], kinds: ["K0", "K1"] }
  })
  expect(sent(committed('"', "\u2028\ud83d\ude00")).contents?.types).toEqual(['"', "\u2028\ud83d\ude00"])
})

it("a notification is of an open transaction only if all its signals are", () => {
  const open: Signal = { ...committed("A"), isOpen: true }
  expect(sent(open).isOpen).toBe(true)
  expect(sent(open, committed("B")).isOpen).toBe(false)
})

it("a payload stays below the limit of the server, and has no names then", () => {
  for (const count of [10, 50, 499, 501, 10_000]) {
    const pending = new PendingSignals()
    pending.add(committed(...Arr.makeBy(count, (index) => `${"\u00e9".repeat(200)}${index}`)))
    const payload = pending.payload("1")
    expect(Buffer.byteLength(payload)).toBeLessThan(8000)
    expect(signalOf(payload).contents === undefined).toBe(count > 10)
  }
  expect(sent(committed("A"), { contents: undefined, isOpen: false }, committed("B")).contents).toBeUndefined()
})

it("a payload of another program is a signal of unknown events", () => {
  for (const payload of [undefined, "", "12", "null", "[]", "{", '{"types":["A"]}', '{"types":[1],"kinds":[]}']) {
    expect(signalOf(payload)).toEqual({ from: "", isOpen: false, contents: undefined })
  }
})

it("unknown contents may match each filter, and known contents only a filter that names them", () => {
  const contents = contentsOf([{ aggregateId: "Account/1", type: "Opened" }])
  for (const [filter, known] of [
    [undefined, true],
    [{ types: ["Opened", "Closed"] }, true],
    [{ types: ["Closed"] }, false],
    [{ kinds: ["Account"], types: ["Opened"] }, true],
    [{ kinds: ["Other"] }, false],
    [{ slice: { index: 0, of: 2 } }, true],
    // A signal does not say which chains its events belong to.
    [{ correlationId: "request" }, true],
    [{ correlationId: "request", types: ["Closed"] }, false]
  ] as const) {
    expect(mayMatch(contents, filter)).toBe(known)
    expect(mayMatch(undefined, filter)).toBe(true)
    const log = new SignalLog()
    expect(log.mayMatchSince(0, filter)).toBe(false)
    log.add(contents)
    expect(log.mayMatchSince(0, filter)).toBe(known)
    expect(log.mayMatchSince(1, filter)).toBe(false)
    log.add(undefined)
    expect(log.mayMatchSince(1, filter)).toBe(true)
  }
})

it("a log of too many names may match each filter", () => {
  const log = new SignalLog()
  log.add(contentsOf(events("A")))
  for (let index = 0; index < 1000; index++) log.add(contentsOf(events(`T${index}`)))
  expect(log.mayMatchSince(0, { types: ["A"] })).toBe(true)
  expect(log.mayMatchSince(0, { types: ["never"] })).toBe(true)
  expect(log.mayMatchSince(log.count, { types: ["A"] })).toBe(false)
})
