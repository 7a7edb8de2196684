/**
 * Wakes the waiters for events: those of this store immediately, those of other stores and processes by NOTIFY.
 *
 * `SqlStore.layerWith` builds it once, for the store, its feed and its subscriptions. A signal is a hint and never a promise: the waiters poll,
 * too, so a lost notification costs time and no event.
 *
 * - One notification is sent for all commits within 20 ms, outside of any transaction. A transaction that notifies would hold a lock that
 *   all others wait for until it is on the disk.
 * - Stores on one embedded database do not notify each other. Their waiters poll.
 * - When the scope closes, the notification of the last commits is sent, and no fiber is left.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Tracer from "effect/Tracer"
import { withLiveClock } from "../runtime/clock.js"
import { awaitGrace, scoped } from "../runtime/interruption.js"
import { macrotask } from "../runtime/macrotask.js"
import type { CommitSignals } from "./commit/appendEvents.js"
import type { CommandRunner } from "./pg/commandRunner.js"
import { connectionEnd } from "./pg/connection.js"
import { canListen, canSpareConnection, close, isEmbedded, onNotification } from "./pg/driver.js"
import { contentsOf, PendingSignals, type Signal, signalOf } from "./signal.js"

/** The signals of one store. */
export interface Notifications extends CommitSignals {
  /** Calls back for all events that are stored here, until the returned function is called. */
  readonly onCommit: (wake: (signal: Signal) => void) => () => void
  /** A subscription that runs here has advanced. */
  readonly progressed: Effect.Effect<void>
  /** Calls back for every advance of a subscription that runs here, until the returned function is called. */
  readonly onProgress: (wake: () => void) => () => void
  /** Calls back for notifications of commits made elsewhere. Ends when it can't listen any more, and returns whether it ever could. */
  readonly listen: (wake: (signal: Signal) => void) => Effect.Effect<boolean>
}

export const makeNotifications = (
  sql: SqlClient.SqlClient,
  schema: string,
  runner: CommandRunner
): Effect.Effect<Notifications, never, Scope.Scope> => {
  const channel = channelOf(schema)
  const notification = runner.prepare("select pg_notify($1, $2)")
  const commits = makeCallbacks<Signal>()
  const progress = makeCallbacks<void>()
  const listener: LocalListener = { id: "" }
  let insertions = 0
  let notifier: Fiber.RuntimeFiber<void> | "starting" | undefined
  let due: PendingSignals | undefined

  // The payload keeps the listener of this store from hearing what it knows already. Polling makes up for a failure.
  const send = (signals: PendingSignals) =>
    Effect.suspend(() => {
      due = undefined
      const command = { ...notification, values: [channel, signals.payload(listener.id)] }
      return Effect.catchAllCause(runner.run([command]), () => Effect.void)
    })
  const outsideOfCommits = <A>(effect: Effect.Effect<A>): Effect.Effect<A> =>
    effect.pipe(
      Effect.withTracerEnabled(false),
      withLiveClock,
      Effect.mapInputContext(
        (context: Context.Context<never>) =>
          Context.omit(Tracer.ParentSpan, SqlClient.TransactionConnection)(context) as Context.Context<never>
      )
    )
  // The fiber ends when no notification is due.
  const notify: Effect.Effect<void> = Effect.suspend(() => {
    if (due !== undefined) return Effect.zipRight(Effect.zipRight(send(due), Effect.sleep(pause)), notify)
    notifier = undefined
    return Effect.void
  })

  const signal = (signal: Signal): Effect.Effect<void> => {
    commits.call(signal)
    if (isEmbedded(sql)) return Effect.void
    due ??= new PendingSignals()
    due.add(signal)
    if (notifier !== undefined) return Effect.void
    notifier = "starting"
    // The waiters here and the caller go on first.
    return Effect.map(Effect.forkDaemon(outsideOfCommits(Effect.zipRight(macrotask, notify))), (fiber) => {
      if (notifier === "starting") notifier = fiber
    })
  }

  const notifications: Notifications = {
    committed: (events) => Effect.suspend(() => signal({ contents: contentsOf(events), isOpen: false })),
    inserted: (events) =>
      Effect.suspend(() => {
        insertions++
        return signal({ contents: contentsOf(events), isOpen: true })
      }),
    afterCommit: (events, transaction) =>
      Effect.suspend(() => {
        const before = insertions
        return Effect.tap(transaction, () => {
          // Other transactions may have inserted meanwhile, so it is not known what this one did.
          if (insertions !== before) return signal({ contents: undefined, isOpen: false })
          return events.length === 0 ? Effect.void : signal({ contents: contentsOf(events), isOpen: false })
        })
      }),
    onCommit: commits.add,
    progressed: Effect.sync(progress.call),
    onProgress: progress.add,
    listen: (wake) => listen(sql, channel, listener, wake)
  }
  const sendLast = Effect.suspend(() => {
    const stopping = Fiber.isFiber(notifier) ? awaitGrace(Fiber.interrupt(notifier)) : Effect.void
    notifier = undefined
    return Effect.zipRight(
      stopping,
      Effect.suspend(() => (due === undefined ? Effect.void : awaitGrace(outsideOfCommits(send(due)))))
    )
  })
  return Effect.as(
    Effect.addFinalizer(() => sendLast),
    notifications
  )
}

// --- internal ---

/** The name of the connection that listens here, or nothing. */
interface LocalListener {
  id: string
}

const makeCallbacks = <A>() => {
  const callbacks = new Set<(a: A) => void>()
  return {
    call: (a: A): void => {
      for (const callback of callbacks) callback(a)
    },
    add: (callback: (a: A) => void) => {
      callbacks.add(callback)
      return () => callbacks.delete(callback)
    }
  }
}

/** Between two notifications. */
const pause = "20 millis"

/** Channels have no schema of their own, and at most 63 bytes. */
const channelOf = (schema: string): string => `effect-maestro:${encodeURIComponent(schema).slice(0, 48)}`

/**
 * Listens on a connection of the pool, which it holds while it listens. `PgClient.listen` ends without a failure when its connection dies,
 * so this watches the connection itself, as far as the driver shows it.
 */
const listen = (
  sql: SqlClient.SqlClient,
  channel: string,
  listener: LocalListener,
  wake: (signal: Signal) => void
): Effect.Effect<boolean> =>
  !canSpareConnection(sql)
    ? Effect.succeed(false)
    : scoped(
        Effect.flatMap(Effect.uninterruptible(sql.reserve), (connection) => {
          if (!canListen(connection)) return Effect.succeed(false)
          // Not the id of its process, because servers that are several machines give one id to several processes.
          const own = crypto.randomUUID()
          // The heartbeat is LISTEN, too: twice does no harm, and the server's list of connections shows what this one is for.
          const listening = respondsInTime(connection, `LISTEN "${channel}"`)
          const silent = Effect.repeat(
            Effect.filterOrFail(
              Effect.delay(listening, heartbeat),
              (responds) => responds,
              () => "silent"
            ),
            { schedule: Schedule.forever }
          )
          return Effect.flatMap(connectionEnd(connection), (ended) =>
            Effect.acquireUseRelease(
              Effect.sync(() => {
                listener.id = own
                return onNotification(connection, channel, (payload) => {
                  const { contents, from, isOpen } = signalOf(payload)
                  if (from !== own) wake({ contents, isOpen })
                })
              }),
              () =>
                Effect.flatMap(listening, (listens) =>
                  // Something may have been committed before it listened.
                  Effect.zipRight(
                    Effect.sync(() => wake({ contents: undefined, isOpen: false })),
                    listens
                      ? Effect.as(Effect.raceFirst(Effect.ignore(ended), Effect.ignore(silent)), true)
                      : Effect.succeed(false)
                  )
                ),
              (stop) =>
                Effect.flatMap(respondsInTime(connection, `UNLISTEN "${channel}"`), (responds) =>
                  Effect.sync(() => {
                    if (listener.id === own) listener.id = ""
                    stop()
                    // The pool must not hand out a connection whose other end is gone.
                    if (!responds) close(connection)
                  })
                )
            )
          )
        })
      ).pipe(
        Effect.withTracerEnabled(false),
        Effect.catchAll(() => Effect.succeed(false))
      )

/** Whether the server replies to a statement in time. */
const respondsInTime = (connection: Connection, statement: string): Effect.Effect<boolean> =>
  Effect.isSuccess(
    Effect.timeoutFail(
      Effect.disconnect(Effect.interruptible(connection.executeUnprepared(statement, [], undefined))),
      {
        duration: maxResponseTime,
        onTimeout: () => "silent"
      }
    )
  )

const heartbeat = "10 seconds"
const maxResponseTime = "5 seconds"
