/** The feed and the subscriptions of each store of this library pass their contract. PGlite has a file of its own. */

import * as Layer from "effect/Layer"
import { MemoryStore, SqlStore } from "effect-maestro"
import * as FeedContract from "effect-maestro/FeedContract"
import { inject } from "vitest"
import { layerPg } from "./database.js"

const [runs, timeout] = [inject("runs"), inject("timeout")]

FeedContract.suite("MemoryStore", MemoryStore.layer, {
  runs,
  timeout,
  lacks: ["callerTransaction", "transactionalEffects"]
})

FeedContract.suite("SqlStore on Postgres", SqlStore.layer.pipe(Layer.provideMerge(layerPg())), { runs, timeout })
