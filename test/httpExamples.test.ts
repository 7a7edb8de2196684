/** The servers of the examples: the bank answers requests and has its pages, and names stay unique on a Postgres server. */
import * as HttpServer from "@effect/platform/HttpServer"
import { expect, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { EventFeed, ProjectionTables, SqlStore } from "effect-maestro"
import { layerServer } from "../examples/bank-http/Server.js"
import { Join, Member, Rename } from "../examples/unique-names/Member.js"
import { layerPg } from "./database.js"
import { ask, send } from "./httpServer.js"

it.scopedLive("the bank of the examples answers requests of its users, and has a page and documentation", () =>
  Effect.gen(function* () {
    const { address } = Context.get(yield* Layer.build(layerServer(0, layerPg())), HttpServer.HttpServer)
    const url = address._tag === "TcpAddress" ? `http://127.0.0.1:${address.port}` : address.path
    const ann = { authorization: "Bearer ann" }
    expect((yield* send(url, "/accounts/ann-1/open", { owner: "Ann" })).status).toBe(401)
    expect((yield* send(url, "/accounts/bob-1/open", { owner: "Ann" }, ann)).status).toBe(403)
    expect((yield* send(url, "/accounts/ann-1/open", { owner: "Ann" }, { ...ann, "if-none-match": "*" })).status).toBe(
      200
    )
    expect((yield* send(url, "/accounts/ann-1/open", { owner: "Ann" }, { ...ann, "if-none-match": "*" })).status).toBe(
      412
    )
    const { headers } = yield* send(url, "/accounts/ann-1/deposit", { amount: 20 }, ann)
    expect((yield* send(url, "/accounts/ann-1/withdraw", { amount: 30 }, ann)).body).toEqual({
      _tag: "InsufficientFunds",
      balance: 20
    })
    const after = encodeURIComponent(headers.get("stream-position") ?? "")
    expect((yield* ask(url, `/balances?after=${after}`, { headers: ann })).body).toEqual([
      { account: "ann-1", balance: 20 }
    ])
    // A name with a wildcard of SQL sees no accounts of others.
    for (const name of ["bob", "%", "_nn"]) {
      expect((yield* ask(url, "/balances", { headers: { authorization: `Bearer ${name}` } })).body).toEqual([])
    }
    expect(Object.keys((yield* ask(url, "/openapi.json")).body.paths)).toContain("/accounts/{id}/withdraw")
    const pageOf = (path: string) => Effect.promise(() => fetch(`${url}${path}`).then((response) => response.text()))
    expect(yield* pageOf("/docs")).toContain("swagger-ui")
    const page = yield* pageOf("/")
    const [, script = ""] = /<script type="module">(.*)<\/script>/s.exec(page) ?? []
    expect(() => new Function(`return async () => {${script}}`)).not.toThrow()
    for (const [, id] of script.matchAll(/field\("(\w+)"\)/g)) expect(page).toContain(`id="${id}"`)
  })
)

const layerMembers = Member.layer.pipe(
  Layer.provideMerge(ProjectionTables.layer(Member.projections)),
  Layer.provideMerge(SqlStore.layer),
  Layer.provideMerge(layerPg())
)

it.scopedLive("of many members who want one name at a time, one gets it, and the others store nothing", () =>
  Effect.gen(function* () {
    const ids = Array.from({ length: 20 }, (_, index) => `m${index}`)
    yield* Effect.forEach(ids, (id) => Member.evaluate(id, new Join({ name: id })), { concurrency: 5 })
    const results = yield* Effect.forEach(
      ids,
      (id, index) => Effect.either(Member.evaluate(id, new Rename({ name: index % 2 === 0 ? "Ann" : "ANN" }))),
      { concurrency: "unbounded" }
    )
    const refused = results.flatMap((result) => (result._tag === "Left" ? [result.left] : []))
    expect(refused).toHaveLength(19)
    for (const { _tag } of refused) expect(_tag).toBe("NameTaken")
    const { events } = yield* EventFeed.read()
    expect(events).toHaveLength(21)
  }).pipe(Effect.provide(layerMembers))
)
