/** The types of endpoints and clients that follow from an aggregate. `npm run check` checks these expectations. */
// @effect-diagnostics missingEffectError:off
import * as HttpApi from "@effect/platform/HttpApi"
import * as HttpApiBuilder from "@effect/platform/HttpApiBuilder"
import * as HttpApiClient from "@effect/platform/HttpApiClient"
import type * as HttpApiEndpoint from "@effect/platform/HttpApiEndpoint"
import * as HttpApiError from "@effect/platform/HttpApiError"
import type * as HttpApiGroup from "@effect/platform/HttpApiGroup"
import type * as HttpClientError from "@effect/platform/HttpClientError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import type * as ParseResult from "effect/ParseResult"
import * as Schema from "effect/Schema"
import { Aggregate, Projection } from "effect-maestro"
import * as AggregateHttp from "effect-maestro/AggregateHttp"
import { expectTypeOf, it } from "vitest"
import {
  Account,
  Accounts,
  type AlreadyOpen,
  Api,
  Deposit,
  type InsufficientFunds,
  type layerAccounts,
  type NotOpen,
  type OpenAccount
} from "./httpServer.js"

type ErrorOf<F> = F extends Effect.Effect<infer _A, infer E, infer _R> ? E : never
type ContextOf<L> = L extends Layer.Layer<infer _A, infer _E, infer R> ? R : never
type NamesOf<G> = HttpApiEndpoint.HttpApiEndpoint.Name<HttpApiGroup.HttpApiGroup.Endpoints<G>>
type State = { readonly owner: string | null; readonly balance: number }
type Failure = AggregateHttp.CommandFailure | HttpClientError.HttpClientError | ParseResult.ParseError

class User extends Context.Tag("test/User")<User, string>() {}

it("a client has a method for each command, with its payload, its refusals and the failures of all commands", () => {
  const types = () =>
    Effect.map(HttpApiClient.make(Api), ({ accounts }) => {
      const open = (payload: OpenAccount) => accounts.openAccount({ path: { id: "1" }, headers: {}, payload })
      const deposit = accounts.deposit({ path: { id: "1" }, headers: {}, payload: new Deposit({ amount: 1 }) })
      const withdraw = accounts.withdraw
      expectTypeOf<ErrorOf<ReturnType<typeof open>>>().toEqualTypeOf<AlreadyOpen | Failure>()
      expectTypeOf<ErrorOf<typeof deposit>>().toEqualTypeOf<NotOpen | Failure>()
      expectTypeOf<ErrorOf<ReturnType<typeof withdraw>>>().toEqualTypeOf<NotOpen | InsufficientFunds | Failure>()
      expectTypeOf(deposit).toExtend<Effect.Effect<AggregateHttp.Result<State>, unknown>>()
      return [
        // @ts-expect-error: the payload of another command
        accounts.openAccount({ path: { id: "1" }, headers: {}, payload: new Deposit({ amount: 1 }) }),
        // @ts-expect-error: a header that no endpoint reads
        accounts.get({ path: { id: "1" }, headers: { "if-match": "1" } })
      ]
    })
  void types
  expectTypeOf<NamesOf<typeof Accounts.group>>().toEqualTypeOf<
    "get" | "openAccount" | "deposit" | "withdraw" | "freeze"
  >()
})

it("the handlers need the aggregate's layer, and nothing else", () => {
  expectTypeOf<ContextOf<typeof layerAccounts>>().toEqualTypeOf<Aggregate.Instance<"Account">>()
})

it("the names follow from the options, and `only` leaves out the others", () => {
  const Default = AggregateHttp.make(Account)
  expectTypeOf(Default.group.identifier).toEqualTypeOf<"account">()
  const Some = AggregateHttp.make(Account, { name: "some", only: ["Deposit", "Freeze"], paths: { Deposit: "/d" } })
  expectTypeOf(Some.group.identifier).toEqualTypeOf<"some">()
  expectTypeOf<NamesOf<typeof Some.group>>().toEqualTypeOf<"get" | "deposit" | "freeze">()
  const types = () => {
    // @ts-expect-error: no command
    AggregateHttp.make(Account, { only: ["Close"] })
    // @ts-expect-error: no endpoint has the path
    AggregateHttp.make(Account, { only: ["Deposit"], paths: { Withdraw: "/w" } })
    // @ts-expect-error: no declared refusal
    AggregateHttp.make(Account, { statuses: { Closed: 409 } })
    // @ts-expect-error: the view is no text
    AggregateHttp.make(Account, { view: { schema: Schema.String, of: ({ state }) => state.balance } })
  }
  void types
})

it("what authorize and metadata need is part of the layer's context, and the API must declare their failures", () => {
  class UserApi extends HttpApi.make("user").add(Accounts.group.addError(HttpApiError.Forbidden)) {}
  const layerUser = () =>
    HttpApiBuilder.group(UserApi, "accounts", (handlers) =>
      Accounts.handle(handlers, {
        metadata: Effect.map(User, (user) => ({ user })),
        authorize: ({ command, id }) => {
          expectTypeOf(id).toEqualTypeOf<string>()
          expectTypeOf(command?._tag).toEqualTypeOf<"OpenAccount" | "Deposit" | "Withdraw" | "Freeze" | undefined>()
          return new HttpApiError.Forbidden()
        }
      })
    )
  expectTypeOf<ContextOf<ReturnType<typeof layerUser>>>().toEqualTypeOf<Aggregate.Instance<"Account"> | User>()
  const types = () =>
    HttpApiBuilder.group(Api, "accounts", (handlers) =>
      Accounts.handle(handlers, {
        // @ts-expect-error: the API does not declare it
        authorize: () => new HttpApiError.Forbidden()
      })
    )
  void types
})

it("a command that fails with what its aggregate does not declare has no endpoint", () => {
  class Done extends Schema.TaggedClass<Done>()("Done", {}) {}
  class Do extends Schema.TaggedClass<Do>()("Do", {}) {}
  class Undo extends Schema.TaggedClass<Undo>()("Undo", {}) {}
  class Late extends Schema.TaggedError<Late>()("Late", {}) {}
  class Taken extends Schema.TaggedError<Taken>()("Taken", {}) {}
  const definition = {
    state: Schema.Struct({}),
    initialState: {},
    events: Done,
    commands: Schema.Union(Do, Undo),
    evolve: { Done: (state: object) => state }
  }
  const decide = { Do: () => new Late(), Undo: () => Effect.succeed([new Done()]) }
  const Open = Aggregate.make("Open", { ...definition, decide })
  const Declared = Aggregate.make("Declared", { ...definition, decide, refusals: { Do: [Late] } })
  const Names = Projection.makeSql({
    name: "names",
    events: Done,
    project: { Done: (_, __, sql) => sql`select 1` },
    onConstraint: { names_key: () => new Taken() }
  })
  const Projected = Aggregate.make("Projected", {
    ...definition,
    decide,
    refusals: { Do: [Late] },
    projections: [Names]
  })
  const Complete = Aggregate.make("Complete", {
    ...definition,
    decide,
    refusals: { Do: [Late], Undo: [Taken] },
    projections: [Names]
  })
  const types = () => {
    // @ts-expect-error: refusals must declare the failures of Do
    AggregateHttp.make(Open)
    AggregateHttp.make(Open, { only: ["Undo"] })
    AggregateHttp.make(Declared)
    // @ts-expect-error: refusals must declare the failures of projections
    AggregateHttp.make(Projected)
    AggregateHttp.make(Complete)
  }
  void types
})
