/**
 * The typed failures of the library. Each has a message that names the operation, the place and the cause.
 *
 * - `RetryCommand`: another commit was first, so read and decide again.
 * - `ValidationError`: the input is wrong; its issues have paths and messages.
 * - `StoreError`: every other failure of a store, with a `reason` of a closed list.
 * - `CommandIdReused` and `UnexpectedSequence`: the conditions of a command, `withCommandId` and
 *   `withExpectedSequence`, do not hold.
 * - `CommandRefused`: one of the commands of `Aggregate.evaluateAll` was refused.
 * - `UnreadableTypes`: `Aggregate.check` found stored events that the code can't read.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Schema from "effect/Schema"

/**
 * The commit conflicts with a stored one: one of its sequences is taken, or would leave a gap after the stored head. So
 * the events were decided on an old state. Read the new events, decide and commit again; `Aggregate` does so by its
 * `retry` schedule.
 *
 * Other libraries call it *wrong expected version*. The name is that of `:retry_command` in the Elixir library Maestro.
 *
 * @since 0.1.0
 * @category errors
 */
export class RetryCommand extends Schema.TaggedError<RetryCommand>("effect-maestro/RetryCommand")("RetryCommand", {
  /** The aggregate with the conflict. */
  aggregateId: Schema.String,
  /** The first sequence of the commit that could not be stored. */
  sequence: Schema.Number
}) {
  override get message(): string {
    return `Sequence ${this.sequence} of aggregate ${quote(this.aggregateId)} is not the next one: another commit came first, or the state this was decided on is not the stored one`
  }
}

/**
 * One mistake in the input: the index of its item in a list, the path inside the item, and a message. Without a list
 * there is no index.
 *
 * @since 0.1.0
 * @category models
 */
export class ValidationIssue extends Schema.Class<ValidationIssue>("effect-maestro/ValidationIssue")({
  /**
   * Index of the event in the commit, among the events of a decision, or of the command in `Aggregate.evaluateAll`, from 0.
   * There the path of an issue in an event begins with `events` and the index of the event among those of the command.
   */
  index: Schema.optionalWith(Schema.Number, { exact: true }),
  /** The path from the item to the bad value: property names and array indices. */
  path: Schema.Array(Schema.Union(Schema.String, Schema.Number)),
  /** The rule that the value breaks. */
  message: Schema.String
}) {}

/**
 * The input is wrong, and nothing was written. `issues` has all mistakes, not only the first.
 *
 * @since 0.1.0
 * @category errors
 */
export class ValidationError extends Schema.TaggedError<ValidationError>("effect-maestro/ValidationError")(
  "ValidationError",
  {
    /** The operation that refused the input. */
    operation: Schema.String,
    issues: Schema.NonEmptyArray(ValidationIssue)
  }
) {
  override get message(): string {
    const shown = this.issues.slice(0, 5).map(formatIssue)
    const more = this.issues.length > shown.length ? `; and ${this.issues.length - shown.length} more` : ""
    return `${this.operation} refused its input: ${shown.join("; ")}${more}`
  }
}

/**
 * Why a store failed. The list is closed, so a `switch` over it can be exhaustive. Only after `CommitUnknown` and
 * `ClusterUnavailable` may the events be stored.
 *
 * These are transient. `evaluate` has retried by the aggregate's `retry` schedule before it fails with one of them:
 *
 * - `Unavailable`: there was no connection, so nothing was sent. Check the server, its address, and the size of the
 *   pool.
 * - `ConnectionLost`: the connection broke before COMMIT. Retry.
 * - `Contention`: the database ended a deadlock or a serialization conflict. Retry; if it happens often, let
 *   transactions lock rows in one order.
 * - `CommitUnknown`: the connection broke during COMMIT, so all of the commit is stored, or nothing. Commit the same
 *   events to the port again. After `evaluate`, read the aggregate, or evaluate again with the same command id. Without
 *   an id the command may be applied twice.
 * - `ClusterUnavailable`: no runner of the cluster has answered the call of a `ClusterAggregate` in time. A command may
 *   have taken effect. Read the aggregate, or evaluate again with the same command id. Without an id the command may be
 *   applied twice.
 *
 * These happen again, until the cause is removed:
 *
 * - `Cancelled`: the statement was cancelled, or exceeded a time limit of the database. Raise the limit, or find the
 *   slow statement.
 * - `Constraint`: a write of a projection violates a constraint; `constraint`, `table` and `column` name it. If it is a
 *   refusal of the command, name it in the projection's `onConstraint`. Otherwise correct the projection or its table.
 * - `Misconfigured`: a table, a column, a function, a right or the database is missing. Migrate, or correct the
 *   configuration.
 * - `Exhausted`: the database has no disk space, no memory, or has reached another limit, or it is read-only. Make
 *   room.
 * - `UnreadableEvent`: the schemas of an aggregate or a projection can't decode a stored event; `aggregateId`,
 *   `sequence` and `type` name it. Add its version to the history of its type (`Upcast`), or its form to the `events`
 *   union.
 * - `ClockDrift`: a timestamp is further ahead of the local clock than `maxDrift`. Correct the clock of the node that
 *   made it.
 * - `Unknown`: none of these. `code`, `description` and `cause` are those of the driver.
 *
 * @since 0.1.0
 * @category models
 */
export const StoreErrorReason = Schema.Literal(
  "Unavailable",
  "ConnectionLost",
  "CommitUnknown",
  "Contention",
  "ClusterUnavailable",
  "Cancelled",
  "Constraint",
  "Misconfigured",
  "Exhausted",
  "UnreadableEvent",
  "ClockDrift",
  "Unknown"
)

/**
 * @since 0.1.0
 * @category models
 */
export type StoreErrorReason = typeof StoreErrorReason.Type

/**
 * A store failed, for the given `reason`.
 *
 * Where a projection failed, `projection`, `type`, `sequence` and `aggregateId` name it and its event. The message then
 * begins with them. Example: `projection "balances", event Deposited 3 of aggregate "Account/42": null value in column
 * "currency" …`.
 *
 * @since 0.1.0
 * @category errors
 *
 * @example
 * ```ts
 * import { StoreError } from "effect-maestro"
 *
 * // For a server: whether the client may send its request again.
 * export const statusOf = (error: StoreError.StoreError): 500 | 503 => {
 *   switch (error.reason) {
 *     case "Unavailable":
 *     case "ConnectionLost":
 *     case "Contention":
 *     case "Exhausted":
 *     case "Cancelled":
 *       return 503
 *     default:
 *       return 500
 *   }
 * }
 * ```
 */
export class StoreError extends Schema.TaggedError<StoreError>("effect-maestro/StoreError")("StoreError", {
  /** Why it failed. */
  reason: StoreErrorReason,
  /** The operation that failed. */
  operation: Schema.String,
  /** What happened, in words. It may contain the message of the database. */
  description: Schema.String,
  /** The database's own error code (`SQLSTATE`), or the system's (`ECONNRESET`), where there is one. */
  code: Schema.optional(Schema.String),
  /** The projection that failed. */
  projection: Schema.optional(Schema.String),
  /** The aggregate concerned. */
  aggregateId: Schema.optional(Schema.String),
  /** The sequence of the event concerned. */
  sequence: Schema.optional(Schema.Number),
  /** The type of the event concerned. */
  type: Schema.optional(Schema.String),
  /** The table concerned, without its schema, where the database names one. */
  table: Schema.optional(Schema.String),
  /** The column concerned, where the database names one, as it does for a violated `not null`. */
  column: Schema.optional(Schema.String),
  /** The constraint that was violated, or the unique index. */
  constraint: Schema.optional(Schema.String),
  /** The error of the driver or the schema. */
  cause: Schema.optional(Schema.Defect)
}) {
  override get message(): string {
    const event =
      this.type === undefined || this.sequence === undefined || this.aggregateId === undefined
        ? undefined
        : `event ${plainOrQuoted(this.type)} ${this.sequence} of aggregate ${quote(this.aggregateId)}`
    if (this.projection !== undefined) {
      const where = [`projection ${quote(this.projection)}`, ...(event === undefined ? [] : [event])].join(", ")
      const why = this.code === undefined ? this.reason : `${this.reason}, ${this.code}`
      return `${where}: ${this.description} (${why})`
    }
    const where = event === undefined ? "" : `${event}: `
    const code = this.code === undefined ? "" : ` (${this.code})`
    return `${this.operation}: ${this.reason}: ${where}${this.description}${code}`
  }
}

/**
 * The aggregate has handled another command with the same command id. Nothing was stored, and a retry with that id
 * fails in the same way. Only a command with an id (`Aggregate.withCommandId`) can fail with it.
 *
 * @since 0.1.0
 * @category errors
 */
export class CommandIdReused extends Schema.TaggedError<CommandIdReused>("effect-maestro/CommandIdReused")(
  "CommandIdReused",
  {
    /** The aggregate's kind, and its id. */
    kind: Schema.String,
    id: Schema.String,
    commandId: Schema.String
  }
) {
  override get message(): string {
    return `Command id ${quote(this.commandId)} of ${this.kind} ${quote(this.id)} belongs to another command, which was handled before: a command id is for one command, with one content`
  }
}

/**
 * The aggregate is not at the sequence that the caller expects (`Aggregate.withExpectedSequence`). Nothing was stored.
 *
 * @since 0.1.0
 * @category errors
 */
export class UnexpectedSequence extends Schema.TaggedError<UnexpectedSequence>("effect-maestro/UnexpectedSequence")(
  "UnexpectedSequence",
  {
    /** The aggregate's kind, and its id. */
    kind: Schema.String,
    id: Schema.String,
    /** The sequence that the caller expects; 0 where the aggregate must have no events. */
    expected: Schema.Number,
    /** The sequence of the aggregate's last stored event; 0 where it has none. */
    actual: Schema.Number
  }
) {
  override get message(): string {
    const expected = this.expected === 0 ? "have no events" : `be at sequence ${this.expected}`
    const actual = this.actual === 0 ? "has no events" : `is at sequence ${this.actual}`
    return `${this.kind} ${quote(this.id)} was expected to ${expected}, and ${actual}`
  }
}

/**
 * A type of stored events, in one version of its schema.
 *
 * @since 0.1.0
 * @category models
 */
export interface StoredType extends Schema.Schema.Type<typeof StoredType> {}

/**
 * @since 0.1.0
 * @category schemas
 */
export const StoredType = Schema.Struct({
  /** The kind of its aggregates, as `Event.identityOf` finds it. */
  kind: Schema.String,
  type: Schema.String,
  version: Schema.Number
})

/**
 * A stored type that an aggregate reads.
 *
 * @since 0.1.0
 * @category models
 */
export interface ReadableType extends Schema.Schema.Type<typeof ReadableType> {}

/**
 * @since 0.1.0
 * @category schemas
 */
export const ReadableType = Schema.Struct({
  /** The name of the aggregate. */
  aggregate: Schema.String,
  ...StoredType.fields
})

/**
 * Why an aggregate can't read a stored type:
 *
 * - `UnknownType`: its events have no such type. Add it to their schema, or rename, split or drop it there.
 * - `NewerVersion`: a newer release wrote it. Run that release, or give the type a `downcast`.
 * - `OlderVersion`: no step leads from that version to today's. Add it.
 * - `Undecodable`: an event does not fit its schema, or a step fails. The schema was changed without a new version.
 *
 * @since 0.1.0
 * @category models
 */
export const UnreadableTypeReason = Schema.Literal("UnknownType", "NewerVersion", "OlderVersion", "Undecodable")

/**
 * @since 0.1.0
 * @category models
 */
export type UnreadableTypeReason = typeof UnreadableTypeReason.Type

/**
 * A stored type that an aggregate can't read, with an event of it.
 *
 * @since 0.1.0
 * @category models
 */
export interface UnreadableType extends Schema.Schema.Type<typeof UnreadableType> {}

/**
 * @since 0.1.0
 * @category schemas
 */
export const UnreadableType = Schema.Struct({
  ...ReadableType.fields,
  reason: UnreadableTypeReason,
  /** The reason in words, with the message of the schema. */
  description: Schema.String,
  /** The stream and the sequence of an event that can't be read. */
  aggregateId: Schema.String,
  sequence: Schema.Number
})

/**
 * The store has events that the code can't read. `Aggregate.check` fails with it, before a command or a reader would fail
 * with `UnreadableEvent`.
 *
 * @since 0.1.0
 * @category errors
 */
export class UnreadableTypes extends Schema.TaggedError<UnreadableTypes>("effect-maestro/UnreadableTypes")(
  "UnreadableTypes",
  {
    unreadable: Schema.NonEmptyArray(UnreadableType),
    /** The other types of the aggregates. */
    readable: Schema.Array(ReadableType),
    /** Types of no given aggregate. */
    others: Schema.Array(StoredType)
  }
) {
  override get message(): string {
    const shown = this.unreadable.slice(0, 100).map(formatUnreadable)
    const more = this.unreadable.length > shown.length ? [`and ${this.unreadable.length - shown.length} more`] : []
    return ["the code can't read all stored events:", ...shown, ...more].join("\n- ")
  }
}

/**
 * One command of `Aggregate.evaluateAll` was refused, by its handler or by a projection of its aggregate. Nothing was
 * stored, also of the other commands. Where the commands are of several aggregates, the type of `refusal` is known by
 * `aggregate`.
 *
 * A deferred constraint is checked at COMMIT, where the database names no event. Then the command is that of the first
 * event for which a projection declares a refusal (`onConstraint`), and another command may have violated it.
 *
 * @since 0.1.0
 * @category errors
 */
export class CommandRefused<out Name extends string = string, out E = unknown> extends Data.TaggedError(
  "CommandRefused"
)<{
  /** The index of the command in the list, from 0. */
  readonly index: number
  /** The aggregate's name. */
  readonly aggregate: string
  /** The aggregate's kind, and its id. */
  readonly kind: string
  readonly id: string
  /** The failure of the handler or of the projection. */
  readonly refusal: unknown
}> {
  declare readonly aggregate: Name
  declare readonly refusal: E

  override get message(): string {
    return `Command ${this.index}, on ${this.kind} ${quote(this.id)}, was refused: ${reasonOf(this.refusal)}`
  }
}

// --- internal ---

/** The tag and the message of a refusal. */
const reasonOf = (refusal: unknown): string => {
  if (typeof refusal !== "object" || refusal === null) return quote(String(refusal))
  const tag = textOf(refusal, "_tag") ?? "an untagged failure"
  const message = textOf(refusal, "message") ?? ""
  return message === "" || message === tag ? tag : `${tag}: ${message}`
}

/** A property as text, if there is one that can be read. */
const textOf = (of: object, property: string): string | undefined => {
  try {
    const value: unknown = Reflect.get(of, property)
    return value === undefined ? undefined : String(value)
  } catch {
    // A getter, a proxy or the conversion to text can throw.
    return undefined
  }
}

const formatUnreadable = ({ aggregate, aggregateId, description, sequence, type, version }: UnreadableType): string =>
  `${aggregate}: ${plainOrQuoted(type)} version ${version}, such as event ${sequence} of ${quote(aggregateId)}: ${description}`

const quote = (text: string): string => JSON.stringify(text.length > 300 ? `${text.slice(0, 300)}…` : text)

const plainOrQuoted = (text: string): string => (/^[\w./-]{1,100}$/.test(text) ? text : quote(text))

/** The path and the message: `[1].body.amount: must be …`, or `amount: must be …` where the input is no list. */
const formatIssue = ({ index, message, path }: ValidationIssue): string => {
  const place = index === undefined ? formatPath(path).replace(/^\./, "") : `[${index}]${formatPath(path)}`
  return place === "" ? message : `${place}: ${message}`
}

const formatPath = (path: ReadonlyArray<string | number>): string => {
  const shown = path.slice(0, 10).map((key) => (typeof key === "number" ? `[${key}]` : `.${key.slice(0, 100)}`))
  return path.length > shown.length ? `${shown.join("")}…` : shown.join("")
}
