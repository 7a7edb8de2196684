/**
 * The API of a bank: the endpoints of its accounts, one of its own, and the users who may call them.
 */
import * as HttpApi from "@effect/platform/HttpApi"
import * as HttpApiBuilder from "@effect/platform/HttpApiBuilder"
import * as HttpApiEndpoint from "@effect/platform/HttpApiEndpoint"
import * as HttpApiError from "@effect/platform/HttpApiError"
import * as HttpApiMiddleware from "@effect/platform/HttpApiMiddleware"
import * as HttpApiSecurity from "@effect/platform/HttpApiSecurity"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { Projection, Subscription } from "effect-maestro"
import * as AggregateHttp from "effect-maestro/AggregateHttp"
import { Account } from "../aggregates/Account.js"

// --- the endpoints of the aggregate ---

export const Accounts = AggregateHttp.make(Account, {
  name: "accounts",
  path: "/accounts",
  statuses: { AlreadyOpen: 409, NotOpen: 404 },
  correlationHeader: "x-request-id"
})

// --- a table that follows the events, and an endpoint that reads it ---

const Balance = Schema.Struct({ account: Schema.String, balance: Schema.Number })

export const Balances = Subscription.fromProjections("balances", [
  Projection.makeSql({
    name: "balances",
    of: Account,
    tables: { balances: (sql) => sql`create table balances (account text primary key, balance float8 not null)` },
    project: {
      Opened: (_, { id }, sql) => sql`insert into balances (account, balance) values (${id}, 0)`,
      Deposited: ({ amount }, { id }, sql) =>
        sql`update balances set balance = balance + ${amount} where account = ${id}`,
      Withdrawn: ({ amount }, { id }, sql) =>
        sql`update balances set balance = balance - ${amount} where account = ${id}`
    }
  })
])

const listBalances = HttpApiEndpoint.get("balances", "/balances")
  .setUrlParams(AggregateHttp.After)
  .addSuccess(Schema.Array(Balance))
  .addError(AggregateHttp.Unavailable)

// --- users ---

class User extends Context.Tag("bank/User")<User, { readonly name: string }>() {}

class Authentication extends HttpApiMiddleware.Tag<Authentication>()("bank/Authentication", {
  failure: HttpApiError.Unauthorized,
  provides: User,
  security: { bearer: HttpApiSecurity.bearer }
}) {}

/** The token is the name of the user. A real bank verifies a token here. */
const layerAuthentication = Layer.succeed(Authentication, {
  bearer: (token) => {
    const name = Redacted.value(token)
    return name === "" ? new HttpApiError.Unauthorized() : Effect.succeed({ name })
  }
})

// --- the API ---

export class Api extends HttpApi.make("bank").add(
  Accounts.group.add(listBalances).addError(HttpApiError.Forbidden).middleware(Authentication)
) {}

const layerAccounts = HttpApiBuilder.group(Api, "accounts", (handlers) =>
  Accounts.handle(handlers, {
    metadata: Effect.map(User, ({ name }) => ({ user: name })),
    authorize: ({ id }) =>
      Effect.flatMap(User, ({ name }) => (id.startsWith(`${name}-`) ? Effect.void : new HttpApiError.Forbidden()))
  }).handle("balances", ({ urlParams }) =>
    Effect.gen(function* () {
      yield* AggregateHttp.waitFor(Balances, { timeout: "5 seconds" })(urlParams)
      const { name } = yield* User
      const sql = yield* SqlClient.SqlClient
      return yield* sql<typeof Balance.Type>`
        select account, balance from balances where starts_with(account, ${`${name}-`}) order by account`
    }).pipe(Effect.catchTag("SqlError", Effect.die))
  )
)

export const layerApi = HttpApiBuilder.api(Api).pipe(
  Layer.provide(layerAccounts.pipe(Layer.provide(layerAuthentication)))
)
