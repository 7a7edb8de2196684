/**
 * The nodes of the subscriptions of the store in memory, and what is assigned to them. A node leaves with its scope, so
 * none is missing without having left.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { JoinOptions, Membership, SubscriptionNode } from "../../SubscriptionStore.js"

/** `stored` is the number of partitions that a subscription has, undefined while it has never run. */
export const makeMemoryNodes = (stored: (name: string) => number | undefined) => {
  const subscriptions = new Map<string, Nodes>()
  const nodesOf = (name: string): Nodes => {
    const known = subscriptions.get(name) ?? { nodes: new Map(), assigned: new Map(), waiting: new Set(), changes: 0 }
    subscriptions.set(name, known)
    return known
  }

  const join = (options: JoinOptions): Effect.Effect<Omit<Membership, "repartition">, never, Scope.Scope> =>
    Effect.gen(function* () {
      const { holder, name, node, partitions } = options
      const of = nodesOf(name)
      const since = yield* Clock.currentTimeMillis
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          of.nodes.set(node, { node, holder, partitions, declines: [], since })
          changed(of)
        }),
        () =>
          Effect.sync(() => {
            of.nodes.delete(node)
            changed(of)
          })
      )
      let seen = of.changes
      return {
        look: (declines) =>
          Effect.sync(() => {
            const own = of.nodes.get(node)
            if (own !== undefined && String(own.declines) !== String(declines)) {
              of.nodes.set(node, { ...own, declines })
              changed(of)
            }
            seen = of.changes
            return {
              partitions: stored(name),
              nodes: [...of.nodes.values()],
              assigned: [...of.assigned].map(([partition, owner]) => ({ partition, node: owner }))
            }
          }),
        assign: (changes) =>
          Effect.sync(() => {
            for (const { from, partition, to } of changes) {
              if (of.assigned.get(partition) === from) of.assigned.set(partition, to)
            }
            changed(of)
          }),
        due: Effect.async<void>((resume) => {
          if (seen !== of.changes) return resume(Effect.void)
          const wake = () => {
            of.waiting.delete(wake)
            resume(Effect.void)
          }
          of.waiting.add(wake)
          return Effect.sync(() => of.waiting.delete(wake))
        })
      }
    })

  const listed = (name: string): ReadonlyArray<SubscriptionNode> => [...(subscriptions.get(name)?.nodes.values() ?? [])]

  /** Forgets the assignments, because the partitions are others. */
  const unassign = (name: string): void => {
    const of = nodesOf(name)
    of.assigned.clear()
    changed(of)
  }

  return { join, listed, unassign }
}

// --- internal ---

/** The nodes of one subscription. */
interface Nodes {
  readonly nodes: Map<string, SubscriptionNode>
  readonly assigned: Map<number, string>
  readonly waiting: Set<() => void>
  /** How many changes there were. */
  changes: number
}

const changed = (of: Nodes): void => {
  of.changes++
  for (const wake of [...of.waiting]) wake()
}
