/**
 * Games of chess in the browser: step through them, and see moves as they are made.
 *
 * Run it by `npx tsx examples/chess/page.ts`, and open http://localhost:3000. It imports the games of `npm start` while
 * it serves the page. It uses an embedded Postgres, or the server of `DATABASE_URL`. `PORT` sets another port.
 */
import * as NodeContext from "@effect/platform-node/NodeContext"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Config from "effect/Config"
import type { ConfigError } from "effect/ConfigError"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as PgliteClient from "effect-maestro/PgliteClient"
import { importGames } from "./Import.js"
import { layerServer, layerStore } from "./Server.js"
import * as Source from "./Source.js"

/** An embedded Postgres, or the server of `DATABASE_URL`. */
const layerClient = Layer.unwrapEffect(
  Effect.map(
    Config.option(Config.redacted("DATABASE_URL")),
    Option.match({
      onNone: (): Layer.Layer<SqlClient.SqlClient, SqlError | ConfigError> => PgliteClient.layerMemory,
      onSome: (url) => PgClient.layer({ url })
    })
  )
)

/** Imports the games while the server runs. A failure ends the import, and the server goes on. */
const layerImport = Source.read(Option.none(), Option.none()).pipe(
  Effect.flatMap(importGames),
  Effect.tap(({ games }) => Effect.log(`${games.length} games are in the store`)),
  Effect.catchAll(Effect.logError),
  Effect.forkScoped,
  Layer.scopedDiscard
)

Config.integer("PORT").pipe(
  Config.withDefault(3000),
  Effect.map((port) => Layer.provide(layerImport, layerServer(port, layerStore(layerClient)))),
  Layer.unwrapEffect,
  Layer.provide(NodeContext.layer),
  Layer.launch,
  NodeRuntime.runMain
)
