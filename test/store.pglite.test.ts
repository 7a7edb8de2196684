/**
 * The store on PGlite passes the contract. In a process of its own: a test runner holds on to what it has built until the end of
 * a file, and after thousands of random programs a store with its database is a gigabyte.
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
