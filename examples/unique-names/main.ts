/**
 * Unique names at work: a name that is taken, twenty members who want one name at a time, a name that is free again, and HTTP.
 *
 * Run it by `npx tsx examples/unique-names/main.ts`. It uses an embedded Postgres.
 */
import { createServer } from "node:http"
import * as HttpApi from "@effect/platform/HttpApi"
import * as HttpApiBuilder from "@effect/platform/HttpApiBuilder"
import * as HttpApiEndpoint from "@effect/platform/HttpApiEndpoint"
import * as HttpMiddleware from "@effect/platform/HttpMiddleware"
import * as HttpServer from "@effect/platform/HttpServer"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Arr from "effect/Array"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Schema from "effect/Schema"
import { ProjectionTables, SqlStore } from "effect-maestro"
import * as AggregateHttp from "effect-maestro/AggregateHttp"
import * as PgliteClient from "effect-maestro/PgliteClient"
import { Join, Leave, Member, Rename } from "./Member.js"

const Members = AggregateHttp.make(Member, {
  name: "members",
  path: "/members",
  statuses: { NameTaken: 409, AlreadyMember: 409, NoMember: 404 }
})

const Row = Schema.Struct({ member: Schema.String, name: Schema.String, since: Schema.Date })

/** A further endpoint. It reads the table, which has each own write, because it is part of the commits. */
const listNames = HttpApiEndpoint.get("names", "/names").addSuccess(Schema.Array(Row))

class Api extends HttpApi.make("club").add(Members.group.add(listNames)) {}

const layerMembers = HttpApiBuilder.group(Api, "members", (handlers) =>
  Members.handle(handlers).handle("names", () =>
    Effect.flatMap(
      SqlClient.SqlClient,
      (sql) => sql<typeof Row.Type>`select member, name, since from names order by lower(name)`
    ).pipe(Effect.orDie)
  )
)

// The logger writes each request, and why one has failed with status 500.
const layerServer = HttpApiBuilder.serve(HttpMiddleware.logger).pipe(
  Layer.provide(HttpApiBuilder.api(Api).pipe(Layer.provide(layerMembers))),
  Layer.provideMerge(NodeHttpServer.layer(createServer, { port: 0 }))
)

const layer = layerServer.pipe(
  Layer.provideMerge(Member.layer),
  Layer.provideMerge(ProjectionTables.layer(Member.projections)),
  Layer.provideMerge(SqlStore.layer),
  Layer.provideMerge(PgliteClient.layerMemory)
)

const join = (id: string, name: string) =>
  Member.evaluate(id, new Join({ name })).pipe(
    Effect.as(`${id} is ${name}`),
    Effect.catchTag("NameTaken", (refused) => Effect.succeed(`${id} is refused: ${refused.name} is taken`))
  )

const showNames = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const rows = yield* sql<{ name: string }>`select name from names order by lower(name)`
  yield* Console.log(`  names: ${rows.map(({ name }) => name).join(", ")}`)
})

const call = (path: string, init?: RequestInit) =>
  Effect.gen(function* () {
    const url = yield* HttpServer.addressFormattedWith((address) => Effect.succeed(new URL(address)))
    const response = yield* Effect.promise(() => fetch(`http://127.0.0.1:${url.port}${path}`, init))
    return [response.status, yield* Effect.promise(() => response.text())] as const
  })

const post = (path: string, body: object) =>
  Effect.flatMap(
    call(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) }),
    ([status, text]) => Console.log(`  ${status} ${text}`)
  )

const program = Effect.gen(function* () {
  yield* Console.log("A name is taken, in any case")
  for (const [id, name] of [
    ["m1", "Ann"],
    ["m2", "ann"],
    ["m2", "Bob"]
  ] as const) {
    yield* Console.log(`  ${yield* join(id, name)}`)
  }
  yield* Console.log("Twenty members want one name at a time")
  const results = yield* Effect.forEach(
    Arr.range(1, 20),
    (n) => Effect.map(join(`n${n}`, "Cid"), (text) => (text.includes("refused") ? "refused" : "joined")),
    { concurrency: "unbounded" }
  )
  const [refused, joined] = Arr.partition(results, (result) => result === "joined")
  yield* Console.log(`  ${joined.length} joined, and ${refused.length} were refused`)
  yield* showNames

  yield* Console.log("A name that is given up is free in the same moment")
  yield* Member.evaluate("m1", new Rename({ name: "Dora" }))
  yield* Console.log(`  ${yield* join("m3", "Ann")}`)
  yield* Member.evaluate("m2", new Leave())
  yield* Console.log(`  ${yield* join("m4", "Bob")}`)
  yield* showNames

  yield* Console.log("Over HTTP")
  yield* post("/members/m5/join", { name: "ANN" })
  yield* post("/members/m5/join", { name: "Eve" })
  const [status, names] = yield* call("/names")
  yield* Console.log(`  ${status} ${names.slice(0, names.indexOf(","))} …`)
})

// Without the lines of the HTTP logger, which would be between those of the program.
program.pipe(Effect.provide(layer), Logger.withMinimumLogLevel(LogLevel.Warning), NodeRuntime.runMain)
