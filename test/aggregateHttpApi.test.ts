/** An API with endpoints of an aggregate: typed clients, OpenAPI, middleware, own endpoints, reads of own writes. */
import * as FetchHttpClient from "@effect/platform/FetchHttpClient"
import * as HttpApi from "@effect/platform/HttpApi"
import * as HttpApiBuilder from "@effect/platform/HttpApiBuilder"
import * as HttpApiClient from "@effect/platform/HttpApiClient"
import * as HttpApiEndpoint from "@effect/platform/HttpApiEndpoint"
import * as HttpApiError from "@effect/platform/HttpApiError"
import * as HttpApiMiddleware from "@effect/platform/HttpApiMiddleware"
import * as HttpApiSchema from "@effect/platform/HttpApiSchema"
import * as HttpApiSecurity from "@effect/platform/HttpApiSecurity"
import * as HttpApiSwagger from "@effect/platform/HttpApiSwagger"
import * as OpenApi from "@effect/platform/OpenApi"
import { expect, it } from "@effect/vitest"
import * as Arbitrary from "effect/Arbitrary"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Ref from "effect/Ref"
import * as Schema from "effect/Schema"
import { Aggregate, EventFeed, MemoryStore, Subscription } from "effect-maestro"
import * as AggregateHttp from "effect-maestro/AggregateHttp"
import { inject } from "vitest"
import {
  Account,
  Accounts,
  Api,
  ask,
  Deposit,
  Freeze,
  InsufficientFunds,
  layerAccounts,
  NotOpen,
  OpenAccount,
  send,
  serve,
  Withdraw
} from "./httpServer.js"

const layerApi = HttpApiBuilder.api(Api).pipe(Layer.provide(layerAccounts), Layer.provide(Account.layer))

it.scopedLive("a typed client gets results, refusals and failures of conditions as they are declared", () =>
  Effect.gen(function* () {
    const url = yield* serve(layerApi.pipe(Layer.provide(MemoryStore.layer)))
    const client = yield* HttpApiClient.make(Api, { baseUrl: url })
    // The client of HttpApi does not encode the path, so the schema of the path does.
    const path = { id: "Ann & Bob/1?" }
    const headers = {}
    const opened = yield* client.accounts.openAccount({ path, headers, payload: new OpenAccount({ owner: "Ann" }) })
    expect(opened).toEqual({
      state: { owner: "Ann", balance: 0 },
      position: { aggregateId: "Account/Ann & Bob/1?", sequence: 1 },
      duplicate: false
    })
    yield* client.accounts.deposit({ path, headers, payload: new Deposit({ amount: 30 }) })
    expect((yield* client.accounts.get({ path, headers })).state).toEqual({ owner: "Ann", balance: 30 })
    const withdraw = (headers: AggregateHttp.CommandHeaders, amount = 50) =>
      client.accounts.withdraw({ path, headers, payload: new Withdraw({ amount }) })
    const refused = yield* Effect.flip(withdraw({}))
    expect(refused).toBeInstanceOf(InsufficientFunds)
    expect(refused).toMatchObject({ balance: 30 })
    expect(yield* Effect.flip(withdraw({ "if-match": AggregateHttp.etag(1) }))).toMatchObject({
      _tag: "UnexpectedSequence",
      expected: 1,
      actual: 2
    })
    yield* withdraw({ "idempotency-key": "k" }, 1)
    expect(yield* Effect.flip(withdraw({ "idempotency-key": "k" }, 2))).toMatchObject({ _tag: "CommandIdReused" })
    const none = yield* Effect.flip(
      client.accounts.deposit({ path: { id: "none" }, headers, payload: new Deposit({ amount: 1 }) })
    )
    expect(none).toBeInstanceOf(NotOpen)
    expect(yield* Effect.flip(client.accounts.get({ path: { id: "none" }, headers }))).toBeInstanceOf(
      HttpApiError.NotFound
    )
    expect(
      yield* Effect.flip(client.accounts.freeze({ path: { id: "\u0000" }, headers, payload: new Freeze() }))
    ).toMatchObject({
      _tag: "HttpApiDecodeError",
      issues: [{ path: ["id"] }]
    })
  }).pipe(Effect.provide(FetchHttpClient.layer))
)

it.scopedLive("OpenAPI shows what the server answers, and Swagger has a page for it", () =>
  Effect.gen(function* () {
    const url = yield* serve(
      layerApi.pipe(
        Layer.provideMerge(
          Layer.mergeAll(HttpApiSwagger.layer(), HttpApiBuilder.middlewareOpenApi()).pipe(Layer.provide(layerApi))
        ),
        Layer.provide(MemoryStore.layer)
      )
    )
    const { body: spec } = yield* ask(url, "/openapi.json")
    expect(spec).toEqual(JSON.parse(JSON.stringify(OpenApi.fromApi(Api))))
    const { get } = spec.paths["/accounts/{id}"]
    const { post } = spec.paths["/accounts/{id}/withdraw"]
    expect(Object.keys(spec.paths)).toEqual(
      ["", "/open-account", "/deposits", "/withdraw", "/freeze"].map((path) => `/accounts/{id}${path}`)
    )
    expect(Object.keys(get.responses)).toEqual(["200", "304", "400", "404", "500", "503"])
    expect(Object.keys(post.responses)).toEqual(["200", "400", "404", "409", "412", "413", "415", "422", "500", "503"])
    const schemaOf = (operation: { responses: Record<string, { content: object }> }, status: number) =>
      Object.entries(operation.responses[status]?.content ?? {}).map(([type, { schema }]) => [type, schema])[0]
    const ref = (name: string) => ({ $ref: `#/components/schemas/${name}` })
    expect(schemaOf(post, 422)).toEqual([
      "application/json",
      { anyOf: [ref("CommandIdReused"), ref("InsufficientFunds")] }
    ])
    expect(schemaOf(post, 404)).toEqual(["application/json", ref("NotOpen")])
    expect(schemaOf(post, 409)).toEqual(["application/json", ref("RetryCommand")])
    expect(schemaOf(post, 412)).toEqual(["application/json", ref("UnexpectedSequence")])
    expect(schemaOf(post, 400)).toEqual(["application/json", ref("HttpApiDecodeError")])
    expect(schemaOf(post, 503)).toEqual(["application/json", ref("Unavailable")])
    expect(schemaOf(get, 404)).toBe(undefined)
    for (const name of Object.keys(spec.components.schemas)) expect(name).toMatch(/^[A-Za-z0-9._-]+$/)
    expect(post.responses["422"].description).toBe(
      "Refused: InsufficientFunds. The Idempotency-Key belongs to another command"
    )
    const headersOf = (status: string) => Object.keys(post.responses[status].headers ?? {})
    expect([headersOf("200"), headersOf("409"), headersOf("503"), headersOf("422")]).toEqual([
      ["etag", "stream-position"],
      ["retry-after"],
      ["retry-after"],
      []
    ])
    expect(
      post.parameters.map(({ in: place, name, required }: { in: string; name: string; required: boolean }) => [
        place,
        name,
        required
      ])
    ).toEqual([
      ["path", "id", true],
      ["header", "idempotency-key", false],
      ["header", "if-match", false],
      ["header", "if-none-match", false],
      ["header", "x-request-id", false]
    ])
    expect(post.requestBody).toMatchObject({
      required: true,
      content: {
        "application/json": {
          schema: { type: "object", required: ["amount"], properties: { amount: ref("Positive") } }
        }
      }
    })
    // The server leaves out fields that it does not know.
    expect(JSON.stringify(post.requestBody)).not.toContain("additionalProperties")
    expect(get.responses["200"].content["application/json"].schema.additionalProperties).toBe(false)
    const { post: open } = spec.paths["/accounts/{id}/open-account"]
    expect(open.responses["409"].headers["retry-after"].description).toMatch(/Only RetryCommand has it$/)
    expect(post.responses["409"].headers["retry-after"].description).not.toContain("Only")
    expect(spec.paths["/accounts/{id}/freeze"].post.requestBody.required).toBe(true)
    const page = yield* Effect.promise(async () => (await fetch(`${url}/docs`)).text())
    expect(page).toContain("idempotency-key")
  })
)

// --- an application with users, rules of its own, and a read model ---

class User extends Context.Tag("test/User")<User, { readonly name: string }>() {}

class Authentication extends HttpApiMiddleware.Tag<Authentication>()("test/Authentication", {
  failure: HttpApiError.Unauthorized,
  provides: User,
  security: { bearer: HttpApiSecurity.bearer }
}) {}

const layerAuthentication = Layer.succeed(Authentication, {
  bearer: (token) =>
    Redacted.value(token) === "" ? new HttpApiError.Unauthorized() : Effect.succeed({ name: Redacted.value(token) })
})

const OwnAccounts = AggregateHttp.make(Account, {
  name: "accounts",
  only: ["OpenAccount", "Deposit"],
  view: {
    schema: Schema.Struct({ id: Schema.String, cents: Schema.NumberFromString }),
    of: ({ id, state }) => ({ id, cents: state.balance * 100 })
  }
})

class OwnApi extends HttpApi.make("own")
  .add(
    OwnAccounts.group
      .add(
        HttpApiEndpoint.get("opened", "/opened")
          .setUrlParams(AggregateHttp.After)
          .addSuccess(Schema.Array(Schema.String))
          .addError(AggregateHttp.Unavailable)
      )
      .addError(HttpApiError.Forbidden)
      .middleware(Authentication)
      .prefix("/bank")
  )
  .prefix("/v1") {}

class OpenedAccounts extends Context.Tag("test/OpenedAccounts")<OpenedAccounts, Ref.Ref<ReadonlyArray<string>>>() {}

const Follower = Subscription.make("opened", {
  delivery: "at-least-once",
  on: Subscription.on(Account, {
    Opened: (_, { id }) =>
      Effect.flatMap(
        OpenedAccounts,
        Ref.update((ids) => [...ids, id])
      )
  })
})

const layerOwnAccounts = HttpApiBuilder.group(OwnApi, "accounts", (handlers) =>
  OwnAccounts.handle(handlers, {
    metadata: Effect.map(User, ({ name }) => ({ user: name })),
    authorize: ({ command, id }) =>
      Effect.flatMap(User, ({ name }) =>
        id.startsWith(name) && !(command?._tag === "OpenAccount" && command.owner === "Mallory")
          ? Effect.void
          : new HttpApiError.Forbidden()
      )
  }).handle("opened", ({ urlParams }) =>
    Effect.zipRight(
      AggregateHttp.waitFor(Follower, { timeout: "200 millis", retryAfter: "2 seconds" })(urlParams),
      Effect.flatMap(OpenedAccounts, Ref.get)
    )
  )
)

const layerReadModel = Layer.effect(OpenedAccounts, Ref.make<ReadonlyArray<string>>([]))

const served = serve(
  HttpApiBuilder.api(OwnApi).pipe(Layer.provide(layerOwnAccounts), Layer.provide(layerAuthentication))
)

const layerOwn = Account.layer.pipe(Layer.provideMerge(Layer.merge(MemoryStore.layer, layerReadModel)))

it.scopedLive("an application has prefixes, users, rules and endpoints of its own", () =>
  Effect.gen(function* () {
    const url = yield* served
    const asAnn = { authorization: "Bearer ann" }
    const open = (id: string, owner: string, headers: Record<string, string>) =>
      Effect.map(send(url, `/v1/bank/account/${id}/open-account`, { owner }, headers), ({ status }) => status)
    expect(yield* open("ann-1", "Ann", {})).toBe(401)
    expect(yield* open("bob-1", "Ann", asAnn)).toBe(403)
    expect(yield* open("ann-1", "Mallory", asAnn)).toBe(403)
    expect(yield* open("ann-1", "Ann", asAnn)).toBe(200)
    expect((yield* send(url, "/v1/bank/account/ann-1/withdraw", { amount: 1 }, asAnn)).status).toBe(404)
    yield* send(url, "/v1/bank/account/ann-1/deposit", { amount: 3 }, asAnn)
    const read = (id: string) => ask(url, `/v1/bank/account/${id}`, { headers: asAnn })
    expect((yield* read("ann-1")).body.state).toEqual({ id: "ann-1", cents: "300" })
    expect((yield* read("bob-1")).status).toBe(403)
    const { events } = yield* EventFeed.read()
    expect(events.map(({ metadata }) => metadata)).toEqual([{ user: "ann" }, { user: "ann" }])
    expect(OpenApi.fromApi(OwnApi).paths["/v1/bank/account/{id}/deposit"]?.post?.security).toEqual([{ bearer: [] }])
  }).pipe(Effect.provide(layerOwn))
)

it.scopedLive(
  "a read with `after` waits for the subscription, and is 503 with Retry-After if that is not in time",
  () =>
    Effect.gen(function* () {
      const url = yield* served
      const headers = { authorization: "Bearer ann" }
      const opened = (after: string) => ask(url, `/v1/bank/opened?after=${encodeURIComponent(after)}`, { headers })
      const { headers: sent } = yield* send(
        url,
        "/v1/bank/account/ann%20%C3%BC/open-account",
        { owner: "Ann" },
        headers
      )
      const position = sent.get("stream-position") ?? ""
      expect(position).toBe("Account/ann%20%C3%BC@1")
      const late = yield* opened(position)
      expect([late.status, late.body, late.headers.get("retry-after")]).toEqual([
        503,
        { _tag: "Unavailable", what: "Projection", retryAfter: 2 },
        "2"
      ])
      expect((yield* ask(url, "/v1/bank/opened", { headers })).body).toEqual([])
      yield* Effect.forkScoped(Follower.run)
      const found = yield* Effect.repeat(opened(position), { until: ({ status }) => status === 200 })
      expect(found.body).toEqual(["ann ü"])
      const head = yield* EventFeed.head
      expect((yield* opened(head)).body).toEqual(["ann ü"])
      for (const bad of ["x", "Account/1", "Account/%zz@1", "Account/1@99999999999", "@1", "1-x"]) {
        expect(yield* opened(bad)).toMatchObject({ status: 400, body: { _tag: "HttpApiDecodeError" } })
      }
      expect((yield* opened("Account/never@1")).status).toBeOneOf([400, 503])
    }).pipe(Effect.provide(layerOwn))
)

it("a stream position is text of a header, and is read again as it was", () => {
  const { decodeSync, encodeSync } = Schema
  FastCheck.assert(
    FastCheck.property(Arbitrary.make(EventFeed.StreamPosition), (position) => {
      const wellFormed = { ...position, aggregateId: position.aggregateId.toWellFormed() }
      const text = encodeSync(EventFeed.StreamPositionFromString)(wellFormed)
      expect(text).toMatch(/^[!-~]+$/)
      expect(decodeSync(EventFeed.StreamPositionFromString)(text)).toEqual(wellFormed)
    }),
    { numRuns: inject("runs") }
  )
  expect(() => encodeSync(EventFeed.StreamPositionFromString)({ aggregateId: "\ud800", sequence: 1 })).toThrow(
    "no valid text"
  )
})

const Audit = Aggregate.metadata(Schema.Struct({ user: Schema.String, at: Schema.DateFromNumber }))

it.scopedLive("metadata may have a schema, and a value that it refuses is 500 without details", () =>
  Effect.gen(function* () {
    let at = new Date(7)
    const url = yield* serve(
      HttpApiBuilder.api(Api).pipe(
        Layer.provide(
          HttpApiBuilder.group(Api, "accounts", (handlers) =>
            Accounts.handle(handlers, { metadata: Effect.sync(() => Audit.provide({ user: "ann", at })) })
          )
        )
      )
    )
    expect((yield* send(url, "/accounts/a/freeze", {})).status).toBe(200)
    const { events } = yield* EventFeed.read()
    expect(events.map(({ metadata }) => metadata)).toEqual([{ user: "ann", at: 7 }])
    at = new Date(Number.NaN)
    const { body, status } = yield* send(url, "/accounts/a/freeze", {})
    expect([status, body]).toEqual([500, undefined])
  }).pipe(Effect.provide(layerOwn))
)

// --- options ---

class Hot extends Schema.TaggedError<Hot>()("Hot", {}, HttpApiSchema.annotations({ status: 418 })) {}
class Brewed extends Schema.TaggedClass<Brewed>()("Brewed", {}) {}
class Brew extends Schema.TaggedClass<Brew>()("Brew", {}) {}
const PotId = Schema.TemplateLiteral("pot-", Schema.Number)

const makePot = <const Name extends string>(name: Name) =>
  Aggregate.make(name, {
    id: PotId,
    newId: Effect.succeed("pot-1" as const),
    state: Schema.Struct({}),
    initialState: {},
    events: Brewed,
    commands: Brew,
    refusals: { Brew: [Hot] },
    decide: { Brew: (_, { sequence }) => (sequence > 0 ? new Hot() : Effect.succeed([new Brewed()])) },
    evolve: { Brewed: (state) => state }
  })

it.scopedLive("a refusal of two groups has the status of its own group, and ids have their schema", () =>
  Effect.gen(function* () {
    const [TeaPot, CoffeePot] = [makePot("TeaPot"), makePot("CoffeePot")]
    const [Tea, Coffee] = [AggregateHttp.make(TeaPot), AggregateHttp.make(CoffeePot, { statuses: { Hot: 409 } })]
    const PotApi = HttpApi.make("pots").add(Tea.group).add(Coffee.group)
    const url = yield* serve(
      HttpApiBuilder.api(PotApi).pipe(
        Layer.provide(HttpApiBuilder.group(PotApi, "teaPot", (handlers) => Tea.handle(handlers))),
        Layer.provide(HttpApiBuilder.group(PotApi, "coffeePot", (handlers) => Coffee.handle(handlers))),
        Layer.provide(Layer.merge(TeaPot.layer, CoffeePot.layer)),
        Layer.provide(MemoryStore.layer)
      )
    )
    const brew = (pot: string) => Effect.map(send(url, `/${pot}/brew`, {}), ({ body, status }) => [status, body])
    for (const pot of ["tea-pot", "coffee-pot"]) expect((yield* brew(`${pot}/pot-1`))[0]).toBe(200)
    expect(yield* brew("tea-pot/pot-1")).toEqual([418, { _tag: "Hot" }])
    expect(yield* brew("coffee-pot/pot-1")).toEqual([409, { _tag: "Hot" }])
    expect(yield* brew("tea-pot/can-1")).toMatchObject([
      400,
      { _tag: "HttpApiDecodeError", issues: [{ path: ["id"] }] }
    ])
    const [id] = OpenApi.fromApi(PotApi).paths["/tea-pot/{id}/brew"]?.post?.parameters ?? []
    expect(id).toMatchObject({ name: "id", schema: { type: "string", pattern: expect.stringContaining("pot-") } })
  })
)

it("options that can't work throw a TypeError by name", () => {
  const make = AggregateHttp.make as (aggregate: unknown, options: unknown) => unknown
  const messageOf = (options: unknown) => {
    try {
      make(Account, options)
      return "nothing"
    } catch (error) {
      return error instanceof TypeError ? error.message : String(error)
    }
  }
  expect(messageOf({})).toBe("nothing")
  expect(messageOf({ only: ["Close"] })).toBe("only of Account names what is no command: Close")
  expect(messageOf({ only: [] })).toBe("Account has no command for an endpoint")
  expect(messageOf({ paths: { Close: "/x" } })).toBe("paths of Account names what is no command: Close")
  expect(messageOf({ paths: { Deposit: "/withdraw" } })).toBe('Account: two endpoints have the path "/withdraw"')
  expect(messageOf({ statuses: { Closed: 409 } })).toBe("statuses of Account names what is no declared refusal: Closed")
  for (const status of [200, 399, 600, 422.5, Number.NaN]) {
    expect(messageOf({ statuses: { NotOpen: status } })).toMatch(
      /the status of NotOpen, a refusal of Account.Deposit, must be/
    )
  }
  for (const path of ["", "accounts", "/a b", "/../x", "/a/", "/a?b"]) {
    expect(messageOf({ path })).toMatch(/is no path of an endpoint/)
  }
  expect(messageOf({ retryAfter: "Infinity" })).toMatch(/retryAfter of Account/)
  expect(messageOf({ retryAfter: Number.POSITIVE_INFINITY })).toMatch(/retryAfter of Account/)
  expect(messageOf({ maxBodySize: 0 })).toBe("maxBodySize of Account must be a whole number above 0")
  expect(messageOf({ correlationHeader: "x request" })).toMatch(/correlationHeader of Account/)
  expect(Accounts.group.identifier).toBe("accounts")
})
