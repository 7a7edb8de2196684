/**
 * Reads the history of an aggregate from runners. A message asks for all events after some of them, so the client can ask again for what is
 * left. `client.ts` calls it.
 *
 * A connection that is lost fails its message, and the next one is sent. A runner that is stopped keeps its connections, so nothing fails.
 * Where no event comes for `resendAfter`, the next message is sent beside those before, because a handler may just be slow. The first that
 * brings the next event goes on, and the others are interrupted. The history fails where no event comes for the `timeout`. The time that
 * its reader takes does not count.
 *
 * Messages may bring events twice, and the cluster may begin a message again by itself. An event is passed on by its index, once.
 */
import * as Chunk from "effect/Chunk"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"
import type { HistoricEvent } from "../aggregate/history.js"
import { awaitGrace } from "../runtime/interruption.js"
import { type CallLimits, type CallPlace, clientClosed, explained, isUnanswered, spanOnly, timedOut } from "./call.js"
import { awaitDue, type CallTimer, clockOf, nowOf } from "./callTimer.js"
import type { IndexedEvent } from "./types.js"

/** Opens the history after some events. */
type Open<A> = (message: { readonly skip: number }) => Stream.Stream<IndexedEvent<A>, unknown>

/** The history as a stream. It fails with the failures of the message, and with `ClusterUnavailable`. */
export const readHistory = <A>(
  place: CallPlace,
  limits: CallLimits,
  timer: CallTimer,
  open: Open<A>
): Stream.Stream<HistoricEvent<A>, unknown> =>
  Stream.unwrapScoped(
    Effect.map(
      Effect.acquireRelease(
        Effect.map(Queue.bounded<Item<A>>(buffered), (items) => new Reading(place, limits, timer, open, items)),
        ({ end }) => end
      ),
      ({ pull }) => Stream.repeatEffectChunkOption(pull)
    )
  )

// --- internal ---

/** How many pages of events of a message wait for the reader. */
const buffered = 2

/** The delay of a message after one that has failed, in milliseconds. */
const delay = 100

/** A page of events of a message, or how the message has ended. */
type Item<A> = { readonly message: number } & (
  | { readonly events: Chunk.Chunk<IndexedEvent<A>> }
  | { readonly exit: Exit.Exit<void, unknown> }
)

/** The next events, or nothing at the end. */
type Pulled<A> = Effect.Effect<Chunk.Chunk<HistoricEvent<A>>, Option.Option<unknown>>

/** When a pull gives up, and when it sends the next message, in milliseconds of `nowOf`. */
interface Deadlines {
  readonly ends: number
  readonly resends: number
}

class Reading<A> {
  /** The messages that go on, by their numbers. */
  private readonly messages = new Map<number, Fiber.RuntimeFiber<unknown>>()
  private readonly arrived = Effect.unsafeMakeLatch(false)
  private sent = 0
  /** The index of the next event. */
  private next = 0

  constructor(
    private readonly place: CallPlace,
    private readonly limits: CallLimits,
    private readonly timer: CallTimer,
    private readonly open: Open<A>,
    private readonly items: Queue.Queue<Item<A>>
  ) {}

  readonly pull: Pulled<A> = withNow((now) => {
    const { resendAfter, timeout } = this.limits
    const deadlines = { ends: now + Duration.toMillis(timeout), resends: now + Duration.toMillis(resendAfter) }
    return this.sent === 0 ? Effect.zipRight(this.send, this.pullUntil(deadlines)) : this.pullUntil(deadlines)
  })

  /** Interrupts all messages, and waits for them for the grace period. */
  readonly end: Effect.Effect<unknown> = Effect.suspend(() => {
    const interrupted = this.interruptOthers(undefined)
    return interrupted.length === 0 ? Effect.void : awaitGrace(Fiber.awaitAll(interrupted))
  })

  /** Sends a message for what is left, as a daemon, because `end` waits for it for a bounded time. */
  private readonly send = Effect.uninterruptible(
    Effect.suspend(() => {
      const message = ++this.sent
      const reading = Stream.suspend(() => this.open({ skip: this.next })).pipe(
        Stream.mapInputContext(spanOnly),
        Stream.runForEachChunk((events) => this.put({ message, events })),
        Effect.exit,
        Effect.flatMap((exit) => this.put({ message, exit }))
      )
      return Effect.map(Effect.forkDaemon(Effect.interruptible(reading)), (fiber) => {
        this.messages.set(message, fiber)
      })
    })
  )

  private put(item: Item<A>): Effect.Effect<unknown> {
    return Effect.zipRight(Queue.offer(this.items, item), this.arrived.open)
  }

  private pullUntil(deadlines: Deadlines): Pulled<A> {
    return Effect.flatMap(Effect.zipRight(this.arrived.close, Queue.poll(this.items)), (item) =>
      Option.isSome(item) ? this.accept(item.value, deadlines) : this.wait(deadlines)
    )
  }

  /** Waits for an item. The race can't lose one, because it takes none. */
  private wait(deadlines: Deadlines): Pulled<A> {
    return withNow((now) => {
      if (this.timer.isClosed()) return Effect.fail(Option.some(clientClosed(this.place)))
      if (now >= deadlines.ends) return Effect.fail(Option.some(timedOut(this.place, this.limits.timeout)))
      if (now >= deadlines.resends) {
        const resends = now + Duration.toMillis(this.limits.resendAfter)
        return Effect.zipRight(this.send, this.pullUntil({ ...deadlines, resends }))
      }
      const due = awaitDue(this.timer, Math.min(deadlines.ends, deadlines.resends))
      return Effect.zipRight(Effect.raceFirst(this.arrived.await, due), this.pullUntil(deadlines))
    })
  }

  private accept(item: Item<A>, deadlines: Deadlines): Pulled<A> {
    if (!this.messages.has(item.message)) return this.pullUntil(deadlines)
    if ("events" in item) {
      const events = Chunk.filterMap(item.events, (event) => this.ifNext(event))
      if (Chunk.isEmpty(events)) return this.pullUntil(deadlines)
      this.interruptOthers(item.message)
      return Effect.succeed(events)
    }
    if (Exit.isSuccess(item.exit)) return Effect.fail(Option.none())
    const { cause } = item.exit
    if (!isUnanswered(cause)) return Effect.mapError(Effect.failCause(explained(this.place, cause)), Option.some)
    this.messages.delete(item.message)
    return withNow((now) => {
      const resends = this.messages.size === 0 ? Math.min(deadlines.resends, now + delay) : deadlines.resends
      return this.pullUntil({ ...deadlines, resends })
    })
  }

  /** The event if it is the next one, or nothing if it was passed on already. */
  private ifNext({ index, ...event }: IndexedEvent<A>): Option.Option<HistoricEvent<A>> {
    if (index !== this.next) return Option.none()
    this.next++
    return Option.some(event)
  }

  /** Interrupts the messages except one, and returns them. Their items are discarded. */
  private interruptOthers(message: number | undefined): ReadonlyArray<Fiber.RuntimeFiber<unknown>> {
    const others = [...this.messages].filter(([number]) => number !== message)
    for (const [number, fiber] of others) {
      this.messages.delete(number)
      fiber.unsafeInterruptAsFork(FiberId.none)
    }
    return others.map(([, fiber]) => fiber)
  }
}

const withNow = <A, E>(use: (now: number) => Effect.Effect<A, E>): Effect.Effect<A, E> =>
  Effect.withFiberRuntime((fiber) => use(nowOf(clockOf(fiber))))
