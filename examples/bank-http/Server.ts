/**
 * The server of the bank: the API, its documentation, and a page to try it, on a store.
 */
import { createServer } from "node:http"
import { fileURLToPath } from "node:url"
import * as HttpApiBuilder from "@effect/platform/HttpApiBuilder"
import * as HttpApiSwagger from "@effect/platform/HttpApiSwagger"
import * as HttpMiddleware from "@effect/platform/HttpMiddleware"
import * as HttpServer from "@effect/platform/HttpServer"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { ProjectionTables, SqlStore } from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"
import { Account } from "../aggregates/Account.js"
import { Balances, layerApi } from "./Api.js"

/** An embedded Postgres, or the server of `DATABASE_URL`. */
const layerClient = Layer.unwrapEffect(
  Effect.map(
    Config.option(Config.redacted("DATABASE_URL")),
    Option.match({
      onNone: () => PgliteClient.layerMemory,
      onSome: (url) => PgClient.layer({ url })
    })
  )
)

// The table is there before the subscription writes to it, and before an endpoint reads it.
const layerDomain = Layer.merge(Account.layer, Balances.layer).pipe(
  Layer.provideMerge(ProjectionTables.layer(Balances)),
  Layer.provideMerge(SqlStore.layer)
)

const page = fileURLToPath(new URL("page.html", import.meta.url))

const layerPage = HttpApiBuilder.Router.use((router) =>
  router.get("/", HttpServerResponse.file(page).pipe(Effect.orDie))
)

const layerDocs = Layer.merge(HttpApiSwagger.layer({ path: "/docs" }), HttpApiBuilder.middlewareOpenApi()).pipe(
  Layer.provide(layerApi)
)

/**
 * Serves the bank on a port, or on a free one with 0. The store is last, so it is built before the server accepts requests. The logger writes
 * each request, and why one has failed with status 500.
 */
export const layerServer = (port: number, client: typeof layerClient = layerClient) =>
  HttpApiBuilder.serve(HttpMiddleware.logger).pipe(
    HttpServer.withLogAddress,
    Layer.provide([layerApi, layerDocs, layerPage]),
    Layer.provideMerge(NodeHttpServer.layer(createServer, { port })),
    Layer.provide(layerDomain.pipe(Layer.provideMerge(client)))
  )
