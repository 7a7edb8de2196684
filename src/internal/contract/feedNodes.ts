/**
 * The contract of the nodes of subscriptions and of the partitions that are assigned to them, one case for each
 * sentence.
 */
import { expect } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import type { StoreError } from "../../StoreError.js"
import type { JoinOptions, Membership, Shares, SubscriptionStoreService } from "../../SubscriptionStore.js"
import { newId, test } from "./case.js"
import { type FeedCase, ports } from "./feedCase.js"

export const feedNodeCases: ReadonlyArray<FeedCase> = [
  test("join: a node and the nodes that joined before see each other, until the scope of one closes", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { first, name, second, subscriptions } = yield* twoNodes
        for (const { membership } of [first, second]) {
          const { nodes } = yield* membership.look([])
          expect(nodes.map(({ holder, node }) => [node, holder]).sort()).toEqual([
            ["first", "holder of first"],
            ["second", "holder of second"]
          ])
        }
        const listed = yield* subscriptions.nodes(name)
        expect(listed.map(({ node }) => node)).toEqual(["first", "second"])
        // The clock of a database may differ from this one.
        const now = yield* Clock.currentTimeMillis
        for (const { since } of listed) expect(Math.abs(since - now)).toBeLessThan(86_400_000)
        yield* first.leave
        expect(namesOf(yield* second.membership.look([]))).toEqual(["second"])
        expect(yield* subscriptions.nodes(name)).toMatchObject([{ node: "second" }])
        yield* second.leave
        expect(yield* subscriptions.nodes(name)).toEqual([])
      })
    )),

  test("join: a node that is interrupted while it joins has left", () =>
    Effect.gen(function* () {
      const { subscriptions } = yield* ports
      const name = newId()
      for (let steps = 0; steps < 12; steps++) {
        const joining = yield* Effect.fork(
          Effect.scoped(Effect.zipRight(subscriptions.join(nodeOf(name, `node ${steps}`)), Effect.never))
        )
        for (let step = 0; step < steps; step++) yield* Effect.yieldNow()
        yield* Fiber.interrupt(joining)
      }
      expect(yield* subscriptions.nodes(name)).toEqual([])
    })),

  test("look: shows what each node declines, as of its last look", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { first, second } = yield* twoNodes
        const declines = ({ nodes }: Shares) => Object.fromEntries(nodes.map((one) => [one.node, one.declines]))
        for (const list of [[1], [0, 1, 3], []]) {
          expect(declines(yield* first.membership.look(list))).toEqual({ first: list, second: [] })
          expect(declines(yield* second.membership.look([]))).toEqual({ first: list, second: [] })
        }
      })
    )),

  test("assign: every node sees the assignments, which outlive the node", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { subscriptions } = yield* ports
        const names = ["a", "A", "'\"\\", "\ufeff🎉"].map((text) => `${text}${newId()}`)
        const nodes = yield* Effect.forEach(names, (name) => join(subscriptions, nodeOf(name, name)))
        for (const [index, { membership }] of nodes.entries()) {
          const to = names[index] ?? ""
          expect((yield* membership.look([])).assigned).toEqual([])
          yield* membership.assign([
            { partition: 3, from: undefined, to },
            { partition: index === 0 ? 0 : 1, from: undefined, to }
          ])
        }
        for (const [index, node] of names.entries()) {
          const later = yield* join(subscriptions, nodeOf(node, "later"))
          yield* nodes[index]?.leave ?? Effect.void
          const shares = yield* later.membership.look([])
          expect(namesOf(shares)).toEqual(["later"])
          expect(assignedOf(shares)).toEqual({ [index === 0 ? 0 : 1]: node, 3: node })
        }
      })
    )),

  test("assign: changes what still is as the node has seen it, and leaves what another node has changed", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { first, second } = yield* twoNodes
        yield* first.membership.assign([0, 1, 2].map((partition) => ({ partition, from: undefined, to: "first" })))
        yield* second.membership.assign([
          { partition: 0, from: undefined, to: "second" },
          { partition: 1, from: "first", to: "second" },
          { partition: 2, from: "second", to: "second" },
          { partition: 3, from: "first", to: "second" }
        ])
        const { 0: zero, 1: one, 2: two } = assignedOf(yield* first.membership.look([]))
        expect([zero, one, two]).toEqual(["first", "second", "first"])
        yield* first.membership.assign([{ partition: 1, from: "first", to: "first" }])
        expect(assignedOf(yield* second.membership.look([]))[1]).toBe("second")
      })
    )),

  test("due: after a node has joined or left and after an assignment the other nodes look within a third of the duration", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { subscriptions } = yield* ports
        const name = newId()
        const { membership } = yield* join(subscriptions, nodeOf(name, "first", 900))
        const changes: Array<Effect.Effect<unknown, StoreError, Scope.Scope>> = [
          join(subscriptions, nodeOf(name, "second")),
          Effect.scoped(join(subscriptions, nodeOf(name, "third"))),
          membership.assign([{ partition: 0, from: undefined, to: "first" }])
        ]
        for (const change of changes) {
          yield* membership.look([])
          const due = yield* Effect.fork(membership.due)
          yield* change
          // Three times as long, because a busy machine is late.
          yield* Effect.timeout(Fiber.join(due), 900)
        }
        // A change between the look and the wait counts, too.
        yield* membership.look([])
        yield* membership.assign([{ partition: 1, from: undefined, to: "first" }])
        yield* Effect.timeout(membership.due, 900)
      })
    ))
]

// --- internal ---

/** A node of a subscription with four partitions. */
const nodeOf = (name: string, node: string, duration = 60_000): JoinOptions => ({
  name,
  partitions: 4,
  node,
  holder: `holder of ${node}`,
  duration
})

const namesOf = ({ nodes }: Shares): ReadonlyArray<string> => nodes.map(({ node }) => node).sort()

const assignedOf = ({ assigned }: Shares): Readonly<Record<number, string>> =>
  Object.fromEntries(assigned.map(({ node, partition }) => [partition, node]))

/** A membership, and an effect that closes its scope. The scope of the case closes it, too. */
const join = (
  subscriptions: SubscriptionStoreService,
  options: JoinOptions
): Effect.Effect<{ readonly membership: Membership; readonly leave: Effect.Effect<void> }, StoreError, Scope.Scope> =>
  Effect.gen(function* () {
    const own = yield* Scope.fork(yield* Effect.scope, ExecutionStrategy.sequential)
    const membership = yield* Scope.extend(subscriptions.join(options), own)
    return { membership, leave: Scope.close(own, Exit.void) }
  })

/** Two nodes of a new subscription. */
const twoNodes = Effect.gen(function* () {
  const { subscriptions } = yield* ports
  const name = newId()
  const first = yield* join(subscriptions, nodeOf(name, "first"))
  const second = yield* join(subscriptions, nodeOf(name, "second"))
  return { subscriptions, name, first, second }
})
