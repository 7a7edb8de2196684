/**
 * Sends the statements of many effects in one round trip, though each effect waits for the results of its own.
 * Rebuilds use it for projections that are effects.
 *
 * An `insert`, `update` or `delete` without `returning` returns no rows. So its result is known before it is sent: such a
 * statement is kept, and its effect goes on. All other statements are sent directly, behind the kept statements. The
 * database gets all of them in the order in which they were run, and the effects run one after the other.
 *
 * An effect does not see the failure of a kept statement. So its user runs the effects behind a savepoint, and again
 * without deferral where `hasFailed` returns true.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import type { SqlError } from "@effect/sql/SqlError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { copyOf } from "./compileStatements.js"
import { type Open, onConnection } from "./connection.js"
import type { Command } from "./driver.js"
import { type SendInside, sendInside } from "./transaction.js"

export interface DeferredWrites {
  /** Runs an effect whose statements may be kept. */
  readonly run: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  /** Sends the statements that are kept. */
  readonly flush: Effect.Effect<void, SqlError>
  /** How many statements are kept. */
  readonly kept: () => number
  /** Whether a batch of kept statements has failed. No statement is sent after it. */
  readonly hasFailed: () => boolean
  /** Keeps no further statements. A fiber that outlives its effect sends its statements directly. */
  readonly end: () => void
}

/** Undefined where the transaction around it can't send a batch. */
export const makeDeferredWrites: Effect.Effect<DeferredWrites | undefined> = Effect.contextWithEffect(
  (context: Context.Context<never>) =>
    Effect.map(sendInside, (send) => {
      const open = Context.getOption(context, SqlClient.TransactionConnection)
      if (send === undefined || Option.isNone(open)) return undefined
      const [connection, depth] = open.value
      const deferring = new Deferring(connection, send)
      const inside: Open = [deferring, depth]
      return {
        run: (effect) => onConnection(inside, effect),
        flush: deferring.flush,
        kept: () => deferring.kept.length,
        hasFailed: () => deferring.failure !== undefined,
        end: () => {
          deferring.hasEnded = true
        }
      }
    })
)

// --- internal ---

/** Whether the result of a statement has no rows, whatever the tables have. */
const returnsNothing = (text: string): boolean => writes.test(text) && !mayReturn.test(text)
const writes = /^\s*(insert|update|delete)\s/i
const mayReturn = /returning/i

/** Undefined where a value may change before it is sent. */
const copiesOf = (values: ReadonlyArray<unknown>): ReadonlyArray<unknown> | undefined => {
  const copies = values.map(copyOf)
  return copies.some((copy, index) => typeof copy === "object" && copy !== null && copy === values[index])
    ? undefined
    : copies
}

class Deferring implements Connection {
  kept: Array<Command> = []
  failure: SqlError | undefined
  hasEnded = false

  constructor(
    private readonly connection: Connection,
    private readonly send: SendInside
  ) {}

  readonly flush: Effect.Effect<void, SqlError> = Effect.suspend(() => {
    if (this.failure !== undefined) return this.failure
    if (this.kept.length === 0) return Effect.void
    const commands = this.kept
    this.kept = []
    return Effect.asVoid(
      Effect.tapError(this.send(commands), (error) =>
        Effect.sync(() => {
          this.failure = error
        })
      )
    )
  })

  readonly execute: Connection["execute"] = (text, values, transformRows) =>
    Effect.suspend(() => {
      if (this.failure !== undefined) return this.failure
      const copied = this.hasEnded || !returnsNothing(text) ? undefined : copiesOf(values)
      if (copied === undefined) return this.behindKept(this.connection.execute(text, values, transformRows))
      this.kept.push({ text, values: copied })
      return Effect.succeed([])
    })

  readonly executeRaw: Connection["executeRaw"] = (...args) => this.behindKept(this.connection.executeRaw(...args))
  readonly executeValues: Connection["executeValues"] = (...args) =>
    this.behindKept(this.connection.executeValues(...args))
  readonly executeUnprepared: Connection["executeUnprepared"] = (...args) =>
    this.behindKept(this.connection.executeUnprepared(...args))
  readonly executeStream: Connection["executeStream"] = (...args) =>
    Stream.unwrap(Effect.as(this.flush, this.connection.executeStream(...args)))

  private readonly behindKept = <A>(statement: Effect.Effect<A, SqlError>): Effect.Effect<A, SqlError> =>
    Effect.zipRight(this.flush, statement)
}
