/**
 * Snapshots: the state of an aggregate at a sequence. A snapshot only saves time, and can be deleted at any moment.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import { maxSequence } from "./Event.js"
import { Timestamp } from "./Timestamp.js"

/**
 * A snapshot as it is stored. Each aggregate has at most one, the newest.
 *
 * @since 0.1.0
 * @category models
 */
export interface Snapshot {
  /** The timestamp of the last event in the state. New timestamps must be higher, also where no event is read. */
  readonly timestamp: Timestamp
  /** The aggregate whose state it is: 1 to 255 characters. */
  readonly aggregateId: string
  /** The sequence of the last event in the state. */
  readonly sequence: number
  /** The state: a JSON object. */
  readonly body: Readonly<Record<string, unknown>>
  /** Further data about the snapshot, such as the version of the state: a JSON object. */
  readonly metadata: Readonly<Record<string, unknown>>
}

/**
 * The schema of a snapshot, which is encoded as JSON.
 *
 * @since 0.1.0
 * @category schemas
 */
export const Snapshot: Schema.Schema<Snapshot, SnapshotEncoded> = Schema.Struct({
  timestamp: Timestamp,
  aggregateId: Schema.String.pipe(Schema.minLength(1)),
  sequence: Schema.Int.pipe(Schema.between(1, maxSequence)),
  body: Schema.Record({ key: Schema.String, value: Schema.Unknown }),
  metadata: Schema.Record({ key: Schema.String, value: Schema.Unknown })
}).annotations({ identifier: "Snapshot" })

/**
 * A snapshot as JSON.
 *
 * @since 0.1.0
 * @category models
 */
export interface SnapshotEncoded extends Omit<Snapshot, "timestamp"> {
  readonly timestamp: string
}

/**
 * A snapshot as an adapter stores it: validated, and with its JSON parts as text.
 *
 * @since 0.1.0
 * @category models
 */
export interface StoredSnapshot extends Omit<Snapshot, "body" | "metadata"> {
  /** The text of a JSON object. */
  readonly body: string
  /** The text of a JSON object. */
  readonly metadata: string
}
