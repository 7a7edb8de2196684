/** The application of the examples starts, answers HTTP requests, and ends on SIGTERM. */
import { spawn } from "node:child_process"
import { once } from "node:events"
import { readFileSync } from "node:fs"
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { useProgram } from "./program.js"

const program = useProgram(readFileSync(new URL("../examples/application/main.ts", import.meta.url), "utf8"))

/** Runs the example in its own process, on a free port. The scope kills the process. */
const start = Effect.acquireRelease(
  Effect.promise(async () => {
    const child = spawn(process.execPath, [program()], {
      stdio: ["ignore", "pipe", "inherit"],
      env: { ...process.env, PORT: "0", DATABASE_URL: undefined }
    })
    // It reads all output, because the application writes a line for each request, and would wait on a full pipe.
    const port = await new Promise<string>((resolve, reject) => {
      let text = ""
      child.stdout.on("data", (data) => {
        text += data
        const [, found] = /Listening on http:\/\/[^:]*:(\d+)/.exec(text) ?? []
        if (found !== undefined) resolve(found)
      })
      child.once("exit", () => reject(new Error(`the application ended: ${text}`)))
    })
    return { child, url: `http://127.0.0.1:${port}` }
  }),
  ({ child }) => Effect.sync(() => child.kill("SIGKILL"))
)

it.scopedLive("the application of the examples answers HTTP requests, and ends on SIGTERM", () =>
  Effect.gen(function* () {
    const { child, url } = yield* start
    const ask = (path: string, body?: object) =>
      Effect.promise(async () => {
        const response = await fetch(
          `${url}${path}`,
          body === undefined
            ? {}
            : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) }
        )
        return [response.status, await response.json()]
      })
    expect(yield* ask("/accounts/ann/deposits", { amount: 2000 })).toEqual([200, { balance: 2000 }])
    expect(yield* ask("/accounts/bob/deposits", { amount: 700 })).toEqual([200, { balance: 700 }])
    expect(yield* ask("/accounts/ann/withdrawals", { amount: 5000 })).toEqual([
      422,
      { _tag: "InsufficientFunds", balance: 2000 }
    ])
    expect(yield* ask("/accounts/ann/withdrawals", { amount: 1500 })).toEqual([200, { balance: 500 }])
    expect(yield* ask("/accounts/ann")).toEqual([200, { balance: 500 }])
    expect(yield* ask("/richest")).toEqual([200, ["bob", "ann"]])
    expect(yield* ask("/accounts/ann/deposits", { amount: -1 })).toMatchObject([400, { _tag: "HttpApiDecodeError" }])
    expect(yield* ask("/accounts/%00")).toMatchObject([400, { _tag: "BadRequest" }])
    child.kill("SIGTERM")
    yield* Effect.promise(() => once(child, "exit"))
    expect(child.signalCode).toBe(null)
  })
)
