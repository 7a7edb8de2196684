/**
 * Validates and encodes the records that a store receives, and decodes the records that it returns.
 * `StoreAdapter.makeEncoded` calls it for every adapter, so all adapters refuse the same input and store the same
 * records.
 */
import * as Exit from "effect/Exit"
import { type Event, maxNameLength, maxSequence, maxVersion, type NewEvent, type StoredEvent } from "../../Event.js"
import type { Snapshot, StoredSnapshot } from "../../Snapshot.js"
import type { SequenceRange } from "../../StoreAdapter.js"
import { ValidationError, ValidationIssue } from "../../StoreError.js"
import { isTimestamp } from "../../Timestamp.js"
import { maxIssues, type Report, stringifyObject, textProblem, thrownMessage } from "../codec/json.js"
import { isLongerThan } from "../codec/names.js"
import { isTraceparent } from "../runtime/traceContext.js"

/** Validates and encodes the events of a commit. */
export const encodeEvents = (
  operation: string,
  events: ReadonlyArray<NewEvent>
): Exit.Exit<ReadonlyArray<StoredEvent>, ValidationError> =>
  validate(operation, (reporter) => {
    if (!Array.isArray(events)) {
      reporter()([], "must be a list of events")
      return []
    }
    if (events.length > maxEvents) {
      reporter()([], `must be at most ${maxEvents} events, and is ${events.length}`)
      return []
    }
    const heads = new Map<string, Pick<NewEvent, "sequence" | "timestamp">>()
    let size = 0
    const prepared = Array.from(events, (event: NewEvent, index): StoredEvent => {
      const report = reporter(index)
      const fields = readFields(event, report)
      const { aggregateId, body, follows, metadata, sequence, timestamp, type, version = 1 } = fields
      checkName(aggregateId, "aggregateId", report)
      checkName(type, "type", report)
      checkSequence(sequence, 1, "sequence", report)
      checkTimestamp(timestamp, "timestamp", report)
      if (version !== 1) checkVersion(version, report)
      const previous = heads.get(aggregateId)
      if (previous !== undefined && sequence !== previous.sequence + 1) {
        report(["sequence"], `must be ${previous.sequence + 1}: sequences of one aggregate rise by one within a commit`)
      }
      if (follows !== undefined) checkFollows(follows, previous, report)
      heads.set(aggregateId, fields)
      const stored = {
        timestamp,
        aggregateId,
        sequence,
        type,
        version,
        body: stringifyObject(body, at("body", report)) ?? "",
        metadata: stringifyObject(metadata, at("metadata", report)) ?? "",
        follows,
        ...causeOf(fields, report)
      }
      if (size <= maxCommitSize) {
        size += stored.body.length + stored.metadata.length
        if (size > maxCommitSize) report([], `the commit is larger than ${maxCommitSize / 1_000_000} MB from here on`)
      }
      return stored
    })
    return prepared
  })

/** Validates and encodes a snapshot. */
export const encodeSnapshot = (snapshot: Snapshot): Exit.Exit<StoredSnapshot, ValidationError> =>
  validate("commitSnapshot", (reporter) => {
    const report = reporter()
    const { aggregateId, body, metadata, sequence, timestamp } = readFields(snapshot, report)
    checkName(aggregateId, "aggregateId", report)
    checkSequence(sequence, 1, "sequence", report)
    checkTimestamp(timestamp, "timestamp", report)
    return {
      timestamp,
      aggregateId,
      sequence,
      body: stringifyObject(body, at("body", report)) ?? "",
      metadata: stringifyObject(metadata, at("metadata", report)) ?? ""
    }
  })

/** Validates the arguments of a read. */
export const validateRange = (
  operation: string,
  aggregateId: string,
  minSequence: number,
  options: { readonly maxSequence?: number | undefined } | undefined
): Exit.Exit<SequenceRange, ValidationError> =>
  validate(operation, (reporter) => {
    const report = reporter()
    const upper = options?.maxSequence ?? maxSequence
    checkName(aggregateId, "aggregateId", report)
    checkSequence(minSequence, 0, "minSequence", report)
    checkSequence(upper, 0, "maxSequence", report)
    return { aggregateId, minSequence, maxSequence: upper }
  })

/** Validates the aggregate id and the sequence of one event. */
export const validateStreamPosition = (
  operation: string,
  { aggregateId, sequence }: { readonly aggregateId: string; readonly sequence: number }
): Exit.Exit<SequenceRange, ValidationError> =>
  validate(operation, (reporter) => {
    const report = reporter()
    checkName(aggregateId, "aggregateId", report)
    checkSequence(sequence, 0, "sequence", report)
    return { aggregateId, minSequence: sequence, maxSequence: sequence }
  })

/** Decodes a stored event. */
export const decodeEvent = (stored: StoredEvent): Event => ({
  timestamp: stored.timestamp,
  aggregateId: stored.aggregateId,
  sequence: stored.sequence,
  type: stored.type,
  version: stored.version,
  body: JSON.parse(stored.body),
  metadata: JSON.parse(stored.metadata),
  ...causeFields(stored)
})

/** The fields that say what caused an event. A field that is not set is left out. */
export const causeFields = ({ causationId, correlationId, traceparent }: Cause): Cause =>
  causationId === undefined && correlationId === undefined && traceparent === undefined
    ? noCause
    : {
        ...(correlationId !== undefined && { correlationId }),
        ...(causationId !== undefined && { causationId }),
        ...(traceparent !== undefined && { traceparent })
      }

/** Decodes a stored snapshot. */
export const decodeSnapshot = (stored: StoredSnapshot): Snapshot => ({
  timestamp: stored.timestamp,
  aggregateId: stored.aggregateId,
  sequence: stored.sequence,
  body: JSON.parse(stored.body),
  metadata: JSON.parse(stored.metadata)
})

/** The size of stored events, in characters. */
export const sizeOf = (events: ReadonlyArray<StoredEvent>): number => {
  let size = 0
  for (const { aggregateId, body, metadata, type } of events) {
    size += aggregateId.length + body.length + metadata.length + type.length
  }
  return size
}

// --- internal ---

type Cause = Pick<Event, "correlationId" | "causationId" | "traceparent">

const noCause: Cause = {}

/** The maximum number of events of a commit, which one statement can hold. */
const maxEvents = 1_000_000

/**
 * The maximum text of all bodies and metadata of a commit, in characters. Quoted and in UTF-8 it fits into one
 * statement.
 */
const maxCommitSize = 128_000_000

const validate = <A>(
  operation: string,
  prepare: (reporter: (index?: number) => Report) => A
): Exit.Exit<A, ValidationError> => {
  const issues: Array<ValidationIssue> = []
  const reporter = (index?: number) => (path: ReadonlyArray<string | number>, message: string) => {
    // A limit, because a list may have a million holes.
    if (issues.length < maxIssues)
      issues.push(new ValidationIssue({ ...(index === undefined ? {} : { index }), path, message }))
  }
  const prepared = attempt(() => prepare(reporter), reporter())
  const [first, ...rest] = issues
  return first === undefined && prepared !== undefined
    ? Exit.succeed(prepared)
    : Exit.fail(
        new ValidationError({
          operation,
          issues: [first ?? new ValidationIssue({ path: [], message: "can't be read" }), ...rest]
        })
      )
}

/** Reports the exception of a getter or a proxy as an issue of the input. */
const attempt = <A>(read: () => A, report: Report): A | undefined => {
  try {
    return read()
  } catch (error) {
    report([], `can't be read: ${thrownMessage(error)}`)
    return undefined
  }
}

/** The fields of the record, or none if it is no object or can't be read. */
const readFields = <A extends object>(record: A, report: Report): A =>
  attempt(() => {
    if (typeof record === "object" && record !== null) return { ...record }
    report([], "must be an object")
    return undefined
  }, report) ?? ({} as A)

const checkName = (name: unknown, field: string, report: Report): void => {
  if (typeof name !== "string") return report([field], "must be a text")
  if (name === "") return report([field], "must not be empty")
  if (isLongerThan(name, maxNameLength)) return report([field], `must be at most ${maxNameLength} characters long`)
  const problem = textProblem(name)
  if (problem !== undefined) report([field], problem)
}

const checkSequence = (sequence: unknown, min: number, field: string, report: Report): void => {
  if (!Number.isInteger(sequence) || Number(sequence) < min || Number(sequence) > maxSequence) {
    report([field], `must be an integer from ${min} to ${maxSequence}`)
  }
}

const checkTimestamp = (timestamp: unknown, field: string, report: Report): void => {
  if (!isTimestamp(timestamp)) report([field], "must be a timestamp: a UUIDv7 in lower case")
}

const checkFollows = (follows: unknown, previous: Pick<NewEvent, "timestamp"> | undefined, report: Report): void => {
  if (!isTimestamp(follows)) report(["follows"], "must be a timestamp: a UUIDv7 in lower case")
  else if (previous !== undefined && follows !== previous.timestamp) {
    report(["follows"], "must be the timestamp of the event before it in the commit")
  }
}

const checkVersion = (version: unknown, report: Report): void => {
  if (!Number.isInteger(version) || Number(version) < 1 || Number(version) > maxVersion) {
    report(["version"], `must be an integer from 1 to ${maxVersion}`)
  }
}

/** The valid fields that say what caused an event. */
const causeOf = (event: NewEvent, report: Report): Cause => {
  const { causationId, correlationId, traceparent } = event
  if (correlationId !== undefined) checkName(correlationId, "correlationId", report)
  if (causationId !== undefined) checkTimestamp(causationId, "causationId", report)
  if (traceparent !== undefined && !isTraceparent(traceparent)) {
    report(["traceparent"], "must be a traceparent of W3C Trace Context, of version 00")
  }
  return causeFields(event)
}

const at =
  (field: string, report: Report): Report =>
  (path, message) =>
    report([field, ...path], message)
