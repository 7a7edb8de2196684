/**
 * Encodes an aggregate's state as a snapshot, and decodes snapshots of the same schema, version and history of events.
 * `aggregate/loadState` and `aggregate/takeSnapshot` call it.
 */
import * as Either from "effect/Either"
import * as Schema from "effect/Schema"
import type { Snapshot } from "../../Snapshot.js"
import { ValidationError } from "../../StoreError.js"
import { guarded, parseIssues } from "./eventCodec.js"
import { decodeUnknownEither, encodeUnknownEither } from "./fastSchema.js"
import { fingerprint, historyFingerprint } from "./fingerprint.js"
import { withoutUndefined } from "./json.js"

export interface StateCodec<State> {
  /** Returns the state, or the reason why the snapshot can't be used. */
  readonly decode: (snapshot: Snapshot) => Either.Either<State, Unusable>
  readonly encode: (state: State) => Either.Either<Pick<Snapshot, "body" | "metadata">, ValidationError>
}

/**
 * A snapshot of another version, schema or history is outdated, which is usual. One that does not decode is damaged, because it
 * was changed.
 */
export type Unusable = { readonly _tag: "Outdated" } | { readonly _tag: "Damaged"; readonly why: string }

/**
 * `reader` is the kind of an aggregate with plain ids: several of them may read one stream, each with a state of its
 * own.
 */
export const makeStateCodec = <State, I>(
  aggregate: string,
  version: number,
  schema: Schema.Schema<State, I>,
  events: Schema.Schema.Any,
  reader: string | undefined
): StateCodec<State> => {
  // When it is needed first: a suspended schema may name one that is not defined yet.
  let metadata: Snapshot["metadata"] | undefined
  const current = (): Snapshot["metadata"] => {
    if (metadata !== undefined) return metadata
    const history = historyFingerprint(events)
    metadata = {
      ...(reader !== undefined && { aggregate: reader }),
      version,
      schema: fingerprint(schema),
      ...(history !== undefined && { history })
    }
    return metadata
  }
  // Under a key, because a state may be a number or a list, and the body of a snapshot is an object.
  const body = Schema.Struct({ state: schema })
  const decode = guarded(decodeUnknownEither(body))
  const encode = guarded(encodeUnknownEither(body))
  return {
    decode: (snapshot) => {
      // Another program may have changed the stored metadata to `null`.
      const written: Snapshot["metadata"] | null = snapshot.metadata
      if (typeof written !== "object" || written === null || Array.isArray(written))
        return damaged("its metadata is no object")
      const { history, schema } = current()
      const isCurrent = written.schema === schema && written.history === history
      return written.aggregate === reader && written.version === version && isCurrent
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
