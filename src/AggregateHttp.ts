/**
 * Makes endpoints of an HTTP API out of an aggregate, for the `HttpApi` of `@effect/platform`.
 *
 * Each command is a POST with the fields of the command as its body, and the state is a GET. Refusals are typed
 * responses with a status of your choice. `Idempotency-Key` makes a command take effect once, and `ETag` with `If-Match`
 * protects a change from another one in between. OpenAPI and typed clients (`HttpApiClient`) know all of it.
 *
 * | status | when |
 * |--:|---|
 * | 200 | the command took effect, or did before (`duplicate`); the state |
 * | 304 | the state still has the ETag of `If-None-Match` |
 * | 400, 413, 415 | the request is wrong: `HttpApiDecodeError`, with up to 20 issues, or one of a body above 4000 characters |
 * | 404 | the aggregate has no events |
 * | 409 | another command was first, also after all retries: `RetryCommand`, with `Retry-After` |
 * | 412 | the aggregate is at another sequence: `UnexpectedSequence` |
 * | 422 | a refusal, unless it has another status; the `Idempotency-Key` belongs to another command: `CommandIdReused` |
 * | 503 | the store is not available: `Unavailable`, with `Retry-After` |
 * | 500 | any other failure, also an event that its schema refuses; without a body. The failure is logged |
 *
 * A command needs the header `Content-Type: application/json`, also with an empty body, and is 415 without it. A browser
 * asks the server before it sends that header to another origin, so a page of another site can't send commands.
 *
 * @since 0.1.0
 */
import type * as HttpApiBuilder from "@effect/platform/HttpApiBuilder"
import type * as HttpApiEndpoint from "@effect/platform/HttpApiEndpoint"
import type * as HttpApiGroup from "@effect/platform/HttpApiGroup"
import type * as Duration from "effect/Duration"
import type * as Schema from "effect/Schema"
import type { Instance, Root } from "./Aggregate.js"
import type { Declaring, Source } from "./internal/aggregate/declaring.js"
import type { Tagged } from "./internal/codec/eventCodec.js"
import { makeGroup } from "./internal/http/endpoints.js"
import { type Handler, makeHandlers } from "./internal/http/handlers.js"
import { makePlan } from "./internal/http/plan.js"
import { etagOf } from "./internal/http/requestHeaders.js"
import type { CommandEndpoint, Handled, HandleOptions, ReadEndpoint, RefusalTag } from "./internal/http/types.js"

export {
  /**
   * The parameters of the URL of a read that waits: `after` is the `stream-position` of a response, or a position of the
   * feed. Give it to `setUrlParams` of an endpoint, and the decoded parameters to `waitFor`.
   *
   * @since 0.1.0
   * @category schemas
   */
  After,
  /**
   * The options of `waitFor`.
   *
   * @since 0.1.0
   * @category models
   */
  type WaitOptions,
  /**
   * Waits until a subscription has handled the events up to the parameter `after` of a request, so that a client reads
   * its own writes in the tables of the subscription. Without the parameter it does not wait.
   *
   * After the timeout it fails with `Unavailable`, and sets `Retry-After` on the response. The endpoint declares that
   * failure by `addError(AggregateHttp.Unavailable)`. A position that is none of this store is an `HttpApiDecodeError`.
   *
   * @since 0.1.0
   * @category handlers
   */
  waitFor
} from "./internal/http/after.js"
export {
  /**
   * The store, or a projection that the request waits for, is not available in time: status 503, with `Retry-After`.
   * Nothing of the request took effect, or it has an `Idempotency-Key`. So the client may send it again.
   *
   * @since 0.1.0
   * @category errors
   */
  Unavailable
} from "./internal/http/errors.js"
export type {
  /**
   * What a request asks for: the id, and the command. `authorize` gets it.
   *
   * @since 0.1.0
   * @category models
   */
  Call,
  /**
   * The failures of every command, as a typed client sees them. The refusals of the command come on top.
   *
   * @since 0.1.0
   * @category models
   */
  CommandFailure,
  /**
   * The request headers of a command that a typed client sends.
   *
   * @since 0.1.0
   * @category models
   */
  CommandHeaders,
  /**
   * What the application does before each request is handled: `authorize` and `metadata`.
   *
   * @since 0.1.0
   * @category models
   */
  HandleOptions,
  /**
   * The body of a successful read: the state, and the place of its last event.
   *
   * @since 0.1.0
   * @category models
   */
  Read,
  /**
   * The failures of a read, as a typed client sees them.
   *
   * @since 0.1.0
   * @category models
   */
  ReadFailure,
  /**
   * The body of a successful command: the state after it, the place of its last event, and whether it is a repetition.
   *
   * @since 0.1.0
   * @category models
   */
  Result,
  /**
   * Sets the metadata of the commands of an effect, as `provide` of typed metadata does (`Aggregate.metadata`).
   *
   * @since 0.1.0
   * @category models
   */
  SetMetadata
} from "./internal/http/types.js"

/**
 * The endpoints of an aggregate, and their handlers.
 *
 * @since 0.1.0
 * @category models
 */
export interface AggregateHttp<
  Name extends string,
  Group extends string,
  C,
  Id extends string,
  Endpoints extends HttpApiEndpoint.HttpApiEndpoint.Any
> {
  /**
   * The endpoints, for `HttpApi.add`: `get`, and one for each command, named by its tag with a lower-case first letter.
   * Add a prefix, middleware or endpoints of your own as to every group.
   */
  readonly group: HttpApiGroup.HttpApiGroup<Group, Endpoints, never>
  /** Adds the handlers of the endpoints to those of a group, in the function that `HttpApiBuilder.group` takes. */
  readonly handle: <E, Provides, R, All extends HttpApiEndpoint.HttpApiEndpoint.Any, E2 extends E = never, R2 = never>(
    handlers: HttpApiBuilder.Handlers<E, Provides, R, All>,
    options?: HandleOptions<C, Id, E2, R2>
  ) => Handled<E, Provides, R, All, HttpApiEndpoint.HttpApiEndpoint.Name<Endpoints>, Instance<Name> | R2>
}

/**
 * The options of `make`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options<Group, State, Tags extends string, Declared, Id extends string, View, ViewEncoded> {
  /** The name of the group: that of the aggregate, with a lower-case first letter, by default. */
  readonly name?: Group | undefined
  /** The path before the id: `/account` for `Account` by default. The state is at `/account/:id`. */
  readonly path?: HttpApiEndpoint.PathSegment | undefined
  /** The commands that have an endpoint: all by default. Leave out the commands that only a process manager evaluates. */
  readonly only?: ReadonlyArray<Tags> | undefined
  /** The path of a command below that of its aggregate: `/open-account` for `OpenAccount` by default. */
  readonly paths?: { readonly [K in NoInfer<Tags>]?: HttpApiEndpoint.PathSegment | undefined } | undefined
  /**
   * The statuses of refusals, by their tags, from 400 to 599. The default is the status that the schema is annotated with
   * (`HttpApiSchema.annotations`), or 422.
   */
  readonly statuses?: { readonly [K in RefusalTag<Declared>]?: number | undefined } | undefined
  /** What clients see of a state: all of it, by the schema of the state, by default. */
  readonly view?:
    | {
        readonly schema: Schema.Schema<View, ViewEncoded>
        /** What the schema encodes, of a state with its id and sequence. */
        readonly of: (root: Root<State, Id>) => NoInfer<View>
      }
    | undefined
  /** The request header with the id of the chain (`Aggregate.withCorrelationId`), such as `x-request-id`; none by default. */
  readonly correlationHeader?: string | undefined
  /** When a client may try again after 409 and 503, in whole seconds: 1 second by default. */
  readonly retryAfter?: Duration.DurationInput | undefined
  /** The largest body of a request, in bytes: 1 000 000 by default. A larger one has status 413, or a closed connection. */
  readonly maxBodySize?: number | undefined
}

/**
 * Makes the endpoints of an aggregate.
 *
 * Refusals must be declared (the option `refusals` of `Aggregate.make`), because their schemas are those of the responses.
 * That includes refusals of projections (`onConstraint`): list them at each command whose events may violate the
 * constraint. A command that fails with what is not declared does not compile here; `only` leaves it out.
 *
 * The router of `@effect/platform` finds ids of up to 100 characters, and answers longer ones by 404. Where ids may be
 * longer, give the server `HttpRouter.setRouterConfig({ maxParamLength: 255 })`. The ids `.` and `..` have no URL.
 *
 * It throws a `TypeError` for options that can't work, such as two endpoints of one path.
 *
 * @since 0.1.0
 * @category constructors
 *
 * @example
 * ```ts
 * import { HttpApi, HttpApiBuilder } from "@effect/platform"
 * import { Aggregate } from "effect-maestro"
 * import * as AggregateHttp from "effect-maestro/AggregateHttp"
 * import * as Effect from "effect/Effect"
 * import * as Schema from "effect/Schema"
 *
 * class Increased extends Schema.TaggedClass<Increased>()("Increased", { by: Schema.Int }) {}
 * class Increase extends Schema.TaggedClass<Increase>()("Increase", { by: Schema.Int }) {}
 * class TooHigh extends Schema.TaggedError<TooHigh>()("TooHigh", { limit: Schema.Int }) {}
 *
 * const Counter = Aggregate.make("Counter", {
 *   state: Schema.Struct({ count: Schema.Int }),
 *   initialState: { count: 0 },
 *   events: Increased,
 *   commands: Increase,
 *   refusals: { Increase: [TooHigh] },
 *   decide: {
 *     Increase: ({ by }, { state }) =>
 *       state.count + by > 10 ? new TooHigh({ limit: 10 }) : Effect.succeed([new Increased({ by })])
 *   },
 *   evolve: { Increased: ({ count }, { by }) => ({ count: count + by }) }
 * })
 *
 * // GET /counters/:id and POST /counters/:id/increase
 * const Counters = AggregateHttp.make(Counter, { name: "counters", path: "/counters", statuses: { TooHigh: 409 } })
 *
 * class Api extends HttpApi.make("api").add(Counters.group) {}
 *
 * export const layerCounters = HttpApiBuilder.group(Api, "counters", (handlers) => Counters.handle(handlers))
 * ```
 */
export const make = <
  Name extends string,
  State,
  C extends Tagged,
  CI,
  Declared,
  Id extends string,
  const Group extends string = Uncapitalize<Name>,
  const Tags extends C["_tag"] = C["_tag"],
  View = State,
  ViewEncoded = unknown,
  Refusals extends { readonly [K in C["_tag"]]: unknown } = { readonly [K in C["_tag"]]: unknown },
  Projected = never
>(
  aggregate: Source<Name, State, C, CI, Declared, Id> & Declaring<C, Refusals, Projected, Declared, Tags>,
  options: Options<Group, State, Tags, Declared, Id, View, ViewEncoded> = {}
): AggregateHttp<
  Name,
  Group,
  Extract<C, { readonly _tag: Tags }>,
  Id,
  ReadEndpoint<Id, View> | CommandEndpoint<Tags, C, Declared, Id, View>
> => {
  type Endpoints = ReadEndpoint<Id, View> | CommandEndpoint<Tags, C, Declared, Id, View>
  const plan = makePlan<Name, State, C, CI, Declared, Id>(aggregate, options)
  return {
    // The plan has an endpoint of these types for each command, which a loop can't say.
    group: makeGroup(plan, aggregate.id) as unknown as HttpApiGroup.HttpApiGroup<Group, Endpoints, never>,
    handle: (handlers, options) =>
      addAll(handlers, makeHandlers(aggregate, plan, { ...options } as HandleOptions<C, Id, never, never>))
  }
}

/**
 * The `ETag` of a sequence, for the header `if-match` of a typed client.
 *
 * @since 0.1.0
 * @category accessors
 *
 * @example
 * ```ts
 * import * as AggregateHttp from "effect-maestro/AggregateHttp"
 *
 * console.log(AggregateHttp.etag(3)) // prints: "3"
 * ```
 */
export const etag: (sequence: number) => string = etagOf

// --- internal ---

/** Adds each handler. The names are those of the group that `HttpApiBuilder` has looked up. */
const addAll = <E, R, Out>(handlers: object, added: ReadonlyArray<Handler<E, R>>): Out =>
  added.reduce((all, { handle, name }) => all.handleRaw(name, handle), handlers as AnyHandlers<E, R>) as unknown as Out

interface AnyHandlers<E, R> {
  readonly handleRaw: (name: string, handle: Handler<E, R>["handle"]) => AnyHandlers<E, R>
}
