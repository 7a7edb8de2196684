/** Every store of this library passes the contract. */

import * as Layer from "effect/Layer"
import { MemoryStore, SqlStore } from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"
import { layerPg } from "./database.js"
import { storeContract } from "./storeContract.js"

storeContract("MemoryStore", MemoryStore.layer, { sql: false })

storeContract("SqlStore on PGlite", SqlStore.layer.pipe(Layer.provideMerge(PgliteClient.layerMemory)), { sql: true })

storeContract("SqlStore on Postgres", SqlStore.layer.pipe(Layer.provideMerge(layerPg())), { sql: true })
