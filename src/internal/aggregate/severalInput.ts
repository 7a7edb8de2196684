/**
 * The input of `Aggregate.evaluateAll`: checks it, and groups the commands by their aggregates. `evaluateAll.ts` calls
 * it.
 */
import type * as Context from "effect/Context"
import * as Exit from "effect/Exit"
import type { StoreAdapterService } from "../../StoreAdapter.js"
import {
  CommandIdReused,
  CommandRefused,
  RetryCommand,
  StoreError,
  UnexpectedSequence,
  ValidationError,
  ValidationIssue
} from "../../StoreError.js"
import { maxIssues } from "../codec/json.js"
import { type Caller, decidesItself } from "./commandContext.js"
import { isSequence, sequenceRule } from "./conditions.js"
import type { SeveralLayer } from "./member.js"
import { commandIdProblem } from "./receipt.js"
import { isTargetedCommand, TypeId } from "./targetedCommand.js"

/** A command of the list, and the aggregate that it is for. */
export interface CommandOfList {
  readonly index: number
  /** The name and the kind of the aggregate. */
  readonly aggregate: string
  readonly kind: string
  readonly id: string
  readonly command: unknown
  readonly expectedSequence: number | undefined
}

/** An aggregate, with its commands in their order. */
export interface AggregateOfList {
  readonly layer: SeveralLayer
  readonly id: string
  readonly streamId: string
  readonly first: CommandOfList
  readonly commands: ReadonlyArray<CommandOfList>
}

/** The aggregates in the order of their first commands, all of one store. */
export interface SeveralInput {
  readonly store: StoreAdapterService
  readonly aggregates: ReadonlyArray<AggregateOfList>
}

/** Checks the list in the context of its caller. The result of an empty list is `undefined`. */
export const readInput = (
  list: ReadonlyArray<unknown>,
  { conditions, context, decision }: Caller
): Exit.Exit<SeveralInput | undefined, ValidationError> => {
  const issues: Array<ValidationIssue> = []
  const report = (path: ReadonlyArray<string | number>, message: string, index?: number): void => {
    if (issues.length < maxIssues) {
      issues.push(new ValidationIssue({ path, message, ...(index === undefined ? {} : { index }) }))
    }
  }
  if ("commandId" in conditions) {
    const problem = commandIdProblem(conditions.commandId)
    if (problem !== undefined) report(["commandId"], problem)
  }
  if ("expectedSequence" in conditions) {
    report(
      ["expectedSequence"],
      "must be given to each command of the list: `command(id, command, { expectedSequence })`"
    )
  }
  let input: SeveralInput | undefined
  if (!Array.isArray(list)) report([], "must be a list of commands")
  else if (list.length > maxCommands) report([], `must be at most ${maxCommands} commands, and is ${list.length}`)
  else input = groupCommands(list, context, decision.streams, report)
  const [first, ...others] = issues
  return first === undefined
    ? Exit.succeed(input)
    : Exit.fail(new ValidationError({ operation, issues: [first, ...others] }))
}

/**
 * The failure of a command of the list: one of the library, or a refusal with the place of the command. A
 * `ValidationError` of a command that a handler or a projection has evaluated stays as it is.
 */
export const failureOf = ({ aggregate, id, index, kind }: CommandOfList, error: unknown): unknown =>
  isLibraryFailure(error) ? error : new CommandRefused({ index, aggregate, kind, id, refusal: error })

/** Adds the index of the command. The index of an event becomes a part of the path. */
export const atCommand = (index: number, { issues: [first, ...others] }: ValidationError): ValidationError => {
  const withIndex = ({ index: event, message, path }: ValidationIssue) =>
    new ValidationIssue({ index, path: event === undefined ? path : ["events", event, ...path], message })
  return new ValidationError({ operation, issues: [withIndex(first), ...others.map(withIndex)] })
}

/**
 * The failure of a store that refuses the commit. The index of the event in the commit becomes that of its command. The
 * path begins with the index of the event among those of the command.
 */
export const atCommandOf = (
  committed: ReadonlyArray<{ readonly by: CommandOfList }>,
  { issues: [first, ...others] }: ValidationError
): ValidationError => {
  const ofCommand = (issue: ValidationIssue): ValidationIssue => {
    const by = issue.index === undefined ? undefined : committed[issue.index]?.by
    if (by === undefined) return new ValidationIssue({ path: issue.path, message: issue.message })
    const event = committed.slice(0, issue.index).filter((other) => other.by.index === by.index).length
    return new ValidationIssue({
      index: by.index,
      path: ["events", event, ...issue.path],
      message: issue.message
    })
  }
  return new ValidationError({ operation, issues: [ofCommand(first), ...others.map(ofCommand)] })
}

// --- internal ---

/** The name of the operation in failures. */
const operation = "Aggregate.evaluateAll"

/** Enough for a list that a program makes. Each command takes some microseconds, and each aggregate a read. */
const maxCommands = 10_000

type ReportIssue = (path: ReadonlyArray<string | number>, message: string, index?: number) => void

interface Group extends AggregateOfList {
  readonly commands: Array<CommandOfList>
}

const groupCommands = (
  list: ReadonlyArray<unknown>,
  context: Context.Context<never>,
  decidingOn: ReadonlyArray<string>,
  report: ReportIssue
): SeveralInput | undefined => {
  const groups = new Map<string, Group>()
  let store: StoreAdapterService | undefined
  for (const [index, item] of list.entries()) {
    if (!isTargetedCommand(item)) {
      report([], "must be a command with its aggregate, as `command` of an aggregate makes it", index)
      continue
    }
    const { aggregate, command, expectedSequence, id } = item
    const layer = item[TypeId].layerIn(context)
    if ("elsewhere" in layer) {
      report([], layer.elsewhere, index)
      continue
    }
    store ??= layer.store
    const problem = layer.problemOf(id)
    if (problem !== undefined) report(["id"], problem, index)
    if (layer.store !== store) report([], otherStore, index)
    if (expectedSequence !== undefined && !isSequence(expectedSequence)) {
      report(["expectedSequence"], sequenceRule, index)
    }
    if (problem !== undefined) continue
    const streamId = layer.streamIdOf(id)
    if (decidingOn.includes(streamId)) report(["id"], decidesItself, index)
    const read: CommandOfList = { index, aggregate, kind: layer.kind, id, command, expectedSequence }
    const group = groups.get(streamId)
    if (group === undefined) groups.set(streamId, { layer, id, streamId, first: read, commands: [read] })
    else if (group.layer === layer) group.commands.push(read)
    else
      report(
        ["id"],
        `must not be the stream of ${group.first.aggregate}, which command ${group.first.index} is for`,
        index
      )
  }
  return store === undefined ? undefined : { store, aggregates: [...groups.values()] }
}

const otherStore =
  "must be of an aggregate whose layer has the same store as that of the first command, because one transaction stores all"

const isLibraryFailure = (error: unknown): boolean =>
  error instanceof RetryCommand ||
  error instanceof ValidationError ||
  error instanceof StoreError ||
  error instanceof CommandIdReused ||
  error instanceof UnexpectedSequence
