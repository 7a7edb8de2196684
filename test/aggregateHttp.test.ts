/** Endpoints of an aggregate, by a real server and `fetch`: statuses, conditions, repetitions, hostile input. */
import { request as httpRequest } from "node:http"
import * as HttpApiBuilder from "@effect/platform/HttpApiBuilder"
import { expect, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { EventFeed, MemoryStore } from "effect-maestro"
import { Account, type Answer, Api, ask, layerAccounts, send, serve } from "./httpServer.js"

class Url extends Context.Tag("test/Url")<Url, string>() {}

const layerStore = Account.layer.pipe(Layer.provideMerge(MemoryStore.layer))

const layerServer = Layer.scoped(Url, serve(HttpApiBuilder.api(Api).pipe(Layer.provide(layerAccounts)))).pipe(
  Layer.provideMerge(layerStore)
)

/** A new account with some money, and its path. */
const opened = (balance = 30) =>
  Effect.gen(function* () {
    const url = yield* Url
    const path = `/accounts/${crypto.randomUUID()}`
    yield* send(url, `${path}/open-account`, { owner: "Ann" })
    yield* send(url, `${path}/deposits`, { amount: balance })
    return { url, path }
  })

const eventsOf = (path: string) =>
  Effect.map(Stream.runCollect(Account.history(decodeURIComponent(path.split("/")[2] ?? ""))), (events) => [...events])

const issuesOf = ({ body }: Answer): ReadonlyArray<string> =>
  body.issues.map(
    ({ message, path }: { message: string; path: ReadonlyArray<string> }) => `${path.join(".")}: ${message}`
  )

const statusesOf = (answers: ReadonlyArray<Answer>) => answers.map(({ status }) => status).sort()

layer(layerServer, { excludeTestServices: true })("AggregateHttp", (it) => {
  it.effect("a command is a POST with its fields, and the state is a GET, both with ETag and position", () =>
    Effect.gen(function* () {
      const url = yield* Url
      const opened = yield* send(url, "/accounts/a1/open-account", { owner: "Ann" })
      expect([opened.status, opened.body]).toEqual([
        200,
        { state: { owner: "Ann", balance: 0 }, position: { aggregateId: "Account/a1", sequence: 1 }, duplicate: false }
      ])
      expect(opened.headers.get("etag")).toBe('"1"')
      expect(opened.headers.get("stream-position")).toBe("Account/a1@1")
      yield* send(url, "/accounts/a1/deposits", { amount: 30 })
      const read = yield* ask(url, "/accounts/a1")
      expect([read.status, read.body]).toEqual([
        200,
        { state: { owner: "Ann", balance: 30 }, position: { aggregateId: "Account/a1", sequence: 2 } }
      ])
      expect(read.headers.get("etag")).toBe('"2"')
      expect(read.headers.get("stream-position")).toBe("Account/a1@2")
      expect(read.headers.get("cache-control")).toBe("private, no-cache")
    })
  )

  it.effect("a command without fields needs no body, and every command needs the content type of JSON", () =>
    Effect.gen(function* () {
      const { path, url } = yield* opened()
      const empty = (segment: string, headers: Record<string, string>) =>
        ask(url, `${path}${segment}`, { method: "POST", headers })
      const json = { "content-type": "application/json" }
      expect((yield* empty("/freeze", json)).status).toBe(200)
      expect((yield* send(url, `${path}/freeze`, {})).status).toBe(200)
      const { body, status } = yield* empty("/deposits", json)
      expect([status, body.issues]).toMatchObject([400, [{ path: ["amount"], message: "is missing" }]])
      for (const type of [undefined, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]) {
        const answer = yield* empty("/freeze", type === undefined ? {} : { "content-type": type })
        expect([answer.status, issuesOf(answer)]).toEqual([415, [": the content-type must be application/json"]])
      }
      const textual = "text/plain; application/json"
      expect((yield* empty("/freeze", { "content-type": textual })).status).toBe(415)
      expect(yield* eventsOf(path)).toHaveLength(4)
    })
  )

  it.effect("an aggregate without events is 404", () =>
    Effect.gen(function* () {
      const { body, status } = yield* ask(yield* Url, "/accounts/nobody")
      expect([status, body]).toEqual([404, undefined])
    })
  )

  it.effect("a refusal has the chosen status, or 422, and its fields as the body", () =>
    Effect.gen(function* () {
      const { path, url } = yield* opened()
      const answers = [
        yield* send(url, `${path}/open-account`, { owner: "Bob" }),
        yield* send(url, `${path}/withdraw`, { amount: 50 }),
        yield* send(url, "/accounts/none/withdraw", { amount: 50 })
      ]
      expect(answers.map(({ body, status }) => [status, body])).toEqual([
        [409, { _tag: "AlreadyOpen", owner: "Ann" }],
        [422, { _tag: "InsufficientFunds", balance: 30 }],
        [404, { _tag: "NotOpen" }]
      ])
      expect(answers[0]?.headers.get("retry-after")).toBe(null)
      expect(yield* eventsOf(path)).toHaveLength(2)
    })
  )

  it.effect("a wrong body is 400 with all its mistakes, and nothing is stored", () =>
    Effect.gen(function* () {
      const { path, url } = yield* opened()
      const bad = (body: unknown) =>
        Effect.map(send(url, `${path}/deposits`, body), (answer) => [answer.status, issuesOf(answer)])
      expect(yield* bad({ amount: -1 })).toEqual([400, ["amount: Expected a positive number, actual -1"]])
      expect(yield* bad({ amount: "1" })).toEqual([400, ['amount: Expected number, actual "1"']])
      expect(yield* bad({})).toEqual([400, ["amount: is missing"]])
      expect(yield* bad('{"amount":1e400}')).toMatchObject([400, [expect.stringContaining("amount: ")]])
      expect(yield* bad("{")).toEqual([400, [": the body must be JSON"]])
      for (const other of ["[]", "null", "1", '"amount"']) {
        expect(yield* bad(other)).toEqual([400, [": the body must be a JSON object with the fields of the command"]])
      }
      expect(yield* bad({ _tag: "Withdraw", amount: 1 })).toEqual([
        400,
        [": the path is that of Deposit, and the body has another _tag"]
      ])
      expect(yield* bad(`{"amount":${"[".repeat(4000)}${"]".repeat(4000)}}`)).toMatchObject([400, [expect.any(String)]])
      expect(yield* eventsOf(path)).toHaveLength(2)
      expect(yield* bad('{"__proto__":{"amount":1},"constructor":1}')).toEqual([400, ["amount: is missing"]])
      expect((yield* send(url, `${path}/deposits`, { _tag: "Deposit", amount: 1 })).status).toBe(200)
    })
  )

  it.effect("a body that is no JSON by its media type is 415, and one that is too large is 413", () =>
    Effect.gen(function* () {
      const { path, url } = yield* opened()
      const text = JSON.stringify({ amount: 1 })
      for (const type of [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/jsonx"
      ]) {
        const answer = yield* send(url, `${path}/deposits`, text, { "content-type": type })
        expect([answer.status, issuesOf(answer)]).toEqual([415, [": the content-type must be application/json"]])
      }
      const untyped = yield* ask(url, `${path}/deposits`, { method: "POST", body: new Blob([text]) })
      expect(untyped.status).toBe(415)
      for (const type of ["application/json; charset=utf-8", "application/vnd.bank+json", "APPLICATION/JSON"]) {
        expect((yield* send(url, `${path}/deposits`, text, { "content-type": type })).status).toBe(200)
      }
      const large = yield* send(url, `${path}/deposits`, { amount: 1, text: "x".repeat(20_000) })
      expect([large.status, issuesOf(large)]).toEqual([413, [": the body must have at most 10000 bytes"]])
      expect(yield* eventsOf(path)).toHaveLength(5)
    })
  )

  it.effect("a large body that does not say its length is cut off, and the server goes on", () =>
    Effect.gen(function* () {
      const { path, url } = yield* opened()
      const status = yield* Effect.async<number | "closed">((resume) => {
        const request = httpRequest(`${url}${path}/deposits`, {
          method: "POST",
          headers: { "content-type": "application/json", "transfer-encoding": "chunked" }
        })
        request.once("response", ({ statusCode }) => resume(Effect.succeed(statusCode ?? 0)))
        request.once("error", () => resume(Effect.succeed("closed")))
        for (let chunk = 0; chunk < 20; chunk++) request.write("x".repeat(1000))
        request.end()
      })
      expect([413, "closed"]).toContain(status)
      expect((yield* send(url, `${path}/deposits`, { amount: 1 })).status).toBe(200)
    })
  )

  it.effect("ids may have any characters, and a bad one is 400", () =>
    Effect.gen(function* () {
      const url = yield* Url
      for (const id of ["a/b", "ü ß", "100%", "?#", "a+b", "€", "%2F", "a@1", "'; drop table events; --"]) {
        const path = `/accounts/${encodeURIComponent(id)}`
        const { body, headers, status } = yield* send(url, `${path}/open-account`, { owner: "Ann" })
        expect([status, body.position]).toEqual([200, { aggregateId: `Account/${id}`, sequence: 1 }])
        expect(headers.get("stream-position")).toMatch(/^[!-~]+@1$/)
        expect((yield* ask(url, path)).body.position.aggregateId).toBe(`Account/${id}`)
      }
      for (const id of ["%00", "x".repeat(300)]) {
        const answers = [yield* ask(url, `/accounts/${id}`), yield* send(url, `/accounts/${id}/freeze`, {})]
        for (const answer of answers)
          expect([answer.status, issuesOf(answer)]).toMatchObject([400, [expect.stringMatching(/^id: /)]])
      }
      for (const id of ["%", "%zz", "%ff"]) expect((yield* ask(url, `/accounts/${id}`)).status).toBeOneOf([400, 404])
    })
  )

  it.effect("with If-Match the state is changed only if it is the one that the client has seen", () =>
    Effect.gen(function* () {
      const { path, url } = yield* opened()
      const etag = (yield* ask(url, path)).headers.get("etag") ?? ""
      const both = yield* Effect.all(
        [1, 2].map((amount) => send(url, `${path}/withdraw`, { amount }, { "if-match": etag })),
        { concurrency: "unbounded" }
      )
      expect(statusesOf(both)).toEqual([200, 412])
      const id = path.split("/")[2]
      expect(both.find(({ status }) => status === 412)?.body).toEqual({
        _tag: "UnexpectedSequence",
        kind: "Account",
        id,
        expected: 2,
        actual: 3
      })
      expect((yield* send(url, `${path}/withdraw`, { amount: 1 }, { "if-match": 'W/"3"' })).status).toBe(200)
      expect((yield* send(url, `${path}/withdraw`, { amount: 1 }, { "if-match": '"9999999999"' })).status).toBe(400)
      expect(yield* eventsOf(path)).toHaveLength(4)
    })
  )

  it.effect("with If-None-Match: * one of many writers creates the aggregate", () =>
    Effect.gen(function* () {
      const url = yield* Url
      const path = `/accounts/${crypto.randomUUID()}`
      const answers = yield* Effect.all(
        Array.from({ length: 10 }, () => send(url, `${path}/open-account`, { owner: "Ann" }, { "if-none-match": "*" })),
        { concurrency: "unbounded" }
      )
      expect(statusesOf(answers)).toEqual([200, ...Array<number>(9).fill(412)])
      expect(answers.find(({ status }) => status === 412)?.body).toMatchObject({ expected: 0, actual: 1 })
    })
  )

  it.effect("conditions that can't be understood are 400, and name their headers", () =>
    Effect.gen(function* () {
      const { path, url } = yield* opened()
      const issues = (headers: Record<string, string>) =>
        Effect.map(send(url, `${path}/freeze`, {}, headers), (answer) => [answer.status, ...issuesOf(answer)])
      const badMatch = [400, 'if-match: must be one ETag of this resource, such as "3"']
      for (const match of ["3", "*", '"3", "4"', '"x"', '"-1"', '"', '"1"x', ""]) {
        expect(yield* issues({ "if-match": match })).toEqual(badMatch)
      }
      expect(yield* issues({ "if-none-match": '"3"' })).toEqual([
        400,
        "if-none-match: must be * for a command: the aggregate must have no events"
      ])
      expect(yield* issues({ "if-match": '"3"', "if-none-match": "*" })).toMatchObject([
        400,
        expect.stringContaining("together")
      ])
      expect(yield* issues({ "if-match": "x", "idempotency-key": '"' })).toEqual([
        400,
        'idempotency-key: must be a text in quotes, such as "8e03978e"',
        badMatch[1]
      ])
      expect(yield* issues({ "idempotency-key": "" })).toEqual([400, "idempotency-key: must not be empty"])
      expect(yield* issues({ "idempotency-key": "k".repeat(1001) })).toMatchObject([
        400,
        expect.stringMatching(/^idempotency-key: /)
      ])
      expect(yield* issues({ "x-request-id": "r".repeat(256) })).toMatchObject([
        400,
        expect.stringMatching(/^x-request-id: /)
      ])
      expect(yield* eventsOf(path)).toHaveLength(2)
    })
  )

  it.effect("a read with the ETag of the state is 304 without a body", () =>
    Effect.gen(function* () {
      const { path, url } = yield* opened()
      const read = (match: string) =>
        Effect.map(ask(url, path, { headers: { "if-none-match": match } }), ({ body, headers, status }) => [
          status,
          body === undefined,
          headers.get("etag")
        ])
      for (const match of ['"2"', 'W/"2"', '"1", "2"', "*"]) expect(yield* read(match)).toEqual([304, true, '"2"'])
      for (const match of ['"1"', "2", "x"]) expect(yield* read(match)).toEqual([200, false, '"2"'])
    })
  )

  it.effect("a command with an Idempotency-Key takes effect once, however many requests come at a time", () =>
    Effect.gen(function* () {
      const { path, url } = yield* opened()
      const key = crypto.randomUUID()
      const deposit = (amount: number, header: string) =>
        send(url, `${path}/deposits`, { amount }, { "idempotency-key": header })
      const answers = yield* Effect.all(
        // In quotes, as the standard has it, or bare: it is one key.
        Array.from({ length: 20 }, (_, index) => deposit(5, index % 2 === 0 ? key : `"${key}"`)),
        { concurrency: "unbounded" }
      )
      expect(statusesOf(answers)).toEqual(Array<number>(20).fill(200))
      expect(answers.filter(({ body }) => !body.duplicate)).toHaveLength(1)
      for (const { body } of answers) expect(body.state).toEqual({ owner: "Ann", balance: 35 })
      const other = yield* deposit(6, key)
      expect([other.status, other.body]).toMatchObject([422, { _tag: "CommandIdReused", commandId: key }])
      expect(yield* eventsOf(path)).toHaveLength(3)
    })
  )

  it.effect("a repetition with If-Match is a duplicate, also when the state has moved on", () =>
    Effect.gen(function* () {
      const { path, url } = yield* opened()
      const headers = { "if-match": '"2"', "idempotency-key": '"with \\"quotes\\" and \\\\"' }
      const first = yield* send(url, `${path}/deposits`, { amount: 1 }, headers)
      yield* send(url, `${path}/deposits`, { amount: 1 })
      const second = yield* send(url, `${path}/deposits`, { amount: 1 }, headers)
      expect([first, second].map(({ body, status }) => [status, body.duplicate, body.position.sequence])).toEqual([
        [200, false, 3],
        [200, true, 4]
      ])
      expect(second.headers.get("etag")).toBe('"4"')
    })
  )

  it.effect("the request id becomes the correlation id of the events", () =>
    Effect.gen(function* () {
      const { path, url } = yield* opened()
      yield* send(url, `${path}/deposits`, { amount: 1 }, { "x-request-id": "request 7" })
      expect((yield* eventsOf(path)).map(({ correlationId }) => correlationId).at(-1)).toBe("request 7")
      const { events } = yield* EventFeed.read({ filter: { correlationId: "request 7" } })
      expect(events).toHaveLength(1)
    })
  )

  it.effect("other methods and paths have no endpoint", () =>
    Effect.gen(function* () {
      const { path, url } = yield* opened()
      expect((yield* ask(url, `${path}/deposits`)).status).toBe(404)
      expect((yield* ask(url, `${path}/close`, { method: "POST" })).status).toBe(404)
      expect((yield* ask(url, path, { method: "DELETE" })).status).toBe(404)
      expect((yield* ask(url, "/accounts/")).status).toBe(404)
    })
  )
})
