/**
 * Types for the options of `Aggregate.make`: what handlers may fail with and return, and which names they may have.
 */
import type { SqlError } from "@effect/sql/SqlError"
import type * as Schema from "effect/Schema"
import type { Projection } from "../../Projection.js"
import type {
  CommandIdReused,
  RetryCommand,
  StoreError,
  UnexpectedSequence,
  ValidationError
} from "../../StoreError.js"
import type { Tagged } from "../codec/eventCodec.js"

/** The handlers of events after inference, when the type of the state is known. */
export type Steps<State> = Readonly<Record<string, (state: State, event: never) => State>>

/** The projections of an aggregate, each bound to it. */
export type BoundProjections<Projections extends ReadonlyArray<Projection.Any>> = {
  readonly [K in keyof Projections]: Projection.Bound<
    Projection.Error<Projections[K]>,
    Projection.Context<Projections[K]>
  >
}

/** The schemas of the refusals of each command. A command that is never refused has no entry. */
export type RefusalSchemas<C extends Tagged> = {
  // biome-ignore lint/suspicious/noExplicitAny: the bound of a type parameter that takes every schema
  readonly [K in C["_tag"]]?: ReadonlyArray<Schema.Schema<any, any>>
}

/**
 * The failures that a handler may have: any, or the declared refusals with the failures of the library and the
 * database.
 */
export type AllowedError<Declared, Tag> = [Declared] extends [undefined]
  ? // biome-ignore lint/suspicious/noExplicitAny: the bound of a type parameter that takes every handler
    any
  : DeclaredOf<Declared, Tag> | LibraryFailure

/**
 * The state that a step returns. While the compiler infers the state, a step without parameters is checked already,
 * against `unknown`, and its literals would widen to `string` and `number`. The hint keeps them.
 */
export type StateOf<State> = unknown extends State ? Hint | NonNullable<unknown> : State

/**
 * The event that a handler returns. It is checked against any tagged object at first, so the hint keeps its literals.
 */
export type EventOf<A extends Tagged> = string extends A["_tag"] ? Hint | A : A

/** The type of handlers under names that the schemas do not have. The compiler shows its text at such a handler. */
export type NoSuch<Names, What extends string> = { readonly [K in Names & string]: `${K} is the tag of no ${What}` }

/** The refusals that are declared for a command. */
export type DeclaredOf<Declared, Tag> = Tag extends keyof Declared
  ? Declared[Tag] extends ReadonlyArray<infer S>
    ? S extends Schema.Schema.Any
      ? Schema.Schema.Type<S>
      : never
    : never
  : never

/** The failures of the library and of the database. They need no declaration. */
export type LibraryFailure =
  | RetryCommand
  | ValidationError
  | StoreError
  | CommandIdReused
  | UnexpectedSequence
  | SqlError

// --- internal ---

/** A type of every value, whose literals tell the compiler to keep literals. */
type Hint = "" | 0 | 0n | false | null | undefined | HintObject | HintList

interface HintObject {
  readonly [key: string]: Hint
}

/** A property `0` makes the compiler infer a tuple, which is assignable to a tuple and to a list. */
interface HintList extends ReadonlyArray<Hint> {
  readonly 0?: Hint
}
