/**
 * Decides which node of a subscription runs which partition. `shares.ts` calls it after each look at the nodes.
 *
 * - Each node gets ⌊p/n⌋ or ⌈p/n⌉ of p partitions.
 * - An even division stays as it is. Otherwise as few partitions move as possible.
 * - Nodes that see the same nodes and assignments decide alike, so they need no coordinator. The store applies a change
 *   only where the assignment is still the one that the node has seen.
 * - A node gets no partition that it declines, unless all nodes do.
 */
import type { Assignment, Shares } from "../../SubscriptionStore.js"

/** The changes that make the division even; none where it is. */
export const rebalance = (
  { assigned, nodes }: Pick<Shares, "assigned" | "nodes">,
  partitions: number
): ReadonlyArray<Assignment> => {
  const before = new Map(assigned.map(({ node, partition }) => [partition, node]))
  const loads = nodes
    .map(({ declines, node }): Load => ({ node, declines: new Set(declines), partitions: [] }))
    .sort((a, b) => (a.node < b.node ? -1 : 1))
  if (loads.length === 0) return []
  const orphans: Array<number> = []
  for (let partition = 0; partition < partitions; partition++) {
    const owner = loads.find(({ node }) => node === before.get(partition))
    if (owner !== undefined && mayRun(loads, owner, partition)) owner.partitions.push(partition)
    else orphans.push(partition)
  }
  for (const partition of orphans) {
    const able = loads.filter((load) => mayRun(loads, load, partition))
    byNumber(able)[0]?.partitions.push(partition)
  }
  while (moveOne(loads)) {}
  return loads
    .flatMap(({ node, partitions }) =>
      partitions.map((partition) => ({ partition, from: before.get(partition), to: node }))
    )
    .filter(({ from, to }) => from !== to)
    .sort((a, b) => a.partition - b.partition)
}

// --- internal ---

interface Load {
  readonly node: string
  readonly declines: ReadonlySet<number>
  readonly partitions: Array<number>
}

const mayRun = (loads: ReadonlyArray<Load>, { declines }: Load, partition: number): boolean =>
  !declines.has(partition) || loads.every((load) => load.declines.has(partition))

/** In rising order of the number of partitions; of equal ones in the order of their ids. */
const byNumber = (loads: ReadonlyArray<Load>): ReadonlyArray<Load> =>
  [...loads].sort((a, b) => a.partitions.length - b.partitions.length)

/** Moves a partition from a node to one that has fewer by two at least, and returns whether there were such nodes. */
const moveOne = (loads: ReadonlyArray<Load>): boolean => {
  const rising = byNumber(loads)
  for (const to of rising) {
    for (const from of [...rising].reverse()) {
      if (from.partitions.length - to.partitions.length < 2) break
      const index = from.partitions.findLastIndex((partition) => mayRun(loads, to, partition))
      if (index < 0) continue
      to.partitions.push(...from.partitions.splice(index, 1))
      return true
    }
  }
  return false
}
