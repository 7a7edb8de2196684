/**
 * The server of the page: the page, the API, and the live events, for browsers on this machine.
 */
import { createServer } from "node:http"
import { fileURLToPath } from "node:url"
import * as HttpApiBuilder from "@effect/platform/HttpApiBuilder"
import * as HttpServer from "@effect/platform/HttpServer"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import type * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { SqlStore } from "effect-maestro"
import * as Api from "./Api.js"
import { Game } from "./Game.js"
import * as Live from "./Live.js"
import * as Projections from "./Projections.js"

const page = fileURLToPath(new URL("page.html", import.meta.url))

// The browser refuses every request of the page to another host.
const contentSecurityPolicy =
  "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:"

const layerPage = HttpApiBuilder.Router.use((router) =>
  router.get(
    "/",
    HttpServerResponse.file(page, { headers: { "content-security-policy": contentSecurityPolicy } }).pipe(Effect.orDie)
  )
)

/** The HTTP server. While it closes, requests have two seconds to end, and then lose their connections. */
const layerHttp = (port: number) =>
  Layer.suspend(() => {
    const server = createServer()
    const cutOff = Effect.delay(
      Effect.sync(() => server.closeAllConnections()),
      "2 seconds"
    )
    return Layer.scopedDiscard(Effect.addFinalizer(() => Effect.forkDaemon(cutOff))).pipe(
      Layer.provideMerge(NodeHttpServer.layer(() => server, { port, host: "127.0.0.1" }))
    )
  })

/** Serves the page on a port, or on a free one with 0. The store is closed after the server. */
export const layerServer = <E, R>(port: number, store: ReturnType<typeof layerStore<E, R>>) =>
  HttpApiBuilder.serve().pipe(
    HttpServer.withLogAddress,
    Layer.provide([Api.layer, Live.layer, layerPage]),
    Layer.provideMerge(layerHttp(port)),
    Layer.provideMerge(Game.layer),
    Layer.provide(Projections.layerTables),
    Layer.provideMerge(store)
  )

/** The store in a database. */
export const layerStore = <E, R>(client: Layer.Layer<SqlClient.SqlClient, E, R>) =>
  Layer.provideMerge(SqlStore.layer, client)
