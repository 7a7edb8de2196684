/**
 * Runs the partitions that are assigned to this node, and gives up partitions that are assigned to another. `runner.ts`
 * runs it once for each run of a subscription, which is one node.
 *
 * After each look at the nodes it decides by `rebalance` whether assignments must change. A partition that another node
 * still runs is asked for immediately: its lease becomes free when that node has noticed, and has ended its batch.
 *
 * Where all nodes want another number of partitions than the store has, they change it (`repartition.ts`).
 *
 * Assignments are about who asks for a lease. That a partition is never run twice, and goes on at its checkpoint,
 * depends on the lease alone. So nodes that see different things cost time and no event.
 */
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import type { StoreError } from "../../StoreError.js"
import type { JoinOptions, Key, Membership, SubscriptionStoreService } from "../../SubscriptionStore.js"
import { liveSleep } from "../runtime/clock.js"
import { awaitGrace, scoped } from "../runtime/interruption.js"
import { type Plan, planOf } from "./repartition.js"
import { retryWhileUnavailable } from "./retryWhileUnavailable.js"
import { makeTurn, type Turn } from "./turn.js"

/** What a node runs. */
export interface NodeRun<E, R> {
  /** Runs a partition until its turn is over. If it fails, the node fails. */
  readonly runOne: (key: Key, turn: Turn) => Effect.Effect<void, E, R>
  /** The partitions that this node can't run at present. */
  readonly declines: Effect.Effect<ReadonlyArray<number>>
}

/** Runs a node without end. */
export const runShares = <E, R>(
  store: SubscriptionStoreService,
  options: JoinOptions,
  run: NodeRun<E, R>
): Effect.Effect<never, E | StoreError, R> =>
  scoped(
    Effect.gen(function* () {
      const failed = yield* Deferred.make<never, E | StoreError>()
      const membership = yield* retryWhileUnavailable(untraced(store.join(options)))
      const running = yield* runningPartitions
      // A scope ends with what it began last. So no partition begins any more, and the others take over what is idle
      // here, while batches under way end. At last the node leaves, when no transaction of a batch is in the way.
      let { partitions } = options
      yield* Effect.addFinalizer(() => awaitGrace(Effect.ignore(untraced(membership.look(allOf(partitions))))))
      const planning = Effect.map(planOf(store, membership, options, run.declines), (plan) => {
        partitions = plan.partitions
        return plan
      })
      const following = follow(
        membership,
        retryWhileUnavailable(untraced(planning)),
        options.name,
        run,
        running,
        failed
      )
      yield* Effect.forkScoped(Effect.catchAllCause(following, (cause) => Deferred.failCause(failed, cause)))
      return yield* Deferred.await(failed)
    })
  )

// --- internal ---

/** The pause between two looks while the number of partitions changes, in milliseconds. */
const changePause = 100

const allOf = (partitions: number): ReadonlyArray<number> =>
  Array.from({ length: partitions }, (_, partition) => partition)

/** A look is no part of what a program does, so it has no spans. */
const untraced = Effect.withTracerEnabled(false)

interface Running {
  readonly partitions: number
  readonly turn: Turn
  readonly fiber: Fiber.RuntimeFiber<void>
}

/** The partitions that run here. When the scope closes, all are interrupted together, and their batches end. */
const runningPartitions: Effect.Effect<Map<number, Running>, never, Scope.Scope> = Effect.acquireRelease(
  Effect.sync(() => new Map<number, Running>()),
  (running) => Fiber.interruptAll([...running.values()].map(({ fiber }) => fiber))
)

/** Follows the assignments without end. */
const follow = <E, R>(
  membership: Membership,
  planning: Effect.Effect<Plan, StoreError>,
  name: string,
  run: NodeRun<E, R>,
  running: Map<number, Running>,
  failed: Deferred.Deferred<never, E | StoreError>
): Effect.Effect<never, StoreError, R> =>
  Effect.gen(function* () {
    for (;;) {
      const { isChanging, own, partitions } = yield* planning
      let isSettled = !isChanging
      for (const [partition, one] of running) {
        if (own.has(partition) && one.partitions === partitions && own.get(partition) === one.turn.until) continue
        yield* giveUp(one)
        // It begins in another way when it has ended.
        if (own.has(partition)) isSettled = false
      }
      for (const [partition, until] of own) {
        if (running.has(partition)) continue
        yield* begin(running, failed, { name, partition, partitions }, makeTurn(until), run)
      }
      yield* isSettled ? membership.due : Effect.raceFirst(membership.due, liveSleep(changePause))
    }
  })

/** Begins to run a partition, in a fiber that `runningPartitions` ends. */
const begin = <E, R>(
  running: Map<number, Running>,
  failed: Deferred.Deferred<never, E | StoreError>,
  key: Key,
  turn: Turn,
  { runOne }: NodeRun<E, R>
): Effect.Effect<void, never, R> =>
  Effect.uninterruptible(
    Effect.suspend(() => {
      const { partition, partitions } = key
      const ended = Effect.sync(() => {
        running.delete(partition)
      })
      const run = Effect.interruptible(runOne(key, turn)).pipe(
        Effect.ensuring(ended),
        Effect.catchAllCause((cause) =>
          Cause.isInterruptedOnly(cause) ? Effect.void : Effect.asVoid(Deferred.failCause(failed, cause))
        )
      )
      return Effect.map(Effect.forkDaemon(run), (fiber) => {
        running.set(partition, { partitions, turn, fiber })
      })
    })
  )

/**
 * Ends the consumer between two batches, also if the partition is assigned to this node again meanwhile. By then it may
 * have left out events of its page. Another consumer begins when it has ended.
 */
const giveUp = ({ fiber, turn }: Running): Effect.Effect<void> =>
  Effect.suspend(() => {
    turn.isOver = true
    return turn.isHandling ? Effect.void : Fiber.interruptFork(fiber)
  })
