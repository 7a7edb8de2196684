/**
 * The types of an aggregate with declared refusals, whose failures have schemas. `AggregateHttp` and `ClusterAggregate`
 * take one.
 */
import type * as Effect from "effect/Effect"
import type * as Schema from "effect/Schema"
import type { Evaluated, Instance, Root } from "../../Aggregate.js"
import type { StoreError, ValidationError } from "../../StoreError.js"
import type { Tagged } from "../codec/eventCodec.js"
import type { DeclaredOf, LibraryFailure } from "./handlerTypes.js"
import type { Missing } from "./idTypes.js"
import type { TargetedCommand } from "./targetedCommand.js"

/** What the endpoints of an aggregate need of it, over HTTP and in a cluster. `Aggregate.make` makes one. */
export interface Source<Name extends string, State, C extends Tagged, CI, Declared, Id extends string> {
  /** The key of its service. */
  readonly name: Name
  // biome-ignore lint/suspicious/noExplicitAny: the encoded form is text of any type
  readonly id: Schema.Schema<Id, any>
  // biome-ignore lint/suspicious/noExplicitAny: no caller knows the encoded form
  readonly state: Schema.Schema<State, any>
  readonly commands: Schema.Schema<C, CI>
  readonly refusals: Declared
  readonly kind: string
  /** The id of its stream: `Account/42`. */
  readonly streamId: (id: Id) => string
  /** Reads the state of the store with its sequence. */
  readonly root: (id: Id) => Effect.Effect<Root<State, Id>, ValidationError | StoreError, Instance<Name>>
  /** Evaluates a command. */
  readonly evaluate: (id: Id, command: C) => Effect.Effect<Evaluated<State, unknown>, unknown, Instance<Name>>
}

/**
 * The aggregate whose commands fail only with what it declares. Otherwise the type has a text that the compiler shows.
 */
export type Declaring<
  C extends Tagged,
  Refusals extends { readonly [K in C["_tag"]]: unknown },
  Projected,
  Declared,
  Tags extends C["_tag"]
> = {
  // biome-ignore lint/suspicious/noExplicitAny: the types of ids and results are not looked at
  readonly command: TargetedCommand.Make<any, any, any, C, Refusals, Projected>
} & ([Undeclared<Refusals, Projected, Declared, Tags>] extends [never]
  ? unknown
  : Missing<`refusals must declare the failures of ${Undeclared<Refusals, Projected, Declared, Tags>}`>)

// --- internal ---

/** The commands whose handlers fail with what is not declared, and projections if theirs is declared at no command. */
type Undeclared<Refusals, Projected, Declared, Tags extends string> =
  | {
      readonly [K in Tags]: K extends keyof Refusals
        ? [Exclude<Refusals[K], LibraryFailure | DeclaredOf<Declared, K>>] extends [never]
          ? never
          : K
        : never
    }[Tags]
  | ([Exclude<Projected, LibraryFailure | DeclaredOf<Declared, keyof Declared>>] extends [never]
      ? never
      : "projections")
