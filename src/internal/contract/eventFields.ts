/**
 * The contract of the fields of an event beside its body: the version of its schema, and what caused it. One case for
 * each sentence.
 */
import { expect } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type { Event } from "../../Event.js"
import { StoreAdapter } from "../../StoreAdapter.js"
import { streamReaderOf } from "../store/streamReader.js"
import { type Case, event, idOf, newId, stream, test } from "./case.js"

/** Events with each combination of the optional fields, of one aggregate, from a sequence on. */
export const variedEvents = (aggregateId: string, first: number): Effect.Effect<ReadonlyArray<Event>> =>
  Effect.gen(function* () {
    const cause = (yield* event(newId(), 1)).timestamp
    const fields: ReadonlyArray<Partial<Event>> = [
      { version: 2 },
      { correlationId: "request 7", causationId: cause, traceparent, version: 32_767 },
      { correlationId: " \ufeffä 𝄞 " },
      { causationId: cause },
      { traceparent },
      { correlationId: "x".repeat(255), traceparent },
      { causationId: cause, traceparent, version: 10 },
      { correlationId: cause, causationId: cause },
      {}
    ]
    return yield* Effect.forEach(fields, (some, index) => event(aggregateId, first + index, some))
  })

export const eventFieldCases: ReadonlyArray<Case> = [
  test("commitEvents: version, correlationId, causationId and traceparent are read as they were committed", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const [id, other] = [newId(), newId()]
      const events = yield* variedEvents(id, 1)
      for (const one of events) yield* store.commitEvents([one])
      const more = yield* variedEvents(id, events.length + 1)
      yield* store.commitEvents(more.slice(0, 4))
      yield* store.commitEvents([...more.slice(4), ...(yield* variedEvents(id, 2 * events.length + 1))])
      expect((yield* store.getEvents(id, 1)).slice(0, 2 * events.length)).toEqual([...events, ...more])
      const elsewhere = yield* variedEvents(other, 1)
      yield* store.commitEvents([...(yield* stream(newId(), 1, 1)), ...elsewhere])
      expect(yield* store.getEvents(other, 1)).toEqual(elsewhere)
    })),

  test("commitEvents: an event without a version has version 1, and has no field that was not committed", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const { version: _, ...one } = yield* event(newId(), 1)
      yield* store.commitEvents([one])
      const unset = { version: undefined, correlationId: undefined, causationId: undefined, traceparent: undefined }
      const { version: _version, ...next } = yield* event(one.aggregateId, 2)
      yield* store.commitEvents([{ ...next, ...unset }])
      const stored = yield* store.getEvents(one.aggregateId, 1)
      expect(stored).toStrictEqual([
        { ...one, version: 1 },
        { ...next, version: 1 }
      ])
    })),

  test("commitAll: a projection gets version, correlationId, causationId and traceparent of its event", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const events = yield* variedEvents(newId(), 1)
      const seen: Array<Event> = []
      yield* store.commitAll(events, [{ name: "seeing", project: (one) => Effect.sync(() => void seen.push(one)) }])
      expect(seen.slice(0, events.length)).toEqual(events)
      expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
    })),

  test("streamReader: its pages have the versions of the events, and with `withCause` what caused them", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const reader = streamReaderOf(store)
      const id = newId()
      const [plain, varied] = [yield* stream(id, 1, 3), yield* variedEvents(id, 4)]
      yield* store.commitEvents([...plain, ...varied])
      const all = [...plain, ...varied]
      const versions = (events: ReadonlyArray<Event>) => events.map(({ version }) => version)
      for (const limit of [3, 500, 2500]) {
        const page = yield* reader.page(id, 1, limit)
        expect(versions(page.events())).toEqual(versions(all.slice(0, limit)))
        const complete = yield* reader.page(id, 1, limit, { withCause: true })
        expect(complete.events()).toEqual(all.slice(0, limit))
      }
      const whole = yield* reader.fromSnapshot(id, all.length, 500)
      expect(versions(whole.events())).toEqual(versions(all))
    }))
]

// --- internal ---

const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
