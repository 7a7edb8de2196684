/**
 * Plans what a node runs, and changes the number of partitions of the subscription where all nodes want another one.
 * `shares.ts` calls it at each look at the nodes.
 *
 * A new partition has aggregates of several old ones. So all old partitions must have handled the same events first:
 * - The partition with the furthest checkpoint is given up there, and each other one runs up to that position.
 * - When all have reached it and no lease is held, the store replaces all partitions together.
 *
 * Each node decides by what it sees, and nothing is recorded, so the change needs no coordinator. It may be given up at
 * any time. A node that has not noticed it moves the position, and costs another look. Only the store's own conditions
 * decide whether the partitions are replaced.
 *
 * While a partition is stopped, or retries an event, it may not reach the position for long. Then all run as before, and
 * the change waits.
 */
import * as Effect from "effect/Effect"
import { order, type Position } from "../../EventFeed.js"
import type { StoreError } from "../../StoreError.js"
import type {
  JoinOptions,
  Membership,
  PartitionState,
  Shares,
  SubscriptionStoreService
} from "../../SubscriptionStore.js"
import { rebalance } from "./balance.js"

/** What a node is to run. */
export interface Plan {
  /** How many partitions the subscription has. */
  readonly partitions: number
  /** The own partitions, each with the position up to which it runs; undefined without an end. */
  readonly own: ReadonlyMap<number, Position | undefined>
  /** Whether the next look should follow soon. */
  readonly isChanging: boolean
}

/** The plan for this node. If the division is not even, it is made even first. */
export const planOf = (
  store: SubscriptionStoreService,
  membership: Membership,
  options: JoinOptions,
  declines: Effect.Effect<ReadonlyArray<number>>
): Effect.Effect<Plan, StoreError> =>
  Effect.gen(function* () {
    const declined = yield* declines
    const before = yield* membership.look(declined)
    const changes = rebalance(before, numberOf(before, options))
    if (changes.length > 0) yield* membership.assign(changes)
    const seen = changes.length > 0 ? yield* membership.look(declined) : before
    const partitions = numberOf(seen, options)
    const own = shareOf(seen, options.node, partitions)
    const normal: Plan = {
      partitions,
      own: new Map(own.map((partition) => [partition, undefined])),
      isChanging: partitions !== numberOf(before, options)
    }
    return isChangeWanted(seen) ? yield* planChange(store, membership, options.name, own, normal) : normal
  })

/**
 * The next step of a change: nothing while it must wait, the position that all partitions must reach, or the replacement
 * of the partitions.
 */
export const nextStep = (
  states: ReadonlyArray<PartitionState>,
  partitions: number
): "wait" | "replace" | { readonly until: Position } => {
  const [first] = states
  const mustWait =
    first === undefined ||
    states.length !== partitions ||
    states.some((one) => one.partitions !== partitions || one.stopped || one.retrying)
  if (mustWait) return "wait"
  const until = states.reduce((last, { position }) => (order(position, last) > 0 ? position : last), first.position)
  const areReady = states.every(({ holder, position }) => holder._tag === "None" && order(position, until) === 0)
  return areReady ? "replace" : { until }
}

// --- internal ---

/** How many partitions the nodes run: the stored number, or that of the node that joined first. */
const numberOf = ({ nodes, partitions }: Shares, own: JoinOptions): number =>
  partitions ?? nodes[0]?.partitions ?? own.partitions

const shareOf = ({ assigned }: Shares, node: string, partitions: number): ReadonlyArray<number> =>
  assigned.filter((one) => one.node === node && one.partition < partitions).map(({ partition }) => partition)

/** Whether all nodes want one number, and the store has another. */
const isChangeWanted = ({ nodes, partitions }: Shares): boolean => {
  const wanted = nodes[0]?.partitions
  const isAgreed = nodes.every((node) => node.partitions === wanted)
  return isAgreed && wanted !== undefined && partitions !== undefined && wanted !== partitions
}

const planChange = (
  store: SubscriptionStoreService,
  membership: Membership,
  name: string,
  own: ReadonlyArray<number>,
  normal: Plan
): Effect.Effect<Plan, StoreError> =>
  Effect.gen(function* () {
    const { partitions } = normal
    const states = yield* store.partitions(name)
    const step = nextStep(states, partitions)
    if (step === "wait") return normal
    if (step === "replace") {
      // Another node may replace them, or a transaction may be in the way. The next look shows it.
      yield* Effect.catchIf(
        membership.repartition(partitions),
        ({ reason }) => reason === "Contention",
        () => Effect.succeed(false)
      )
      return { partitions, own: new Map(), isChanging: true }
    }
    const behind = own.filter((partition) =>
      states.some((state) => state.partition === partition && order(state.position, step.until) < 0)
    )
    return { partitions, own: new Map(behind.map((partition) => [partition, step.until])), isChanging: true }
  })
