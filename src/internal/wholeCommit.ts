/**
 * Commits and the statements of their projections as one transaction, in one round trip.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import type { SqlError } from "@effect/sql/SqlError"
import * as Statement from "@effect/sql/Statement"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type * as Tracer from "effect/Tracer"
import type { StoreError } from "../StoreError.js"
import type { Commit } from "./commitQueue.js"
import { type BreakingOff, type Command, canSendWhole, sendWhole } from "./implicitTransaction.js"
import { fromSqlError } from "./sqlError.js"
import { reserve } from "./sqlTransaction.js"
import type { makeInsertCommits } from "./sqlWrites.js"
import { statementsOf } from "./statements.js"
import { isPlain } from "./statementText.js"
import { spannedEach } from "./tracing.js"

/** What a commit is projected by, where that is statements and nothing else. */
export type Projecting = ReadonlyArray<Command>

/** A commit that goes as a whole, and where its statements stand in traces. */
export interface WholeCommit {
  readonly commit: Commit
  readonly projecting: Projecting
  readonly span?: Tracer.AnySpan | undefined
}

/** What became of what was sent: the error is why nothing of it was stored. */
export type Sent = { readonly error: StoreError | undefined }

export interface WholeCommits {
  /** Whether there may be a connection for it. */
  readonly isPossible: () => boolean
  /** Whether this connection is one for it, as far as is known. */
  readonly can: (connection: Connection) => boolean
  /**
   * Sends commits, which happen all or not at all. It fails where nobody knows what became of them. With a limit in milliseconds it
   * waits for locks, and for statements, only so long.
   */
  readonly send: (
    connection: Connection,
    commits: ReadonlyArray<WholeCommit>,
    limit?: number
  ) => Effect.Effect<Sent, StoreError>
  /** Sends one on a connection of its own, and answers whether it was stored: if not, it can be done in any other way. */
  readonly commit: (commit: Commit, projecting: Projecting) => Effect.Effect<boolean, StoreError>
}

export const makeWholeCommits = (
  sql: SqlClient.SqlClient,
  insert: ReturnType<typeof makeInsertCommits>
): WholeCommits => {
  let able = true

  const can = (connection: Connection): boolean => {
    if (able && !canSendWhole(connection)) able = false
    return able
  }

  // By another connection of the pool. Where there is none before it is over, there is nothing left to do.
  const cancel: BreakingOff["cancel"] = (process, begin) =>
    Effect.ignore(
      Effect.scoped(
        Effect.flatMap(Effect.uninterruptible(sql.reserve), (other) =>
          begin() ? other.executeUnprepared(`select pg_cancel_backend(${process})`, [], undefined) : Effect.void
        )
      )
    )

  const send: WholeCommits["send"] = (connection, commits, limit) => {
    const commands = [
      insert.command(
        commits.map(({ commit }) => commit),
        { whole: true, hurried: limit !== undefined }
      ),
      ...commits.flatMap(({ projecting }) => projecting)
    ]
    return Effect.matchEffect(sendWhole(connection, commands, { after: limit, cancel }), {
      onSuccess: () => Effect.succeed(stored),
      onFailure: (cause) => {
        const error = fromSqlError("commitAll", "committing", cause)
        if (isRaised(cause, storedBefore)) return Effect.succeed(stored)
        // On a database with such a default it would be so again.
        if (isRaised(cause, otherIsolation)) able = false
        // What the server answers as an error of a statement it has taken back, whatever code somebody has given it.
        return error.reason === "CommitUnknown" && (!isAnswer(cause) || serverGoes.test(error.code ?? ""))
          ? Effect.fail(error)
          : Effect.succeed({ error })
      }
    }).pipe(spannedEach("sql.execute", commits.flatMap(placesOf)))
  }

  return {
    isPossible: () => able,
    can,
    send,
    commit: (commit, projecting) =>
      Effect.scoped(
        Effect.flatMap(reserve(sql, "commitAll"), (connection) =>
          can(connection)
            ? Effect.map(send(connection, [{ commit, projecting }]), ({ error }) => error === undefined)
            : Effect.succeed(false)
        )
      )
  }
}

/**
 * The statements that the projections come to, if they are that and nothing else: for this client, and where nobody has asked for
 * statements to be changed on their way.
 */
export const projectingOf = (
  fiber: Fiber.RuntimeFiber<unknown, unknown>,
  client: SqlClient.SqlClient,
  project: Effect.Effect<void, unknown, unknown>
): Projecting | undefined => {
  const statements = statementsOf(project)
  if (statements === undefined || fiber.getFiberRef(Statement.currentTransformer)._tag === "Some") return undefined
  const theirs = Context.getOption(fiber.currentContext as Context.Context<never>, SqlClient.SqlClient)
  if (theirs._tag === "None" || theirs.value !== client) return undefined
  try {
    const commands = statements(client)?.map((statement): Command => {
      const [text, values] = statement.compile()
      return { text, values }
    })
    return commands?.every(({ text }) => isPlain(text)) === true ? commands : undefined
  } catch {
    // A handler's own fault: doing the effect shows it.
    return undefined
  }
}

// --- internal ---

const stored: Sent = { error: undefined }

// What `commit_events` raises. By the words too: others may have codes of their own.
const otherIsolation = { code: "MA002", message: "the transaction is not READ COMMITTED" }
const storedBefore = { code: "MA003", message: "all of it is stored" }

const isRaised = ({ cause }: SqlError, { code, message }: typeof storedBefore): boolean =>
  cause instanceof Error && "code" in cause && cause.code === code && cause.message === message

/** Whether the server has said so, and not the driver. */
const isAnswer = ({ cause }: SqlError): boolean =>
  typeof cause === "object" && cause !== null && "severity" in cause && typeof cause.severity === "string"

/** What it says when it ends the connection, whatever that was at. */
const serverGoes = /^57P0[1-5]$/

const placesOf = ({ projecting, span }: WholeCommit): ReadonlyArray<Tracer.SpanOptions> =>
  projecting.map(({ text }) => ({
    kind: "client",
    ...(span === undefined ? {} : { parent: span }),
    attributes: { "db.system.name": "postgresql", "db.operation.name": "execute", "db.query.text": text }
  }))
