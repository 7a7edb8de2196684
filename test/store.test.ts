/** The stores of this library pass the contract. The store on PGlite has a file of its own. */

import * as Layer from "effect/Layer"
import { MemoryStore, SqlStore } from "effect-maestro"
import * as StoreContract from "effect-maestro/StoreContract"
import { inject } from "vitest"
import { layerPg } from "./database.js"

const [runs, timeout] = [inject("runs"), inject("timeout")]

StoreContract.suite("MemoryStore", MemoryStore.layer, { runs, timeout, lacks: ["callerTransaction"] })

StoreContract.suite("SqlStore on Postgres", SqlStore.layer.pipe(Layer.provideMerge(layerPg())), { runs, timeout })
