/**
 * Every typed failure of the library, each with a message written for the person who reads it.
 *
 * Every operation can fail with three: `RetryCommand` (another commit was first: read again, decide again), `ValidationError` (the input is
 * wrong: it says what and where), and `StoreError` (everything else, with a closed `reason`). Two more belong to what a caller sets around
 * a command: `CommandIdReused` and `UnexpectedSequence`.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"

/**
 * The commit lost: one of its sequences is taken already, or would leave a gap after the stored head. The state that
 * the events were decided on is not the stored one. Read what is new, decide again, commit again; `Aggregate` does so
 * by its `retry` schedule.
 *
 * Named after `:retry_command` of the Elixir library Maestro.
 *
 * @since 0.1.0
 * @category errors
 */
export class RetryCommand extends Schema.TaggedError<RetryCommand>("effect-maestro/RetryCommand")("RetryCommand", {
  /** The aggregate whose stored head is not the one that the commit was made for. */
  aggregateId: Schema.String,
  /** The first sequence of the commit that could not be stored. */
  sequence: Schema.Number
}) {
  override get message(): string {
    return `Sequence ${this.sequence} of aggregate ${quote(this.aggregateId)} is not the next one: another commit came first, or the state this was decided on is not the stored one`
  }
}

/**
 * One thing that is wrong with the input: in which item (its index in the list that was passed; 0 where there is only
 * one), where inside of it, and what.
 *
 * @since 0.1.0
 * @category models
 */
export class ValidationIssue extends Schema.Class<ValidationIssue>("effect-maestro/ValidationIssue")({
  /** Index of the event in the commit, counted from 0. */
  index: Schema.Number,
  /** The way from the item to the bad value: property names and array indices. */
  path: Schema.Array(Schema.Union(Schema.String, Schema.Number)),
  /** What is wrong there. */
  message: Schema.String
}) {}

/**
 * The input was refused before anything was written. `issues` holds all that is wrong with it, not only the first.
 *
 * @since 0.1.0
 * @category errors
 */
export class ValidationError extends Schema.TaggedError<ValidationError>("effect-maestro/ValidationError")(
  "ValidationError",
  {
    /** The operation that refused. */
    operation: Schema.String,
    issues: Schema.NonEmptyArray(ValidationIssue)
  }
) {
  override get message(): string {
    const shown = this.issues.slice(0, 5).map((issue) => `[${issue.index}]${formatPath(issue.path)}: ${issue.message}`)
    const more = this.issues.length > shown.length ? `; and ${this.issues.length - shown.length} more` : ""
    return `${this.operation} refused its input: ${shown.join("; ")}${more}`
  }
}

/**
 * Why a store failed. The list is closed; a `switch` over it can be exhaustive.
 *
 * - `Unavailable`: no connection could be had. Nothing was sent, nothing is stored.
 * - `ConnectionLost`: the connection broke before the commit was asked for. Nothing is stored.
 * - `CommitUnknown`: the connection broke while the commit was under way: it is stored whole or not at all, and only the
 *   store knows. Commit the very same events again to settle it.
 * - `Contention`: the database broke off a deadlock or a serialization conflict. Nothing is stored; try again.
 * - `Cancelled`: the statement was cancelled, or ran into the database's time limit. Nothing is stored.
 * - `Misconfigured`: tables, functions, rights or the database itself are missing. Migrate, or mend the configuration.
 * - `Exhausted`: the database is out of disk, memory or another limit, or read-only. Nothing is stored.
 * - `UnreadableEvent`: a stored event can't be decoded by the aggregate's or projection's schemas.
 * - `ForeignEvent`: an aggregate loaded an event that another kind of aggregate wrote.
 * - `ClockDrift`: a timestamp lies further ahead of the local clock than the clock allows.
 * - `Unknown`: none of these; see `cause`.
 *
 * @since 0.1.0
 * @category models
 */
export const StoreErrorReason = Schema.Literal(
  "Unavailable",
  "ConnectionLost",
  "CommitUnknown",
  "Contention",
  "Cancelled",
  "Misconfigured",
  "Exhausted",
  "UnreadableEvent",
  "ForeignEvent",
  "ClockDrift",
  "Unknown"
)

/**
 * @since 0.1.0
 * @category models
 */
export type StoreErrorReason = typeof StoreErrorReason.Type

/**
 * Everything that is neither a lost race nor bad input, told apart by `reason`.
 *
 * @since 0.1.0
 * @category errors
 */
export class StoreError extends Schema.TaggedError<StoreError>("effect-maestro/StoreError")("StoreError", {
  reason: StoreErrorReason,
  /** The operation that failed. */
  operation: Schema.String,
  /** What happened, for the person who reads it. */
  description: Schema.String,
  /** The database's own error code (`SQLSTATE`), or the system's (`ECONNRESET`), where there is one. */
  code: Schema.optional(Schema.String),
  /** The aggregate concerned, where it is one. */
  aggregateId: Schema.optional(Schema.String),
  /** The sequence concerned, where it is one. */
  sequence: Schema.optional(Schema.Number),
  /** The event type concerned, where it is one. */
  type: Schema.optional(Schema.String),
  /** What the driver, or the schema, said. */
  cause: Schema.optional(Schema.Defect)
}) {
  override get message(): string {
    const code = this.code === undefined ? "" : ` (${this.code})`
    return `${this.operation}: ${this.reason}: ${this.description}${code}`
  }
}

/**
 * The aggregate has handled another command under the same command id. Nothing was stored, and evaluating the command again under that id
 * fails in the same way. Only a command with an id (`Aggregate.withCommandId`) can fail with it.
 *
 * @since 0.1.0
 * @category errors
 */
export class CommandIdReused extends Schema.TaggedError<CommandIdReused>("effect-maestro/CommandIdReused")(
  "CommandIdReused",
  {
    /** The aggregate's name, and its id. */
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
    /** The aggregate's name, and its id. */
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

// --- internal ---

const quote = (text: string): string => JSON.stringify(text.length > 300 ? `${text.slice(0, 300)}…` : text)

const formatPath = (path: ReadonlyArray<string | number>): string => {
  const shown = path.slice(0, 10).map((key) => (typeof key === "number" ? `[${key}]` : `.${key.slice(0, 100)}`))
  return path.length > shown.length ? `${shown.join("")}…` : shown.join("")
}
