/**
 * Calls of an entity: repeats calls that no runner has answered, and finds out what a failure of the cluster means.
 *
 * A call may have taken effect although it failed: an answer is lost with its connection, and a runner that was stopped
 * refuses a message that it has handled. So every message may be sent again: a command has the id of its call, and reads
 * change nothing.
 */
import * as ClusterError from "@effect/cluster/ClusterError"
import * as Socket from "@effect/platform/Socket"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as ParseResult from "effect/ParseResult"
import * as Predicate from "effect/Predicate"
import * as Schedule from "effect/Schedule"
import * as Tracer from "effect/Tracer"
import { RetryCommand, StoreError, ValidationError, ValidationIssue } from "../../StoreError.js"
import { isRefusedBefore } from "../aggregate/idempotentCommand.js"
import { parseIssues } from "../codec/eventCodec.js"
import { awaitGrace } from "../runtime/interruption.js"
import { retryAfter } from "../runtime/retry.js"
import { catchFailure } from "../runtime/syncEffect.js"
import { type CallTimer, clockOf, nowOf } from "./callTimer.js"
import { tooLarge } from "./messageSize.js"
import type { CallOptions, Sends } from "./types.js"
import { unsentReason } from "./unsent.js"

/** `CallOptions` with their defaults. */
export interface CallLimits {
  readonly timeout: Duration.Duration
  readonly retry: Schedule.Schedule<unknown>
  readonly resendAfter: Duration.Duration
}

/** What a call is for, as failures name it. */
export interface CallPlace {
  readonly operation: string
  readonly aggregateId: string
}

/** The limits of calls. A time that is no duration above 0 is a mistake in the program, and throws. */
export const callLimits = (name: string, { resendAfter, retry, timeout }: CallOptions): CallLimits => {
  const checked = (option: string, value: Duration.DurationInput): Duration.Duration => {
    const decoded = Option.getOrUndefined(Duration.decodeUnknown(value))
    if (decoded === undefined || Duration.toMillis(decoded) <= 0) {
      throw new TypeError(`${option} of the cluster of ${name} must be a duration above 0`)
    }
    return decoded
  }
  return {
    timeout: checked("timeout", timeout ?? "1 minute"),
    resendAfter: checked("resendAfter", resendAfter ?? "5 seconds"),
    retry: retry ?? defaultDelays
  }
}

/** Sends a message. The messages of a command are counted, and have the id of the call. */
type SendMessage<A> = (counted?: { readonly sends: Sends; readonly attempt: string }) => Effect.Effect<A, unknown>

/**
 * Sends a message until a runner has answered. An interruption waits for the cluster for a bounded time, because a runner
 * that hangs does not confirm it.
 *
 * A runner that is stopped keeps its connections, so nothing fails. After each `resendAfter` the message is sent once
 * more, to the runner that has the shard by then. The messages before go on, because a handler may just be slow.
 *
 * Where a refusal was stored and its answer is lost, no message of the call takes effect any more. Then a call with another
 * id begins.
 */
export const callUntilAnswered = <A>(
  place: CallPlace,
  limits: CallLimits,
  timer: CallTimer,
  kind: "command" | "read",
  send: SendMessage<A>
): Effect.Effect<A, unknown> =>
  Effect.withFiberRuntime((fiber) => {
    const ends = nowOf(clockOf(fiber)) + Duration.toMillis(limits.timeout)
    const call: Effect.Effect<A, unknown> = Effect.catchAll(
      answerOf(place, limits, timer, kind, send, ends),
      (error) => {
        if (isRefusedBefore(error)) return call
        return Effect.fail(error instanceof Unanswered ? unavailable(place, error.cause) : error)
      }
    )
    return call
  })

/** Whether a failure is one of the cluster, or of its connections, so that the message may be sent again. */
export const isUnanswered = (cause: Cause.Cause<unknown>): boolean => {
  const reasons = [...Cause.failures(cause), ...Cause.defects(cause)]
  // An entity that moves to another runner interrupts what it handles.
  return reasons.length === 0 || reasons.some(isOfCluster)
}

/** The failure of a call that no runner has answered. */
export const unavailable = (place: CallPlace, cause: Cause.Cause<unknown>): StoreError => {
  const [reason] = [...Cause.failures(cause), ...Cause.defects(cause)]
  if (reason instanceof StoreError || reason instanceof RetryCommand) {
    return clusterError(place, `the answer is lost, and the repeated message failed: ${reason.message}`, reason)
  }
  const why = Predicate.isTagged(reason, "AlreadyProcessingMessage")
    ? "a runner has the message already, and its answer is lost"
    : `the cluster failed by ${Predicate.hasProperty(reason, "_tag") ? String(reason._tag) : "an interruption"}`
  return clusterError(place, why, reason)
}

export const timedOut = (place: CallPlace, timeout: Duration.Duration): StoreError =>
  clusterError(place, `no runner has answered within ${Duration.format(timeout)}`, undefined)

/** The failure of a call whose client is closed before a runner has answered. */
export const clientClosed = (place: CallPlace): StoreError =>
  clusterError(place, "the client was closed before a runner had answered", undefined)

/**
 * A failure that is the runner's own, or that of a message which could not be encoded or decoded.
 */
export const explained = (place: CallPlace, cause: Cause.Cause<unknown>): Cause.Cause<unknown> => {
  const unreadable = [...Cause.defects(cause)].find(isUnreadable)
  return unreadable === undefined ? cause : Cause.fail(unreadableFailure(place, unreadable))
}

/**
 * Runs the effect with the span of its caller alone: what else the caller has in its context belongs to this process,
 * such as its transaction.
 */
export const alone = <A, E>(effect: Effect.Effect<A, E>): Effect.Effect<A, E> =>
  Effect.mapInputContext(effect, spanOnly)

/** The span of a context, and nothing else of it. */
export const spanOnly = (context: Context.Context<never>): Context.Context<never> =>
  Option.match(Context.getOption(context, Tracer.ParentSpan), {
    onNone: () => Context.empty(),
    onSome: (span): Context.Context<never> => Context.make(Tracer.ParentSpan, span)
  })

// --- internal ---

const defaultDelays: Schedule.Schedule<unknown> = Schedule.exponential("20 millis").pipe(
  Schedule.union(Schedule.spaced("1 second")),
  Schedule.jittered
)

/** The first result of the messages that have one id, or the failure of a call that has taken until `ends`. */
const answerOf = <A>(
  place: CallPlace,
  limits: CallLimits,
  timer: CallTimer,
  kind: "command" | "read",
  send: SendMessage<A>,
  ends: number
): Effect.Effect<A, unknown> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.withFiberRuntime((fiber) => {
      const call = new Call<A>(timer, fiber)
      // Unique among all processes, also where the program seeds its Random.
      const attempt = crypto.randomUUID()
      /** Whether a message was sent beside another one. */
      let isBeside = false
      const startMessage = (before: number) => {
        const counted = kind === "command" ? { attempt, sends: { count: before } } : undefined
        return call.start(repeating(place, limits.retry, send, counted, () => isBeside))
      }
      const answer: Effect.Effect<A, unknown> = Effect.suspend(() => {
        const now = nowOf(clockOf(fiber))
        const due = Math.min(ends, now + Duration.toMillis(limits.resendAfter))
        return Effect.flatMap(restore(call.resultUntil(due)), (result) => {
          if (result !== undefined) return result
          if (timer.isClosed()) return clientClosed(place)
          if (due === ends) return timedOut(place, limits.timeout)
          isBeside = true
          return Effect.zipRight(startMessage(1), answer)
        })
      })
      return Effect.ensuring(Effect.zipRight(startMessage(0), answer), call.end)
    })
  )

/**
 * The messages of a call, each in a fiber of its own, and the first result of them.
 *
 * `Effect.timeoutFail` around `Effect.raceFirst` and a fiber for bounded interruption would do without this class. They
 * took 0.2 ms of the processor. With this class and the timer of all calls it is 0.08 ms.
 */
class Call<A> {
  private readonly messages: Array<Fiber.RuntimeFiber<A, unknown>> = []
  private result: Exit.Exit<A, unknown> | undefined
  private onResult: () => void = () => {}

  constructor(
    private readonly timer: CallTimer,
    private readonly fiber: Fiber.RuntimeFiber<unknown, unknown>
  ) {}

  /** Starts a message, as a daemon: the call interrupts it itself, to wait for it for a bounded time. */
  start(message: Effect.Effect<A, unknown>): Effect.Effect<void> {
    return Effect.map(Effect.forkDaemon(Effect.interruptible(message)), (fiber) => {
      this.messages.push(fiber)
      fiber.addObserver((exit) => {
        this.result ??= exit
        this.onResult()
      })
    })
  }

  /** Waits for the first result until a time, and returns nothing then. */
  resultUntil(due: number): Effect.Effect<Exit.Exit<A, unknown> | undefined> {
    const result = Effect.sync(() => this.result)
    return Effect.async((resume) => {
      if (this.result !== undefined) return resume(result)
      const waiting = { due, wake: () => resume(result) }
      const stop = () => {
        this.onResult = () => {}
        this.timer.remove(this.fiber, waiting)
      }
      this.onResult = () => {
        stop()
        resume(result)
      }
      this.timer.add(this.fiber, waiting)
      return Effect.sync(stop)
    })
  }

  /** Interrupts the messages that still wait for a runner, and waits for them for the grace period. */
  readonly end: Effect.Effect<unknown> = Effect.suspend(() => {
    const waiting = this.messages.filter((message) => message.unsafePoll() === null)
    if (waiting.length === 0) return Effect.void
    for (const message of waiting) message.unsafeInterruptAsFork(this.fiber.id())
    return awaitGrace(Fiber.awaitAll(waiting))
  })
}

/** Sends the message again after each failure of the cluster, by the schedule. */
const repeating = <A>(
  place: CallPlace,
  retry: CallLimits["retry"],
  send: SendMessage<A>,
  counted: Parameters<SendMessage<A>>[0],
  isBeside: () => boolean
): Effect.Effect<A, unknown> => {
  const sends = counted?.sends
  const once = Effect.suspend(() => {
    const before = sends?.count
    return Effect.catchAllCause(alone(send(counted)), (cause) => {
      // A message to the same process may not be encoded, and is counted here.
      if (sends !== undefined && sends.count === before) sends.count++
      return isAnswer(cause, sends, isBeside())
        ? Effect.failCause(explained(place, cause))
        : Effect.fail(new Unanswered({ cause }))
    })
  })
  // A schedule is set up where the first message has failed.
  return catchFailure(once, (error) =>
    error instanceof Unanswered ? retryAfter(error, once, retry, isOfMessage) : Effect.fail(error)
  )
}

/**
 * Whether the failure of a message is the result of its call. Where other messages of a command were sent, a store that
 * fails does not show a receipt, and after a lost race there is none that would refuse these messages. The runner of the
 * first message has stored none either, because it knows of no other message.
 */
const isAnswer = (cause: Cause.Cause<unknown>, sends: Sends | undefined, isBeside: boolean): boolean => {
  if (isUnanswered(cause)) return false
  if (sends === undefined || (sends.count === 1 && !isBeside)) return true
  const failure = Option.getOrUndefined(Cause.failureOption(cause))
  if (isRefusedBefore(failure)) return true
  return sends.count > 1 && !(failure instanceof StoreError) && !(failure instanceof RetryCommand)
}

const isOfMessage = (error: unknown): boolean => error instanceof Unanswered

class Unanswered extends Data.TaggedError("Unanswered")<{ readonly cause: Cause.Cause<unknown> }> {}

const isOfCluster = (reason: unknown): boolean =>
  (Predicate.hasProperty(reason, ClusterError.TypeId) && !(reason instanceof ClusterError.MalformedMessage)) ||
  Predicate.isTagged(reason, "RpcClientError") ||
  Socket.isSocketError(reason)

/** A runner that can't decode a message sends its `MalformedMessage` as an error of that name. */
const isUnreadable = (defect: unknown): boolean =>
  isUnknownMessage(defect) ||
  ParseResult.isParseError(defect) ||
  (Predicate.isError(defect) && defect.name === "MalformedMessage")

/**
 * Whether the runner has no message of this name, as one of an older release. `@effect/cluster` then encodes its refusal by the schemas of
 * that message, which are `undefined`, so that the caller gets the `TypeError` of this access.
 */
const isUnknownMessage = (defect: unknown): boolean =>
  Predicate.isError(defect) && defect.name === "TypeError" && /undefined.*\berrorSchema\b/.test(defect.message)

const unreadableFailure = (place: CallPlace, defect: unknown): StoreError | ValidationError => {
  const unsent = unsentReason(defect)
  if (unsent !== undefined) {
    const advice = unsent.endsWith(tooLarge) && place.operation.endsWith(".evaluate") ? adviceForAnswers : ""
    return clusterError(place, `${unsent}${advice}`, undefined)
  }
  const [first, ...rest] = defect instanceof ClusterError.MalformedMessage ? issuesOf(defect.cause) : []
  return first === undefined
    ? clusterError(place, isUnknownMessage(defect) ? unknownMessage : unreadableMessage, defect)
    : new ValidationError({ operation: place.operation, issues: [first, ...rest] })
}

const adviceForAnswers = '. The command may have taken effect: `reply: "position"` asks for a short answer'

const unknownMessage = "the runner does not know the message: it may be of an older release"

const unreadableMessage =
  "a message could not be encoded or decoded: the schemas of client and runner may differ, or they can't write a value"

/** The mistakes of a message that this process could not encode. Those of a command have the path in the command, as on the local layer. */
const issuesOf = (cause: unknown): ReadonlyArray<ValidationIssue> =>
  (ParseResult.isParseError(cause) ? parseIssues(cause) : []).map((issue) =>
    issue.path[0] === "command" ? new ValidationIssue({ ...issue, path: issue.path.slice(1) }) : issue
  )

const clusterError = ({ aggregateId, operation }: CallPlace, description: string, cause: unknown): StoreError =>
  new StoreError({
    reason: "ClusterUnavailable",
    operation,
    description,
    aggregateId,
    ...(cause !== undefined && { cause })
  })
