/**
 * Events and snapshots between the port and a store: checked and turned to text on the way in, read on the way out.
 * Every adapter of this library goes through here, so all refuse the same and none stores what another could not.
 */
import * as Effect from "effect/Effect"
import { type Event, maxNameLength, maxSequence } from "../Event.js"
import type { Snapshot } from "../Snapshot.js"
import { ValidationError, ValidationIssue } from "../StoreError.js"
import { isTimestamp } from "../Timestamp.js"
import { type Report, stringifyObject, textProblem } from "./json.js"

/** An event whose JSON parts are text: what a store keeps. */
export type StoredEvent = Omit<Event, "body" | "metadata"> & { readonly body: string; readonly metadata: string }

/** A snapshot whose JSON parts are text: what a store keeps. */
export type StoredSnapshot = Omit<Snapshot, "body" | "metadata"> & { readonly body: string; readonly metadata: string }

/** Checks the events of a commit, all of them, and makes their stored form. */
export const prepareEvents = (
  operation: string,
  events: ReadonlyArray<Event>
): Effect.Effect<ReadonlyArray<StoredEvent>, ValidationError> =>
  validate(operation, (reporter) => {
    if (!Array.isArray(events)) {
      reporter(0)([], "must be a list of events")
      return []
    }
    const heads = new Map<string, number>()
    return Array.from(events, (event: Event, index): StoredEvent => {
      const report = reporter(index)
      const { aggregateId, body, metadata, sequence, timestamp, type } = readFields(event, report)
      checkName(aggregateId, "aggregateId", report)
      checkName(type, "type", report)
      checkSequence(sequence, 1, "sequence", report)
      checkTimestamp(timestamp, report)
      const previous = heads.get(aggregateId)
      if (previous !== undefined && sequence !== previous + 1) {
        report(["sequence"], `must be ${previous + 1}: sequences of one aggregate rise by one within a commit`)
      }
      heads.set(aggregateId, sequence)
      return {
        timestamp,
        aggregateId,
        sequence,
        type,
        body: stringifyObject(body, at("body", report)) ?? "",
        metadata: stringifyObject(metadata, at("metadata", report)) ?? ""
      }
    })
  })

/** Checks a snapshot and makes its stored form. */
export const prepareSnapshot = (snapshot: Snapshot): Effect.Effect<StoredSnapshot, ValidationError> =>
  validate("commitSnapshot", (reporter) => {
    const report = reporter(0)
    const { aggregateId, body, metadata, sequence, timestamp } = readFields(snapshot, report)
    checkName(aggregateId, "aggregateId", report)
    checkSequence(sequence, 1, "sequence", report)
    checkTimestamp(timestamp, report)
    return {
      timestamp,
      aggregateId,
      sequence,
      body: stringifyObject(body, at("body", report)) ?? "",
      metadata: stringifyObject(metadata, at("metadata", report)) ?? ""
    }
  })

/** What a read asks for, with both bounds inclusive. */
export interface Range {
  readonly aggregateId: string
  readonly minSequence: number
  readonly maxSequence: number
}

/** Checks what a read asks for. */
export const prepareRange = (
  operation: string,
  aggregateId: string,
  minSequence: number,
  options: { readonly maxSequence?: number | undefined } | undefined
): Effect.Effect<Range, ValidationError> =>
  validate(operation, (reporter) => {
    const report = reporter(0)
    const upper = options?.maxSequence ?? maxSequence
    checkName(aggregateId, "aggregateId", report)
    checkSequence(minSequence, 0, "minSequence", report)
    checkSequence(upper, 0, "maxSequence", report)
    return { aggregateId, minSequence, maxSequence: upper }
  })

/** Reads a stored event. */
export const restoreEvent = (stored: StoredEvent): Event => ({
  timestamp: stored.timestamp,
  aggregateId: stored.aggregateId,
  sequence: stored.sequence,
  type: stored.type,
  body: JSON.parse(stored.body),
  metadata: JSON.parse(stored.metadata)
})

/** Reads a stored snapshot. */
export const restoreSnapshot = (stored: StoredSnapshot): Snapshot => ({
  timestamp: stored.timestamp,
  aggregateId: stored.aggregateId,
  sequence: stored.sequence,
  body: JSON.parse(stored.body),
  metadata: JSON.parse(stored.metadata)
})

// --- internal ---

/** Enough to mend the input by; a list of a million holes need not be told in full. */
const maxIssues = 1000

const validate = <A>(
  operation: string,
  prepare: (reporter: (index: number) => Report) => A
): Effect.Effect<A, ValidationError> =>
  Effect.suspend(() => {
    const issues: Array<ValidationIssue> = []
    const prepared = prepare((index) => (path, message) => {
      if (issues.length < maxIssues) issues.push(new ValidationIssue({ index, path, message }))
    })
    const [first, ...rest] = issues
    return first === undefined
      ? Effect.succeed(prepared)
      : Effect.fail(new ValidationError({ operation, issues: [first, ...rest] }))
  })

/** The record itself, or one without any field where it is no object or can't be read. */
const readFields = <A extends object>(record: A, report: Report): A => {
  try {
    if (typeof record === "object" && record !== null) return { ...record }
    report([], "must be an object")
  } catch {
    report([], "can't be read")
  }
  return {} as A
}

const checkName = (name: unknown, field: string, report: Report): void => {
  if (typeof name !== "string") return report([field], "must be a text")
  if (name === "") return report([field], "must not be empty")
  // The number of UTF-16 units bounds that of characters from both sides; only between them it takes counting.
  if (name.length > maxNameLength && (name.length > 2 * maxNameLength || Array.from(name).length > maxNameLength)) {
    return report([field], `must be at most ${maxNameLength} characters long`)
  }
  const problem = textProblem(name)
  if (problem !== undefined) report([field], problem)
}

const checkSequence = (sequence: unknown, min: number, field: string, report: Report): void => {
  if (!Number.isInteger(sequence) || Number(sequence) < min || Number(sequence) > maxSequence) {
    report([field], `must be an integer from ${min} to ${maxSequence}`)
  }
}

const checkTimestamp = (timestamp: unknown, report: Report): void => {
  if (!isTimestamp(timestamp)) report(["timestamp"], "must be a timestamp: a UUIDv7 in lower case")
}

const at =
  (field: string, report: Report): Report =>
  (path, message) =>
    report([field, ...path], message)
