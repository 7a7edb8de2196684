/**
 * One domain in four releases, each started on what the releases before it have stored, and two releases side by side.
 *
 * Run it by `npx tsx examples/evolution/main.ts`. It uses an embedded Postgres.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { Aggregate, SqlStore, type StoreAdapter, Subscription } from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"
import * as One from "./release1.js"
import * as Two from "./release2.js"
import * as Three from "./release3.js"
import * as Four from "./release4.js"
import * as Start from "./start.js"

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
  yield* check(One.Complaint)
  yield* One.Complaint.evaluate("c-1", new One.Open({ title: "The heating is cold" }))
  yield* One.Complaint.evaluate("c-1", new One.View({ by: "Ann" }))
  yield* One.Complaint.evaluate("c-1", new One.Assign({ to: "Ann" }))
  yield* One.Complaint.evaluate("c-1", new One.Resolve({ answer: "Bleed the radiator" }))
  yield* show("c-1", yield* One.Complaint.fetch("c-1"))
}).pipe(running(One.Complaint.layer))

const forgotten = Effect.gen(function* () {
  yield* Console.log("Release 2, if its events had no history")
  yield* check({ ...Two.Complaint, events: Two.withoutHistory })
})

const release2 = Effect.gen(function* () {
  yield* Console.log("Release 2: an added field, a dropped type")
  yield* check(Two.Complaint)
  yield* show("c-1", yield* Two.Complaint.fetch("c-1"))
  yield* Two.Complaint.evaluate("c-2", new Two.Open({ title: "No coffee", priority: "high" }))
  yield* Two.Complaint.evaluate("c-2", new Two.Assign({ to: "Bob" }))
  yield* Two.Complaint.snapshot("c-2")
  yield* show("c-2", yield* Two.Complaint.fetch("c-2"))
}).pipe(running(Two.Complaint.layer))

const release3 = Effect.gen(function* () {
  yield* Console.log("Release 3: a renamed type, a split event, another state")
  yield* check(Three.Complaint)
  yield* show("c-1", yield* Three.Complaint.fetch("c-1"))
  yield* Stream.runForEach(Three.Complaint.history("c-1"), ({ event: { _tag, ...fields }, sequence }) =>
    Console.log(`    ${sequence} ${_tag} ${JSON.stringify(fields)}`)
  )
  // The snapshot of release 2 has another state, so it is ignored, and all events are folded.
  yield* show("c-2", yield* Three.Complaint.fetch("c-2"))
  yield* Three.Complaint.evaluate("c-2", new Three.Resolve({ answer: "Tea" }))
}).pipe(running(Three.Complaint.layer))

const forgottenKind = Effect.gen(function* () {
  yield* Console.log("Release 4, if its former name were forgotten")
  yield* Effect.catchTag(Start.check([{ ...Four.Request, kind: "Request" }]), "ForgottenEvents", ({ message }) =>
    Console.log(`  check: ${message}`)
  )
})

const release4 = Effect.gen(function* () {
  yield* Console.log("Release 4: a third version, a renamed aggregate")
  yield* check(Four.Request)
  yield* show("c-1", yield* Four.Request.fetch("c-1"))
  yield* show("c-2", yield* Four.Request.fetch("c-2"))
  const { position } = yield* Four.Request.evaluate("c-3", new Four.Open({ title: "The lift is stuck", dueInHours: 1 }))
  yield* show("c-3", yield* Four.Request.fetch("c-3"))
  yield* Subscription.waitFor(Start.Board, position, "1 minute")
  const sql = yield* SqlClient.SqlClient
  const open = yield* sql<{ id: string }>`select id from open_requests order by id`
  yield* Console.log(`  open requests: ${open.map(({ id }) => id).join(", ")}`)
}).pipe(Effect.provide(Start.layer))

/** A deployment one node after the other: old and new nodes work on one store at the same time. */
const rolling = Effect.gen(function* () {
  yield* Console.log("Release 3 beside release 4")
  yield* check(Three.Complaint)
  yield* Three.Complaint.evaluate("c-3", new Three.HandOver({ to: "Cleo" })).pipe(
    running(Three.Complaint.layer),
    Effect.catchTag("StoreError", ({ message, reason }) => Console.log(`  ${reason}: ${message}`))
  )

  yield* Console.log("Release 3, prepared by a downcast, beside release 4")
  yield* check(Three.prepared)
  yield* Three.prepared.evaluate("c-3", new Three.HandOver({ to: "Cleo" })).pipe(running(Three.prepared.layer))
  yield* show("c-3, as the old node sees it", yield* Three.prepared.fetch("c-3").pipe(running(Three.prepared.layer)))
  yield* show("c-3, as the new node sees it", yield* Four.Request.fetch("c-3"))
}).pipe(running(Four.Request.layer))

Effect.all([release1, forgotten, release2, release3, forgottenKind, release4, rolling], { discard: true }).pipe(
  Effect.provide(SqlStore.layer.pipe(Layer.provideMerge(PgliteClient.layerMemory))),
  NodeRuntime.runMain
)
