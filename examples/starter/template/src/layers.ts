/** The layers of the program, from the bottom: client, store, tables, aggregate. */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { ProjectionTables, SqlStore } from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"
import { Account } from "./Account.js"

const ClientLive = Layer.unwrapEffect(
  Effect.map(
    Config.option(Config.redacted("DATABASE_URL")),
    Option.match({
      onNone: () => PgliteClient.layerWith({ dataDir: "./data" }),
      onSome: (url) => PgClient.layer({ url })
    })
  )
)

/** `provideMerge` passes each layer on, because programs query tables, too. */
export const AppLive = Account.layer.pipe(
  Layer.provideMerge(ProjectionTables.layer(Account.projections)),
  Layer.provideMerge(SqlStore.layer),
  Layer.provideMerge(ClientLive)
)
