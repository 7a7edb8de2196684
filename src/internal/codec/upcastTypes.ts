/**
 * Types for the history that `Upcast.events` takes: what each part must be, by whether its type is still written. Where a
 * part is of the wrong kind, the compiler shows a text that names the type and the problem.
 */
import type { Chain, Dropped, History, Renamed, Replaced, Steps } from "../../Upcast.js"
import type { Tagged } from "./eventCodec.js"

/** The history of the events `A`, with the part that each type must have. */
export type Checked<A extends Tagged, H extends History> = {
  readonly [K in keyof H & string]: K extends A["_tag"] ? OfWritten<A, K, H[K]> : OfUnwritten<A, H, K, H[K]>
}

/** Refuses fields that the shape does not have, which would be lost. */
export type OnlyFieldsOf<Shape, Result> =
  string extends KeyOf<Shape> ? unknown : { readonly [K in Exclude<KeyOf<Result>, KeyOf<Shape>>]: never }

// --- internal ---

/** The part of a type that is still written. */
type OfWritten<A extends Tagged, K extends string, Part> =
  Part extends Chain<infer Own, unknown>
    ? Exclude<KeyOf<Own>, KeyOf<Extract<A, { readonly _tag: K }>> | "_tag"> extends never
      ? Chain<EventOrFields<Extract<A, { readonly _tag: K }>>, EventOrTaggedFields<A>>
      : NoField<Exclude<KeyOf<Own>, KeyOf<Extract<A, { readonly _tag: K }>> | "_tag">, K>
    : Part extends Replaced<unknown>
      ? `the last step of ${K} must name the version of today, because ${K} is the tag of an event`
      : Part extends Renamed<string>
        ? `${K} is the tag of an event, so it can't be renamed`
        : Part extends Dropped
          ? `${K} is the tag of an event, so it can't be dropped`
          : Unended<K>

/** The part of a type that is written no more. */
type OfUnwritten<A extends Tagged, H extends History, K extends string, Part> =
  Part extends Replaced<unknown>
    ? Replaced<EventOrTaggedFields<A>>
    : Part extends Renamed<infer Type>
      ? Type extends A["_tag"] | Exclude<keyof H, K>
        ? Part
        : `${K} is renamed to ${Type}, which is the tag of no event`
      : Part extends Chain<unknown, unknown>
        ? `${K} is the tag of no event, so its last step has no version of today`
        : Part extends Steps<unknown>
          ? Unended<K>
          : Part

/** The keys of all members of a union. */
type KeyOf<Value> = Value extends unknown ? keyof Value : never

/** A step that returns what is no field has a typing mistake: the value would be lost. */
type NoField<Key, K extends string> = `the last step of ${K} returns ${Key & string}, which is no field of it`

type Unended<K extends string> = `the chain of ${K} must end in toEvent or toEvents`

/** An event, or its fields. */
type EventOrFields<A extends Tagged> = A extends Tagged
  ? A | ({ readonly [P in keyof A as P extends "_tag" ? never : P]: A[P] } & { readonly _tag?: A["_tag"] })
  : never

/** An event, or its fields with the tag. */
type EventOrTaggedFields<A extends Tagged> = A extends Tagged ? A | { readonly [P in keyof A]: A[P] } : never
