/**
 * Between an aggregate's state and the snapshots of it: which of them can be trusted, and how they are written.
 */
import * as Either from "effect/Either"
import * as Schema from "effect/Schema"
import type { StreamIds } from "../../Event.js"
import type { Snapshot } from "../../Snapshot.js"
import { ValidationError } from "../../StoreError.js"
import { guarded, parseIssues } from "./eventCodec.js"
import { decodeUnknownEither, encodeUnknownEither } from "./fastSchema.js"
import { fingerprint } from "./fingerprint.js"
import { withoutUndefined } from "./json.js"

export interface StateCodec<State> {
  /** The state, or why the snapshot is not used. */
  readonly decode: (snapshot: Snapshot) => Either.Either<State, Unusable>
  readonly encode: (state: State) => Either.Either<Pick<Snapshot, "body" | "metadata">, ValidationError>
}

/** A snapshot of another version is outdated, which is nothing unusual; one that has been changed since it was written is damaged. */
export type Unusable = { readonly _tag: "Outdated" } | { readonly _tag: "Damaged"; readonly why: string }

export const makeStateCodec = <State, I>(
  aggregate: string,
  version: number,
  schema: Schema.Schema<State, I>,
  streams: StreamIds
): StateCodec<State> => {
  // Where ids are plain, several aggregates may read one stream, each to a state of its own.
  const reader = streams === "plain" ? aggregate : undefined
  // When it is needed first: a suspended schema may name one that is not defined yet.
  let metadata: Snapshot["metadata"] | undefined
  const current = (): Snapshot["metadata"] => {
    metadata ??= { ...(reader !== undefined && { aggregate: reader }), version, schema: fingerprint(schema) }
    return metadata
  }
  // Under a key of its own, since a state may be a number or a list, and a snapshot's body is an object.
  const body = Schema.Struct({ state: schema })
  const decode = guarded(decodeUnknownEither(body))
  const encode = guarded(encodeUnknownEither(body))
  return {
    decode: (snapshot) => {
      // The store is not under this module's control: `null` may stand where an object was.
      const written: Snapshot["metadata"] | null = snapshot.metadata
      if (typeof written !== "object" || written === null || Array.isArray(written))
        return damaged("its metadata is no object")
      return written.aggregate === reader && written.version === version && written.schema === current().schema
        ? Either.mapBoth(decode(snapshot.body), {
            onLeft: (error): Unusable => ({ _tag: "Damaged", why: error.message }),
            onRight: ({ state }) => state
          })
        : Either.left({ _tag: "Outdated" })
    },
    encode: (state) =>
      Either.mapBoth(encode({ state }), {
        onLeft: (error) => new ValidationError({ operation: `${aggregate}.snapshot`, issues: parseIssues(error) }),
        onRight: (encoded) => ({ body: withoutUndefined({ ...encoded }), metadata: current() })
      })
  }
}

// --- internal ---

const damaged = (why: string): Either.Either<never, Unusable> => Either.left({ _tag: "Damaged", why })
