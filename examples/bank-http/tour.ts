/**
 * A tour through the API of the bank: it starts the server on a free port, and calls it as clients do.
 *
 * Run it by `npx tsx examples/bank-http/tour.ts`.
 */
import * as FetchHttpClient from "@effect/platform/FetchHttpClient"
import * as HttpApiClient from "@effect/platform/HttpApiClient"
import * as HttpClient from "@effect/platform/HttpClient"
import * as HttpClientRequest from "@effect/platform/HttpClientRequest"
import * as HttpServer from "@effect/platform/HttpServer"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import { Withdraw } from "../aggregates/Account.js"
import { Api } from "./Api.js"
import { layerServer } from "./Server.js"

const shownHeaders = ["etag", "stream-position", "retry-after"]

const serverUrl = HttpServer.addressFormattedWith((address) =>
  Effect.succeed(`http://127.0.0.1:${new URL(address).port}`)
)

/** Sends a request of Ann, and prints it with the response. */
const call = (method: "GET" | "POST", path: string, body?: object | string, headers: Record<string, string> = {}) =>
  Effect.gen(function* () {
    const url = yield* serverUrl
    const sent = typeof body === "object" ? JSON.stringify(body) : body
    const response = yield* Effect.promise(() =>
      fetch(`${url}${path}`, {
        method,
        headers: { authorization: "Bearer ann", "content-type": "application/json", ...headers },
        ...(sent !== undefined && { body: sent })
      })
    )
    const conditions = Object.entries(headers).map(([name, value]) => `${name}: ${value}`)
    yield* Console.log([`${method} ${path}`, sent, ...conditions].filter((part) => part !== undefined).join("  "))
    const shown = shownHeaders.flatMap((name) => {
      const value = response.headers.get(name)
      return value === null ? [] : [`${name}: ${value}`]
    })
    yield* Console.log(`  ${[response.status, yield* Effect.promise(() => response.text()), ...shown].join("  ")}`)
    return response.headers
  })

const requests = Effect.gen(function* () {
  yield* Console.log("Commands, refusals and reads")
  yield* call("POST", "/accounts/ann-1/open", { owner: "Ann" }, { "if-none-match": "*" })
  yield* call("POST", "/accounts/ann-1/deposit", { amount: 100 })
  yield* call("POST", "/accounts/ann-1/withdraw", { amount: 300 })
  yield* call("POST", "/accounts/ann-2/deposit", { amount: 1 })
  yield* call("GET", "/accounts/ann-1")

  yield* Console.log("\nA change only of the state that the client has seen")
  yield* call("POST", "/accounts/ann-1/withdraw", { amount: 10 }, { "if-match": '"2"' })
  yield* call("POST", "/accounts/ann-1/withdraw", { amount: 10 }, { "if-match": '"2"' })

  yield* Console.log("\nA request that comes twice, and one that has a used key")
  yield* call("POST", "/accounts/ann-1/deposit", { amount: 5 }, { "idempotency-key": '"k1"' })
  const headers = yield* call("POST", "/accounts/ann-1/deposit", { amount: 5 }, { "idempotency-key": '"k1"' })
  yield* call("POST", "/accounts/ann-1/deposit", { amount: 6 }, { "idempotency-key": '"k1"' })

  yield* Console.log("\nA table that has the own write")
  yield* call("GET", `/balances?after=${headers.get("stream-position")}`)

  yield* Console.log("\nMistakes")
  yield* call("POST", "/accounts/ann-1/deposit", { amount: -1 })
  yield* call("POST", "/accounts/ann-1/deposit", "{")
  yield* call("POST", "/accounts/bob-1/open", { owner: "Ann" })
})

/** The typed client: a refusal is a failure with its class. */
const typed = Effect.gen(function* () {
  yield* Console.log("\nA typed client")
  const client = yield* HttpApiClient.make(Api, {
    baseUrl: yield* serverUrl,
    transformClient: HttpClient.mapRequest(HttpClientRequest.bearerToken("ann"))
  })
  const withdraw = (amount: number) =>
    client.accounts.withdraw({ path: { id: "ann-1" }, headers: {}, payload: new Withdraw({ amount }) })
  yield* withdraw(1000).pipe(
    Effect.catchTag("InsufficientFunds", ({ balance }) => Console.log(`  refused: the balance is ${balance}`))
  )
  const { state } = yield* withdraw(20)
  yield* Console.log(`  ${state.owner} has ${state.balance}`)
})

Effect.zipRight(requests, typed).pipe(
  Effect.provide(Layer.merge(layerServer(0), FetchHttpClient.layer)),
  Logger.withMinimumLogLevel(LogLevel.Error),
  NodeRuntime.runMain
)
