/**
 * One domain in four releases, each started on what the releases before it have stored, and two releases at once.
 *
 * Run it by `npx tsx examples/evolution/main.ts`. It uses an embedded Postgres.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { Aggregate, SqlStore, type StoreAdapter } from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"
import * as One from "./release1.js"
import * as Two from "./release2.js"
import * as Three from "./release3.js"
import * as Four from "./release4.js"

/** Starts a release: a program with a layer and a state cache of its own, which ends with the effect. */
const running =
  <Name extends string>(layer: Layer.Layer<Aggregate.Instance<Name>, never, StoreAdapter.StoreAdapter>) =>
  <A, E, R>(program: Effect.Effect<A, E, R>) =>
    Effect.provide(program, Layer.fresh(layer))

/** The check before a release: it lists what the code can read, or fails with what it can't. */
const check = (release: Aggregate.Checkable) =>
  Aggregate.check([release]).pipe(
    Effect.flatMap(({ readable }) =>
      Console.log(`  check: reads ${readable.map(({ type, version }) => `${type} ${version}`).join(", ") || "nothing"}`)
    ),
    Effect.catchTag("UnreadableTypes", ({ message }) => Console.log(`  check: ${message.replaceAll("\n", "\n    ")}`))
  )

const show = (id: string, state: object) => Console.log(`  ${id}: ${JSON.stringify(state)}`)

const release1 = Effect.gen(function* () {
  yield* Console.log("Release 1")
  yield* check(One.Ticket)
  yield* One.Ticket.evaluate("t-1", new One.Open({ title: "The printer is on fire" }))
  yield* One.Ticket.evaluate("t-1", new One.View({ by: "Ann" }))
  yield* One.Ticket.evaluate("t-1", new One.Assign({ to: "Ann" }))
  yield* One.Ticket.evaluate("t-1", new One.Resolve({ answer: "Use the extinguisher" }))
  yield* show("t-1", yield* One.Ticket.fetch("t-1"))
}).pipe(running(One.Ticket.layer))

const forgotten = Effect.gen(function* () {
  yield* Console.log("Release 2, if its events had no history")
  yield* check({ ...Two.Ticket, events: Two.withoutHistory })
})

const release2 = Effect.gen(function* () {
  yield* Console.log("Release 2: an added field, a dropped type")
  yield* check(Two.Ticket)
  yield* show("t-1", yield* Two.Ticket.fetch("t-1"))
  yield* Two.Ticket.evaluate("t-2", new Two.Open({ title: "No coffee", priority: "high" }))
  yield* Two.Ticket.evaluate("t-2", new Two.Assign({ to: "Bob" }))
  yield* Two.Ticket.snapshot("t-2")
  yield* show("t-2", yield* Two.Ticket.fetch("t-2"))
}).pipe(running(Two.Ticket.layer))

const release3 = Effect.gen(function* () {
  yield* Console.log("Release 3: a renamed type, a split event, another state")
  yield* check(Three.Ticket)
  yield* show("t-1", yield* Three.Ticket.fetch("t-1"))
  yield* Stream.runForEach(Three.Ticket.history("t-1"), ({ event: { _tag, ...fields }, sequence }) =>
    Console.log(`    ${sequence} ${_tag} ${JSON.stringify(fields)}`)
  )
  // The snapshot of release 2 has another state, so it is ignored, and all events are folded.
  yield* show("t-2", yield* Three.Ticket.fetch("t-2"))
  yield* Three.Ticket.evaluate("t-2", new Three.Resolve({ answer: "Tea" }))
}).pipe(running(Three.Ticket.layer))

const release4 = Effect.gen(function* () {
  yield* Console.log("Release 4: a third version, a renamed aggregate")
  yield* check(Four.Request)
  yield* show("t-1", yield* Four.Request.fetch("t-1"))
  yield* show("t-2", yield* Four.Request.fetch("t-2"))
  yield* Four.Request.evaluate("t-3", new Four.Open({ title: "The lift is stuck", dueInHours: 1 }))
  yield* show("t-3", yield* Four.Request.fetch("t-3"))
}).pipe(running(Four.Request.layer))

/** A deployment one node after the other: old and new nodes work on one store at the same time. */
const rolling = Effect.gen(function* () {
  yield* Console.log("Release 3 beside release 4")
  yield* check(Three.Ticket)
  yield* Three.Ticket.evaluate("t-3", new Three.HandOver({ to: "Cleo" })).pipe(
    running(Three.Ticket.layer),
    Effect.catchTag("StoreError", ({ message, reason }) => Console.log(`  ${reason}: ${message}`))
  )

  yield* Console.log("Release 3, prepared by a downcast, beside release 4")
  yield* check(Three.prepared)
  yield* Three.prepared.evaluate("t-3", new Three.HandOver({ to: "Cleo" })).pipe(running(Three.prepared.layer))
  yield* show("t-3, as the old node sees it", yield* Three.prepared.fetch("t-3").pipe(running(Three.prepared.layer)))
  yield* show("t-3, as the new node sees it", yield* Four.Request.fetch("t-3"))
}).pipe(running(Four.Request.layer))

Effect.all([release1, forgotten, release2, release3, release4, rolling], { discard: true }).pipe(
  Effect.provide(SqlStore.layer.pipe(Layer.provideMerge(PgliteClient.layerMemory))),
  NodeRuntime.runMain
)
