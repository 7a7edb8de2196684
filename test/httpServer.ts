/** An HTTP server for tests, on a free port, with a bank whose endpoints follow from its aggregate. */
import { createServer } from "node:http"
import * as HttpApi from "@effect/platform/HttpApi"
import * as HttpApiBuilder from "@effect/platform/HttpApiBuilder"
import * as HttpRouter from "@effect/platform/HttpRouter"
import * as HttpServer from "@effect/platform/HttpServer"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { Aggregate } from "effect-maestro"
import * as AggregateHttp from "effect-maestro/AggregateHttp"

export class Opened extends Schema.TaggedClass<Opened>()("Opened", { owner: Schema.NonEmptyString }) {}
export class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Positive }) {}
export class Withdrawn extends Schema.TaggedClass<Withdrawn>()("Withdrawn", { amount: Schema.Positive }) {}
export class Frozen extends Schema.TaggedClass<Frozen>()("Frozen", {}) {}

export class OpenAccount extends Schema.TaggedClass<OpenAccount>()("OpenAccount", { owner: Schema.NonEmptyString }) {}
export class Deposit extends Schema.TaggedClass<Deposit>()("Deposit", { amount: Schema.Positive }) {}
export class Withdraw extends Schema.TaggedClass<Withdraw>()("Withdraw", { amount: Schema.Positive }) {}
export class Freeze extends Schema.TaggedClass<Freeze>()("Freeze", {}) {}

export class AlreadyOpen extends Schema.TaggedError<AlreadyOpen>()("AlreadyOpen", { owner: Schema.String }) {}
export class NotOpen extends Schema.TaggedError<NotOpen>()("NotOpen", {}) {}
export class InsufficientFunds extends Schema.TaggedError<InsufficientFunds>()("InsufficientFunds", {
  balance: Schema.Number
}) {}

export const Account = Aggregate.make("Account", {
  state: Schema.Struct({ owner: Schema.NullOr(Schema.String), balance: Schema.Number }),
  initialState: { owner: null, balance: 0 },
  events: Schema.Union(Opened, Deposited, Withdrawn, Frozen),
  commands: Schema.Union(OpenAccount, Deposit, Withdraw, Freeze),
  refusals: { OpenAccount: [AlreadyOpen], Deposit: [NotOpen], Withdraw: [NotOpen, InsufficientFunds] },
  decide: {
    OpenAccount: ({ owner }, { state }) =>
      state.owner === null ? Effect.succeed([new Opened({ owner })]) : new AlreadyOpen({ owner: state.owner }),
    Deposit: ({ amount }, { state }) =>
      state.owner === null ? new NotOpen() : Effect.succeed([new Deposited({ amount })]),
    Withdraw: ({ amount }, { state: { balance, owner } }) => {
      if (owner === null) return new NotOpen()
      return amount > balance ? new InsufficientFunds({ balance }) : Effect.succeed([new Withdrawn({ amount })])
    },
    Freeze: () => Effect.succeed([new Frozen()])
  },
  evolve: {
    Opened: (state, { owner }) => ({ ...state, owner }),
    Deposited: (state, { amount }) => ({ ...state, balance: state.balance + amount }),
    Withdrawn: (state, { amount }) => ({ ...state, balance: state.balance - amount }),
    Frozen: (state) => state
  },
  retry: Schedule.recurs(3)
})

export const Accounts = AggregateHttp.make(Account, {
  name: "accounts",
  path: "/accounts",
  paths: { Deposit: "/deposits" },
  statuses: { AlreadyOpen: 409, NotOpen: 404 },
  correlationHeader: "X-Request-Id",
  retryAfter: "3 seconds",
  maxBodySize: 10_000
})

export class Api extends HttpApi.make("bank").add(Accounts.group) {}

export const layerAccounts = HttpApiBuilder.group(Api, "accounts", (handlers) => Accounts.handle(handlers))

/** Serves an API while the scope is open, and returns its URL. */
export const serve = <E, R>(layerApi: Layer.Layer<HttpApi.Api, E, R>) =>
  Effect.map(
    Layer.build(
      HttpApiBuilder.serve().pipe(
        Layer.provide(layerApi),
        // The router finds ids of up to 100 characters by default.
        Layer.provide(HttpRouter.setRouterConfig({ maxParamLength: 1000 })),
        Layer.provideMerge(NodeHttpServer.layer(createServer, { port: 0 }))
      )
    ),
    (context) => {
      const { address } = Context.get(context, HttpServer.HttpServer)
      return address._tag === "TcpAddress" ? `http://127.0.0.1:${address.port}` : address.path
    }
  )

/** A response as a test compares it. */
export interface Answer {
  readonly status: number
  readonly headers: Headers
  // biome-ignore lint/suspicious/noExplicitAny: the JSON of any response
  readonly body: any
}

/** Sends a request to a server, and reads the response. */
export const ask = (url: string, path: string, init: RequestInit = {}): Effect.Effect<Answer> =>
  Effect.promise(async (signal) => {
    const { headers, status, ...response } = await fetch(`${url}${path}`, { ...init, signal }).then(
      async (response) => ({
        status: response.status,
        headers: response.headers,
        text: await response.text()
      })
    )
    return { status, headers, body: response.text === "" ? undefined : JSON.parse(response.text) }
  })

/** Sends a command. */
export const send = (
  url: string,
  path: string,
  body: unknown,
  headers: Readonly<Record<string, string>> = {}
): Effect.Effect<Answer> =>
  ask(url, path, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: typeof body === "string" ? body : JSON.stringify(body)
  })
