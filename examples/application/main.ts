/**
 * A whole application: an aggregate, a table that its transactions keep, a subscription, and an HTTP server.
 *
 * Run it by `npm run application`. It uses an embedded Postgres, or the server of `DATABASE_URL`.
 */
import { createServer } from "node:http"
import * as HttpApi from "@effect/platform/HttpApi"
import * as HttpApiBuilder from "@effect/platform/HttpApiBuilder"
import * as HttpApiEndpoint from "@effect/platform/HttpApiEndpoint"
import * as HttpApiGroup from "@effect/platform/HttpApiGroup"
import * as HttpMiddleware from "@effect/platform/HttpMiddleware"
import * as HttpServer from "@effect/platform/HttpServer"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as SqlClient from "@effect/sql/SqlClient"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Aggregate, Projection, ProjectionTables, SqlStore, type StoreError, Subscription } from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"

// --- the domain: events, commands, refusals, and a table that is part of every commit ---

class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Positive }) {}
class Withdrawn extends Schema.TaggedClass<Withdrawn>()("Withdrawn", { amount: Schema.Positive }) {}
class Deposit extends Schema.TaggedClass<Deposit>()("Deposit", { amount: Schema.Positive }) {}
class Withdraw extends Schema.TaggedClass<Withdraw>()("Withdraw", { amount: Schema.Positive }) {}
class InsufficientFunds extends Schema.TaggedError<InsufficientFunds>()("InsufficientFunds", {
  balance: Schema.Number
}) {}

const AccountEvent = Schema.Union(Deposited, Withdrawn)

const Balances = Projection.makeSql({
  name: "balances",
  tables: { balances: (sql) => sql`create table balances (account text primary key, balance float8 not null)` },
  events: AccountEvent,
  project: {
    Deposited: ({ amount }, { id }, sql) =>
      sql`insert into balances as b (account, balance) values (${id}, ${amount})
        on conflict (account) do update set balance = b.balance + excluded.balance`,
    Withdrawn: ({ amount }, { id }, sql) => sql`update balances set balance = balance - ${amount} where account = ${id}`
  }
})

const Account = Aggregate.make("Account", {
  state: Schema.Struct({ balance: Schema.Number }),
  initialState: { balance: 0 },
  events: AccountEvent,
  commands: Schema.Union(Deposit, Withdraw),
  decide: {
    Deposit: ({ amount }) => Effect.succeed([new Deposited({ amount })]),
    Withdraw: ({ amount }, { state }) =>
      amount > state.balance
        ? new InsufficientFunds({ balance: state.balance })
        : Effect.succeed([new Withdrawn({ amount })])
  },
  evolve: {
    Deposited: (state, { amount }) => ({ balance: state.balance + amount }),
    Withdrawn: (state, { amount }) => ({ balance: state.balance - amount })
  },
  projections: [Balances]
})

// --- a subscription: it handles every large withdrawal exactly once, on one of all nodes ---

const Alerts = Subscription.make("alerts", {
  on: Subscription.on(Account, {
    Withdrawn: ({ amount }, { id, sequence }) =>
      amount < 1000
        ? Effect.void
        : Effect.flatMap(
            SqlClient.SqlClient,
            (sql) => sql`insert into alerts (account, sequence, amount) values (${id}, ${sequence}, ${amount})`
          )
  })
})

// --- HTTP: refusals are typed answers ---

const Balance = Schema.Struct({ balance: Schema.Number })
const Amount = Schema.Struct({ amount: Schema.Positive })
const account = { path: Schema.Struct({ account: Schema.NonEmptyString }) }

class BadRequest extends Schema.TaggedError<BadRequest>()("BadRequest", { message: Schema.String }) {}

class Accounts extends HttpApiGroup.make("accounts")
  .add(HttpApiEndpoint.get("read", "/accounts/:account").setPath(account.path).addSuccess(Balance))
  .add(HttpApiEndpoint.get("richest", "/richest").addSuccess(Schema.Array(Schema.String)))
  .add(
    HttpApiEndpoint.post("deposit", "/accounts/:account/deposits")
      .setPath(account.path)
      .setPayload(Amount)
      .addSuccess(Balance)
  )
  .add(
    HttpApiEndpoint.post("withdraw", "/accounts/:account/withdrawals")
      .setPath(account.path)
      .setPayload(Amount)
      .addSuccess(Balance)
      .addError(InsufficientFunds, { status: 422 })
  )
  .addError(BadRequest, { status: 400 }) {}

class Api extends HttpApi.make("bank").add(Accounts) {}

const badRequest = ({ message }: StoreError.ValidationError) => new BadRequest({ message })

// A failure of the store is not an answer of this API, so it becomes a defect: status 500, and a line in the log by the
// middleware.
const failures = { ValidationError: badRequest, StoreError: Effect.die }
const commandFailures = { ...failures, RetryCommand: Effect.die }

const layerAccounts = HttpApiBuilder.group(Api, "accounts", (handlers) =>
  handlers
    .handle("read", ({ path }) => Account.fetch(path.account).pipe(Effect.catchTags(failures)))
    .handle("richest", () =>
      Effect.flatMap(
        SqlClient.SqlClient,
        (sql) => sql<{ account: string }>`select account from balances order by balance desc, account limit 10`
      ).pipe(
        Effect.map((rows) => rows.map(({ account }) => account)),
        Effect.orDie
      )
    )
    .handle("deposit", ({ path, payload }) =>
      Account.evaluate(path.account, new Deposit(payload)).pipe(
        Effect.map(({ state }) => state),
        Effect.catchTags(commandFailures)
      )
    )
    .handle("withdraw", ({ path, payload }) =>
      Account.evaluate(path.account, new Withdraw(payload)).pipe(
        Effect.map(({ state }) => state),
        Effect.catchTags(commandFailures)
      )
    )
)

// --- the layers: client, tables, store, domain, subscription, server ---

const layerClient = Layer.unwrapEffect(
  Effect.map(
    Config.option(Config.redacted("DATABASE_URL")),
    Option.match({
      onNone: () => PgliteClient.layerMemory,
      onSome: (url) => PgClient.layer({ url })
    })
  )
)

// The projection creates its own table. The table of the subscription is created here.
const layerTables = Layer.effectDiscard(
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    yield* sql`create table if not exists alerts (account text, sequence int, amount float8, primary key (account, sequence))`
  })
)

// `provideMerge` gives a layer to those above it, and passes it on, because the aggregate and the handlers use the
// client, too.
const layerDomain = Account.layer.pipe(
  Layer.provideMerge(ProjectionTables.layer(Account.projections)),
  Layer.provideMerge(SqlStore.layer),
  Layer.provideMerge(layerTables),
  Layer.provideMerge(layerClient)
)

const layerHttp = HttpApiBuilder.serve(HttpMiddleware.logger).pipe(
  HttpServer.withLogAddress,
  Layer.provide(HttpApiBuilder.api(Api)),
  Layer.provide(layerAccounts),
  Layer.provide(
    Layer.unwrapEffect(
      Effect.map(Config.withDefault(Config.integer("PORT"), 3000), (port) =>
        NodeHttpServer.layer(createServer, { port })
      )
    )
  )
)

const main = Layer.merge(layerHttp, Alerts.layer).pipe(Layer.provide(layerDomain))

NodeRuntime.runMain(Layer.launch(main))
