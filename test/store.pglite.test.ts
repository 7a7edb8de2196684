/**
 * The store on PGlite passes the contract. It has a file of its own, because a test runner keeps layers until the end
 * of a file. After thousands of random programs the store with its database has a gigabyte.
 */

import * as Layer from "effect/Layer"
import { SqlStore } from "effect-maestro"
import * as StoreContract from "effect-maestro/StoreContract"
import { inject } from "vitest"
import { layerPglite } from "./database.js"

StoreContract.suite("SqlStore on PGlite", SqlStore.layer.pipe(Layer.provideMerge(layerPglite)), {
  runs: Math.ceil(inject("runs") / 2),
  timeout: inject("timeout"),
  lacks: ["concurrentReads"]
})
