/**
 * A bank over HTTP, with a page to try it.
 *
 * Run it by `npx tsx examples/bank-http/main.ts`, and open http://localhost:3000. It uses an embedded Postgres, or the
 * server of `DATABASE_URL`. `PORT` sets another port.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { layerServer } from "./Server.js"

Config.integer("PORT").pipe(
  Config.withDefault(3000),
  Effect.map(layerServer),
  Layer.unwrapEffect,
  Layer.launch,
  NodeRuntime.runMain
)
