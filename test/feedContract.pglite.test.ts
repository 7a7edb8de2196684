/** The feed and the subscriptions of the store on PGlite pass their contract. */

import * as Layer from "effect/Layer"
import { SqlStore } from "effect-maestro"
import * as FeedContract from "effect-maestro/FeedContract"
import { inject } from "vitest"
import { layerPglite } from "./database.js"

FeedContract.suite("SqlStore on PGlite", SqlStore.layer.pipe(Layer.provideMerge(layerPglite)), {
  // No transactions overlap on one connection, so fewer random programs suffice.
  runs: Math.ceil(inject("runs") / 2),
  timeout: inject("timeout"),
  lacks: ["concurrentReads"]
})
