/** The division of partitions among nodes, without a store. */
import { expect, it } from "@effect/vitest"
import type { SubscriptionStore } from "effect-maestro"
import { inject } from "vitest"
import { rebalance } from "../src/internal/subscription/balance.js"

const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31))

/** Random numbers from 0 to a limit (exclusive), by mulberry32. */
const randomBelow = (() => {
  let state = seed
  return (limit: number): number => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * limit)
  }
})()

const nodeOf = (node: string, declines: ReadonlyArray<number> = []): SubscriptionStore.SubscriptionNode => ({
  node,
  holder: node,
  partitions: 1,
  declines,
  since: 0
})

type Assigned = ReadonlyMap<number, string>

const sharesOf = (
  nodes: ReadonlyArray<SubscriptionStore.SubscriptionNode>,
  assigned: Assigned
): Pick<SubscriptionStore.Shares, "assigned" | "nodes"> => ({
  nodes,
  assigned: [...assigned].map(([partition, node]) => ({ partition, node }))
})

/** The assignments after the changes, which must fit the ones before. */
const applied = (assigned: Assigned, changes: ReadonlyArray<SubscriptionStore.Assignment>): Assigned => {
  const after = new Map(assigned)
  for (const { from, partition, to } of changes) {
    expect(after.get(partition)).toBe(from)
    expect(to).not.toBe(from)
    after.set(partition, to)
  }
  return after
}

const countsOf = (assigned: Assigned, nodes: ReadonlyArray<string>): ReadonlyArray<number> => {
  const owners = [...assigned.values()]
  return nodes.map((node) => owners.filter((owner) => owner === node).length)
}

/** How many partitions must move at least: those of nodes that have left, and what nodes have beyond their share. */
const leastMoves = (assigned: Assigned, nodes: ReadonlyArray<string>, partitions: number): number => {
  const counts = [...countsOf(assigned, nodes)].sort((a, b) => b - a)
  const larger = partitions % nodes.length
  const kept = counts.map((count, index) =>
    Math.min(count, Math.floor(partitions / nodes.length) + (index < larger ? 1 : 0))
  )
  return partitions - kept.reduce((sum, count) => sum + count, 0)
}

it(`nodes that come and go get even shares, and as few partitions move as possible (seed ${seed})`, () => {
  const runs = inject("runs") > 100 ? 2000 : 200
  for (let run = 0; run < runs; run++) {
    const partitions = 1 + randomBelow(20)
    let assigned: Assigned = new Map()
    let nodes: ReadonlyArray<string> = []
    for (let round = 0; round < 20; round++) {
      const coming = Array.from({ length: randomBelow(4) }, (_, index) => `${randomBelow(1000)}-${round}-${index}`)
      nodes = [...nodes.filter(() => randomBelow(3) > 0), ...coming]
      const shares = sharesOf(
        nodes.map((node) => nodeOf(node)),
        assigned
      )
      const changes = rebalance(shares, partitions)
      if (nodes.length === 0) {
        expect(changes).toEqual([])
        continue
      }
      // Each node decides alike, whatever order it sees the nodes in.
      expect(rebalance({ ...shares, nodes: [...shares.nodes].reverse() }, partitions)).toEqual(changes)
      expect(changes).toHaveLength(leastMoves(assigned, nodes, partitions))
      assigned = applied(assigned, changes)
      expect([...assigned.keys()].sort((a, b) => a - b)).toEqual(Array.from({ length: partitions }, (_, one) => one))
      const counts = countsOf(assigned, nodes)
      expect(Math.max(...counts) - Math.min(...counts)).toBeLessThanOrEqual(1)
      expect(rebalance(sharesOf(shares.nodes, assigned), partitions)).toEqual([])
    }
  }
})

it(`a partition goes to no node that declines it, unless all nodes do, and the division comes to rest (seed ${seed})`, () => {
  for (let run = 0; run < 500; run++) {
    const partitions = 1 + randomBelow(10)
    let assigned: Assigned = new Map()
    for (let round = 0; round < 5; round++) {
      const nodes = Array.from({ length: 1 + randomBelow(4) }, (_, index) =>
        nodeOf(
          `${index}`,
          Array.from({ length: partitions }, (_, one) => one).filter(() => randomBelow(3) === 0)
        )
      )
      assigned = applied(assigned, rebalance(sharesOf(nodes, assigned), partitions))
      expect(assigned.size).toBe(partitions)
      for (const [partition, owner] of assigned) {
        const mayNot = nodes.find(({ node }) => node === owner)?.declines.includes(partition)
        if (mayNot) expect(nodes.every(({ declines }) => declines.includes(partition))).toBe(true)
      }
      expect(rebalance(sharesOf(nodes, assigned), partitions)).toEqual([])
    }
  }
})

it("a node that joins gets its share of partitions that run elsewhere, and the others stay", () => {
  const assigned = new Map([0, 1, 2, 3, 4, 5].map((partition) => [partition, partition < 3 ? "a" : "b"]))
  expect(
    rebalance(
      sharesOf(
        ["a", "b", "c"].map((node) => nodeOf(node)),
        assigned
      ),
      6
    )
  ).toEqual([
    { partition: 2, from: "a", to: "c" },
    { partition: 5, from: "b", to: "c" }
  ])
})

it("what was assigned to a number of partitions that no longer exists is left alone", () => {
  const assigned = new Map([0, 1, 2, 3].map((partition) => [partition, "a"]))
  expect(rebalance(sharesOf([nodeOf("a"), nodeOf("b")], assigned), 2)).toEqual([{ partition: 1, from: "a", to: "b" }])
})
