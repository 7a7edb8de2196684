/**
 * Waking those who wait for events: in this process at once, in others by a notification of the database.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Tracer from "effect/Tracer"
import { withLiveClock } from "../runtime/clock.js"
import { isEmbedded } from "./pg/embedded.js"

/** Those who commit to the tables of one schema through one client, and those who wait for them. */
export interface Notifications {
  /** Something was committed, or will be: wakes who waits here, and notifies others. */
  readonly committed: Effect.Effect<void>
  /** How often that was. */
  readonly commits: () => number
  /** Calls back for every commit made here, until the answer is called. */
  readonly onCommit: (wake: () => void) => () => void
  /** A subscription that runs here has come further. */
  readonly progressed: Effect.Effect<void>
  /** Calls back whenever that is so, until the answer is called. */
  readonly onProgress: (wake: () => void) => () => void
  /** Calls back for notifications of commits made elsewhere, until it can't hear any more: then it answers whether it ever could. */
  readonly listen: (wake: () => void) => Effect.Effect<boolean>
}

/** What the stores and feeds that share a client and a schema have in common. */
export const notificationsOf = (sql: SqlClient.SqlClient, schema: string): Notifications => {
  const known = hubs.get(sql) ?? new Map<string, Notifications>()
  hubs.set(sql, known)
  const hub = known.get(schema) ?? makeWakeUps(sql, channelOf(schema))
  known.set(schema, hub)
  return hub
}

// --- internal ---

const hubs = new WeakMap<SqlClient.SqlClient, Map<string, Notifications>>()

const makeWakeUps = (sql: SqlClient.SqlClient, channel: string): Notifications => {
  const commits = makeSignal()
  const progress = makeSignal()
  /** Of the connection that listens here, which need not be told of what is committed here. */
  const here: Here = { listener: "" }
  let notifying = false
  let news = false

  // It ends when there is nothing to tell, so that nothing is left behind of a store that is no longer used.
  const notify: Effect.Effect<void> = Effect.suspend(() => {
    if (!news) {
      notifying = false
      return Effect.void
    }
    news = false
    // Outside of any commit: a transaction that notifies holds a lock on all that do until its commit is on the disk.
    return sql`select pg_notify(${channel}, ${here.listener})`.pipe(
      // Whatever it fails with, polling makes up for it, and this goes on: nobody else would notify any more. Nobody interrupts it.
      Effect.catchAllCause(() => Effect.void),
      Effect.zipRight(Effect.sleep(pause)),
      Effect.zipRight(notify)
    )
  })
  const notifier = notify.pipe(
    Effect.withTracerEnabled(false),
    withLiveClock,
    Effect.mapInputContext(
      (context: Context.Context<never>) =>
        Context.omit(Tracer.ParentSpan, SqlClient.TransactionConnection)(context) as Context.Context<never>
    )
  )

  return {
    committed: Effect.suspend(() => {
      commits.ring()
      // An embedded database has nobody else to notify.
      if (isEmbedded(sql)) return Effect.void
      news = true
      if (notifying) return Effect.void
      notifying = true
      return Effect.asVoid(Effect.forkDaemon(notifier))
    }),
    commits: commits.rung,
    onCommit: commits.add,
    progressed: Effect.sync(progress.ring),
    onProgress: progress.add,
    listen: (wake) => listen(sql, channel, here, wake)
  }
}

interface Here {
  listener: string
}

/** Calls back those who wait for something to happen. */
const makeSignal = () => {
  const waiting = new Set<() => void>()
  let rung = 0
  return {
    ring: (): void => {
      rung++
      for (const wake of waiting) wake()
    },
    rung: (): number => rung,
    add: (wake: () => void) => {
      waiting.add(wake)
      return () => waiting.delete(wake)
    }
  }
}

/** Between two notifications: those that commit often are heard of often enough. */
const pause = "20 millis"

/** Channels have no schema of their own, and at most 63 bytes. */
const channelOf = (schema: string): string => `effect-maestro:${encodeURIComponent(schema).slice(0, 48)}`

/**
 * A connection of the pool, held as long as it hears. `PgClient.listen` ends in silence when its connection dies, so this looks at
 * the connection itself, as far as the client shows it.
 */
const listen = (sql: SqlClient.SqlClient, channel: string, here: Here, wake: () => void): Effect.Effect<boolean> =>
  !canSpareConnection(sql)
    ? Effect.succeed(false)
    : Effect.scoped(
        Effect.flatMap(Effect.uninterruptible(sql.reserve), (connection) => {
          const { pg } = connection as { readonly pg?: unknown }
          if (!isListener(pg)) return Effect.succeed(false)
          const ended = Effect.async<void>((resume) => {
            const done = () => resume(Effect.void)
            pg.on("end", done)
            pg.on("error", done)
            return Effect.sync(() => {
              pg.removeListener("end", done)
              pg.removeListener("error", done)
            })
          })
          const own = String(pg.processID)
          const hear = (message: Message) => {
            if (message.channel === channel && message.payload !== own) wake()
          }
          // A connection whose other end is gone without a word is given up, so that the pool does not give it to anybody.
          // It is asked by the same words, which do no harm twice: so whoever looks at the server's connections sees what this one is for.
          const listening = answers(connection, `LISTEN "${channel}"`)
          const watching = Effect.repeat(
            Effect.filterOrFail(
              Effect.delay(listening, heartbeat),
              (answered) => answered,
              () => "silent"
            ),
            { schedule: Schedule.forever }
          )
          return Effect.acquireUseRelease(
            Effect.sync(() => {
              here.listener = own
              return pg.on("notification", hear)
            }),
            () =>
              Effect.flatMap(listening, (hears) =>
                // What was committed before it could hear.
                Effect.zipRight(
                  Effect.sync(wake),
                  hears ? Effect.as(Effect.raceFirst(ended, Effect.ignore(watching)), true) : Effect.succeed(false)
                )
              ),
            () =>
              Effect.flatMap(answers(connection, `UNLISTEN "${channel}"`), (answered) =>
                Effect.sync(() => {
                  if (here.listener === own) here.listener = ""
                  pg.removeListener("notification", hear)
                  if (!answered) pg.end()
                })
              )
          )
        })
      ).pipe(
        Effect.withTracerEnabled(false),
        Effect.catchAll(() => Effect.succeed(false))
      )

/** Whether the connection answers, and does so in time. */
const answers = (connection: Connection, statement: string): Effect.Effect<boolean> =>
  Effect.isSuccess(
    Effect.timeoutFail(
      Effect.disconnect(Effect.interruptible(connection.executeUnprepared(statement, [], undefined))),
      {
        duration: timeToAnswer,
        onTimeout: () => "silent"
      }
    )
  )

const heartbeat = "10 seconds"
const timeToAnswer = "5 seconds"

/** A pool of few connections needs them all. */
const canSpareConnection = (sql: SqlClient.SqlClient): boolean => {
  const { config } = sql as { readonly config?: { readonly maxConnections?: unknown } }
  const most = config?.maxConnections
  return !isEmbedded(sql) && (typeof most !== "number" || most >= 4)
}

/** What this needs of a connection of `pg`. */
interface Listener {
  /** The server's process of this connection; no two connections to a server have the same. */
  readonly processID: unknown
  readonly on: (event: string, listener: (message: Message) => void) => unknown
  readonly removeListener: (event: string, listener: (message: Message) => void) => unknown
  readonly end: () => unknown
}

interface Message {
  readonly channel: string
  readonly payload?: string | undefined
}

const isListener = (u: unknown): u is Listener =>
  typeof u === "object" &&
  u !== null &&
  "processID" in u &&
  ["on", "removeListener", "end"].every((name) => name in u && typeof Reflect.get(u, name) === "function")
