/** The example of evolution: each release goes on from what the releases before it have stored, and beside the next one. */
import { describe, expect, it } from "@effect/vitest"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { Aggregate, MemoryStore, SqlStore, type StoreAdapter } from "effect-maestro"
import * as One from "../examples/evolution/release1.js"
import * as Two from "../examples/evolution/release2.js"
import * as Three from "../examples/evolution/release3.js"
import * as Four from "../examples/evolution/release4.js"
import { layerPg } from "./database.js"

/** A process of a release, which ends with the effect. */
const running =
  <Name extends string>(layer: Layer.Layer<Aggregate.Instance<Name>, never, StoreAdapter.StoreAdapter>) =>
  <A, E, R>(program: Effect.Effect<A, E, R>) =>
    Effect.provide(program, Layer.fresh(layer))

/** A whole complaint, as each release writes it. */
const written = [
  Effect.gen(function* () {
    yield* One.Complaint.evaluate("by 1", new One.Open({ title: "A" }))
    yield* One.Complaint.evaluate("by 1", new One.View({ by: "Ann" }))
    yield* One.Complaint.evaluate("by 1", new One.Assign({ to: "Ann" }))
    yield* One.Complaint.snapshot("by 1")
    yield* One.Complaint.evaluate("by 1", new One.Resolve({ answer: "yes" }))
  }).pipe(running(One.Complaint.layer)),
  Effect.gen(function* () {
    yield* Two.Complaint.evaluate("by 2", new Two.Open({ title: "A", priority: "high" }))
    yield* Two.Complaint.evaluate("by 2", new Two.Assign({ to: "Ann" }))
    yield* Two.Complaint.evaluate("by 2", new Two.Resolve({ answer: "yes" }))
    yield* Two.Complaint.snapshot("by 2")
  }).pipe(running(Two.Complaint.layer)),
  Effect.gen(function* () {
    yield* Three.Complaint.evaluate("by 3", new Three.Open({ title: "A", priority: "low" }))
    yield* Three.Complaint.evaluate("by 3", new Three.HandOver({ to: "Ann" }))
    yield* Three.Complaint.evaluate("by 3", new Three.Resolve({ answer: "yes" }))
    yield* Three.Complaint.evaluate("by 3", new Three.Close())
    yield* Three.Complaint.snapshot("by 3")
  }).pipe(running(Three.Complaint.layer)),
  Effect.gen(function* () {
    yield* Four.Request.evaluate("by 4", new Four.Open({ title: "A", dueInHours: 5 }))
    yield* Four.Request.evaluate("by 4", new Four.HandOver({ to: "Ann" }))
    yield* Four.Request.evaluate("by 4", new Four.Resolve({ answer: "yes" }))
    yield* Four.Request.evaluate("by 4", new Four.Close())
  }).pipe(running(Four.Request.layer))
]

const ids = ["by 1", "by 2", "by 3", "by 4"]
const read = {
  1: Effect.forEach(ids.slice(0, 1), One.Complaint.fetch).pipe(running(One.Complaint.layer)),
  2: Effect.forEach(ids.slice(0, 2), Two.Complaint.fetch).pipe(running(Two.Complaint.layer)),
  3: Effect.forEach(ids.slice(0, 3), Three.Complaint.fetch).pipe(running(Three.Complaint.layer)),
  4: Effect.forEach(ids, Four.Request.fetch).pipe(running(Four.Request.layer))
}

for (const [name, store] of [
  ["memory", MemoryStore.layer],
  ["Postgres", SqlStore.layer.pipe(Layer.provideMerge(Layer.suspend(() => layerPg())))]
] as const) {
  describe(`the releases of the example on ${name}`, () => {
    it.scopedLive(
      "each release reads what all releases before it have stored",
      () =>
        Effect.gen(function* () {
          yield* written[0] ?? Effect.void
          expect(yield* read[1]).toEqual([{ title: "A", assignee: "Ann", open: false }])
          yield* Aggregate.check([Two.Complaint])
          yield* written[1] ?? Effect.void
          const two = { title: "A", priority: "normal", assignee: "Ann", open: false }
          expect(yield* read[2]).toEqual([two, { ...two, priority: "high" }])
          yield* Aggregate.check([Three.Complaint])
          yield* written[2] ?? Effect.void
          const three = { ...two, answer: "yes" }
          expect(yield* read[3]).toEqual([three, { ...three, priority: "high" }, { ...three, priority: "low" }])
          yield* Aggregate.check([Four.Request])
          yield* written[3] ?? Effect.void
          const four = { title: "A", assignee: "Ann", answer: "yes", open: false }
          expect(yield* read[4]).toEqual([24, 8, 72, 5].map((dueInHours) => ({ ...four, dueInHours })))
          const { others, readable } = yield* Aggregate.check([Four.Request])
          expect(others).toEqual([])
          expect(readable.map(({ kind, type, version }) => `${kind} ${type} ${version}`)).toEqual([
            "Complaint Assigned 1",
            "Complaint Closed 1",
            "Complaint ComplaintOpened 1",
            "Complaint ComplaintOpened 2",
            "Complaint ComplaintOpened 3",
            "Complaint HandedOver 1",
            "Complaint Resolved 1",
            "Complaint ResolvedAndClosed 1",
            "Complaint Viewed 1"
          ])
        }).pipe(Effect.provide(Layer.fresh(store))),
      60_000
    )

    it.scopedLive(
      "a dropped event keeps its sequence, and the parts of a split one share it",
      () =>
        Effect.gen(function* () {
          yield* written[0] ?? Effect.void
          const history = yield* Stream.runCollect(Four.Request.history("by 1")).pipe(running(Four.Request.layer))
          expect(Chunk.toReadonlyArray(history).map(({ event, sequence }) => [sequence, event._tag])).toEqual([
            [1, "ComplaintOpened"],
            [3, "HandedOver"],
            [4, "Resolved"],
            [4, "Closed"]
          ])
          const { sequence } = yield* Four.Request.root("by 1").pipe(running(Four.Request.layer))
          expect(sequence).toBe(4)
        }).pipe(Effect.provide(Layer.fresh(store))),
      60_000
    )

    it.scopedLive(
      "an old node beside a new one fails typed at a newer version, and reads it where it has a downcast",
      () =>
        Effect.gen(function* () {
          yield* written[3] ?? Effect.void
          const error = yield* Effect.flip(Three.Complaint.fetch("by 4")).pipe(running(Three.Complaint.layer))
          expect(error).toMatchObject({ reason: "UnreadableEvent", type: "ComplaintOpened", sequence: 1 })
          expect(error.message).toContain("newer")
          const handOver = Three.Complaint.evaluate("by 4", new Three.HandOver({ to: "Bob" }))
          expect(yield* Effect.flip(handOver).pipe(running(Three.Complaint.layer))).toMatchObject({
            reason: "UnreadableEvent"
          })
          expect(yield* Effect.flip(Aggregate.check(Three.Complaint))).toMatchObject({
            unreadable: [{ type: "ComplaintOpened", version: 3, reason: "NewerVersion" }]
          })
          // The old node goes on with its own complaints, and the new node reads them.
          yield* written[2] ?? Effect.void
          expect(yield* Four.Request.fetch("by 3").pipe(running(Four.Request.layer))).toMatchObject({ dueInHours: 72 })
          // The prepared one works on all of them.
          yield* Aggregate.check(Three.prepared)
          yield* Effect.gen(function* () {
            expect(yield* Three.prepared.fetch("by 4")).toMatchObject({ priority: "high", assignee: "Ann" })
            yield* Three.prepared.evaluate("by 4", new Three.HandOver({ to: "Bob" }))
            yield* Three.prepared.evaluate("by 3b", new Three.Open({ title: "B", priority: "normal" }))
          }).pipe(running(Three.prepared.layer))
          yield* Effect.gen(function* () {
            expect(yield* Four.Request.fetch("by 4")).toMatchObject({ dueInHours: 5, assignee: "Bob" })
            expect(yield* Four.Request.fetch("by 3b")).toMatchObject({ dueInHours: 24 })
          }).pipe(running(Four.Request.layer))
        }).pipe(Effect.provide(Layer.fresh(store))),
      60_000
    )

    it.scopedLive(
      "an old node reads new types of a newer release as its own, where its history has them",
      () =>
        Effect.gen(function* () {
          yield* Effect.gen(function* () {
            yield* Three.Complaint.evaluate("c", new Three.Open({ title: "A", priority: "high" }))
            yield* Three.Complaint.evaluate("c", new Three.HandOver({ to: "Ann" }))
            yield* Three.Complaint.evaluate("c", new Three.Resolve({ answer: "yes" }))
          }).pipe(running(Three.Complaint.layer))
          expect(yield* Effect.flip(Aggregate.check(Two.Complaint))).toMatchObject({
            unreadable: [
              { type: "HandedOver", reason: "UnknownType" },
              { type: "Resolved", reason: "UnknownType" }
            ]
          })
          const resolved = { title: "A", priority: "high", assignee: "Ann", open: true }
          yield* Effect.gen(function* () {
            expect(yield* Two.prepared.fetch("c")).toEqual(resolved)
            yield* Two.prepared.evaluate("c", new Two.Assign({ to: "Bob" }))
          }).pipe(running(Two.prepared.layer))
          yield* Effect.gen(function* () {
            expect(yield* Three.Complaint.fetch("c")).toEqual({ ...resolved, assignee: "Bob", answer: "yes" })
            yield* Three.Complaint.evaluate("c", new Three.Close())
          }).pipe(running(Three.Complaint.layer))
          yield* Aggregate.check(Two.prepared)
          expect(yield* Two.prepared.fetch("c").pipe(running(Two.prepared.layer))).toEqual({
            ...resolved,
            assignee: "Bob",
            open: false
          })
        }).pipe(Effect.provide(Layer.fresh(store))),
      60_000
    )
  })
}
