/** The driver file looks for each part of a client before it uses it, and has a fallback for a client without it. */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import pg from "pg"
import {
  batchSessionOf,
  canClose,
  canListen,
  canSpareConnection,
  close,
  isEmbedded,
  isInTransaction,
  onEnd,
  onNotification,
  processIdOf,
  sendBatch
} from "../src/internal/sql/pg/driver.js"
import { PreparedNames } from "../src/internal/sql/pg/preparedStatements.js"

/** A connection that shows this as its driver. */
const connectionOf = (driver?: unknown) => ({ pg: driver }) as unknown as Connection

const sessionOf = (connection: Connection) => {
  const session = batchSessionOf(connection)
  if (session === undefined) throw new Error("the connection can't send a batch")
  return session
}

const clientOf = (parts: object) => parts as SqlClient.SqlClient

const strangeDrivers: Record<string, unknown> = {
  "no driver": undefined,
  "a driver that is no object": "pg",
  "a driver without any part": {},
  "a driver whose parts are no functions": {
    query: 1,
    end: 1,
    on: 1,
    removeListener: 1,
    getTransactionStatus: "T",
    processID: "1"
  }
}

for (const [name, driver] of Object.entries(strangeDrivers)) {
  it.effect(`a connection with ${name} can do nothing, and nothing fails`, () =>
    Effect.gen(function* () {
      const connection = connectionOf(driver)
      expect(isInTransaction(connection)).toBe(false)
      expect(processIdOf(connection)).toBeUndefined()
      expect(canClose(connection)).toBe(false)
      expect(canListen(connection)).toBe(false)
      expect(batchSessionOf(connection)).toBeUndefined()
      expect(onEnd(connection, () => {})).toBeUndefined()
      close(connection)
      onNotification(connection, "channel", () => {})()
    })
  )
}

it("a client of pg can send a batch, be closed and listened to", () => {
  const connection = connectionOf(new pg.Client())
  expect(batchSessionOf(connection)).toBeDefined()
  expect(canClose(connection)).toBe(true)
  expect(isInTransaction(connection)).toBe(false)
  // It has a process only when it is connected.
  expect(canListen(connection)).toBe(typeof processIdOf(connection) === "number")
})

it("a session parses a statement anew after five seconds, so that its plan follows the size of the tables", () => {
  let now = 0
  const names = new PreparedNames(() => now)
  const statement = { name: "a", text: "select 1" }
  names.add("a", "select 1")
  now = 5000
  expect([names.usable(statement), names.knows("a")]).toEqual(["a", true])
  now = 5001
  expect([names.usable(statement), names.knows("a")]).toEqual(["a", false])
})

it("a client of pg that pipelines its statements sends no batch", () => {
  expect(batchSessionOf(connectionOf(Object.assign(new pg.Client(), { pipeline: true })))).toBeUndefined()
})

for (const status of ["T", "E"]) {
  it.effect(`a session with status ${status} is inside a transaction, and a batch from outside is refused`, () =>
    Effect.gen(function* () {
      const connection = connectionOf(Object.assign(new pg.Client(), { getTransactionStatus: () => status }))
      expect(isInTransaction(connection)).toBe(true)
      const error = yield* Effect.flip(sendBatch(sessionOf(connection), [{ text: "select 1", values: [] }], ["I", "I"]))
      expect(error.cause).toMatchObject({ code: "25001" })
    })
  )
}

it.effect("a batch for an open transaction is refused where the transaction has ended", () =>
  Effect.gen(function* () {
    const connection = connectionOf(Object.assign(new pg.Client(), { getTransactionStatus: () => "I" }))
    const error = yield* Effect.flip(sendBatch(sessionOf(connection), [{ text: "COMMIT", values: [] }], ["T", "I"]))
    expect(error.cause).toMatchObject({ code: "25P01" })
  })
)

it("the payload of a notification of the channel is heard, until it is no longer listened to; that of another channel is not", () => {
  const driver = Object.assign(new pg.Client(), { processID: 7 })
  const heard: Array<string | undefined> = []
  const stop = onNotification(connectionOf(driver), "channel", (payload) => void heard.push(payload))
  driver.emit("notification", { channel: "other", payload: "7" })
  driver.emit("notification", { channel: "channel", payload: "8" })
  stop()
  driver.emit("notification", { channel: "channel", payload: "9" })
  expect(heard).toEqual(["8"])
})

it("the end of a connection is seen until it is no longer waited for", () => {
  const driver = new pg.Client()
  let ends = 0
  const stop = onEnd(connectionOf(driver), () => void ends++)
  driver.emit("end")
  expect(ends).toBe(1)
  stop?.()
  driver.emit("end")
  expect(ends).toBe(1)
  expect(driver.listenerCount("error")).toBe(0)
})

it("a pool can spare a connection if it has four or more, or does not say how many", () => {
  expect(
    [1, 3, 4, undefined].map((maxConnections) => canSpareConnection(clientOf({ config: { maxConnections } })))
  ).toEqual([false, false, true, true])
  expect(canSpareConnection(clientOf({}))).toBe(true)
})

it("only the client of PGlite is embedded, and it has no connection to spare", () => {
  expect(isEmbedded(clientOf({ pglite: {} }))).toBe(true)
  expect(canSpareConnection(clientOf({ pglite: {} }))).toBe(false)
  expect(isEmbedded(clientOf({}))).toBe(false)
})
