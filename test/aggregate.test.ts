/** Commands, reads, snapshots and time stamps of aggregates, on every store. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/TestClock"
import {
  Aggregate,
  type Event,
  type EventFeed,
  MemoryStore,
  Projection,
  SqlStore,
  StoreAdapter,
  StoreError,
  Subscription,
  Timestamp
} from "effect-maestro"
import {
  Account,
  AlreadyOpen,
  Deposit,
  Deposited,
  definition,
  InsufficientFunds,
  LimitExceeded,
  Limits,
  Open,
  Opened,
  SavingsAccount,
  Touch,
  Withdraw,
  Withdrawn
} from "./account.js"
import { layerPg, uniqueName } from "./database.js"
import { aNode, failure, macrotask } from "./nodes.js"

const stores = {
  MemoryStore: MemoryStore.layer,
  "SqlStore on Postgres": SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie)
}

for (const [name, store] of Object.entries(stores)) {
  const layer = Layer.mergeAll(Account.layer, SavingsAccount.layer).pipe(
    Layer.provideMerge(Limits.layer),
    Layer.provideMerge(store)
  )
  it.layer(layer, { timeout: 60_000 })(`Aggregate on ${name}`, (it) => {
    // --- evaluate ---

    it.effect("evaluate: returns the state, the sequence and the events, and stores the events", () =>
      Effect.gen(function* () {
        const id = yield* Account.newId
        expect(yield* Account.evaluate(id, new Open({ owner: "ann" }))).toEqual({
          state: { owner: "ann", balance: 0 },
          sequence: 1,
          events: [new Opened({ owner: "ann" })],
          position: { aggregateId: Account.streamId(id), sequence: 1 },
          duplicate: false
        })
        expect((yield* Account.evaluate(id, new Deposit({ amount: 10 }))).sequence).toBe(2)
        const stored = yield* Effect.flatMap(StoreAdapter.StoreAdapter, (adapter) =>
          adapter.getEvents(`Account/${id}`, 1)
        )
        expect(stored).toMatchObject([
          {
            aggregateId: `Account/${id}`,
            sequence: 1,
            type: "Opened",
            version: 1,
            body: { owner: "ann" },
            metadata: {}
          },
          { aggregateId: `Account/${id}`, sequence: 2, type: "Deposited", version: 1, body: { amount: 10 } }
        ])
        expect(Object.keys(stored[0]?.body ?? {})).toEqual(["owner"])
      })
    )

    it.scoped("evaluate: a subscription has handled the command's events after waitFor of its position", () =>
      Effect.gen(function* () {
        const counted = new Map<string, number>()
        const count = Subscription.make(uniqueName("count"), {
          filter: { kinds: ["Account"] },
          handle: (event) => Effect.sync(() => counted.set(event.id, (counted.get(event.id) ?? 0) + 1))
        })
        const id = yield* Account.newId
        // The position of an aggregate without events waits for nothing, not even for a subscription that has never run.
        const { position: nowhere } = yield* Account.evaluate(id, new Touch())
        yield* Subscription.waitFor(count.name, nowhere, "1 minute")
        yield* Layer.build(count.layer)
        for (const expected of [1, 2, 3]) {
          const { position } = yield* Account.evaluate(id, new Deposit({ amount: 1 }))
          const sent: EventFeed.StreamPosition = JSON.parse(JSON.stringify(position))
          yield* Subscription.waitFor(count.name, sent, "1 minute")
          expect(counted.get(id)).toBe(expected)
        }
      })
    )

    it.effect("evaluate: a refusal is the failure, and stores nothing", () =>
      Effect.gen(function* () {
        const id = yield* Account.newId
        yield* Account.evaluate(id, new Open({ owner: "ann" }))
        expect(yield* Effect.flip(Account.evaluate(id, new Open({ owner: "bob" })))).toEqual(
          new AlreadyOpen({ owner: "ann" })
        )
        expect(yield* Effect.flip(Account.evaluate(id, new Withdraw({ amount: 5 })))).toEqual(
          new InsufficientFunds({ balance: 0 })
        )
        expect(yield* Effect.flip(Account.evaluate(id, new Withdraw({ amount: 5000 })))).toEqual(
          new LimitExceeded({ limit: 1000 })
        )
        expect(yield* headOf(id)).toBe(1)
      })
    )

    it.effect("evaluate: a decision of no events stores nothing and returns the state", () =>
      Effect.gen(function* () {
        const id = yield* Account.newId
        expect(yield* Account.evaluate(id, new Touch())).toEqual({
          state: definition.initialState,
          sequence: 0,
          events: [],
          position: { aggregateId: Account.streamId(id), sequence: 0 },
          duplicate: false
        })
        yield* Account.evaluate(id, new Deposit({ amount: 1 }))
        expect(yield* Account.evaluate(id, new Touch())).toEqual({
          state: { owner: null, balance: 1 },
          sequence: 1,
          events: [],
          position: { aggregateId: Account.streamId(id), sequence: 1 },
          duplicate: false
        })
        expect(yield* headOf(id)).toBe(1)
      })
    )

    it.effect("evaluate: twenty concurrent commands on one aggregate are all stored, as 1 … 20", () =>
      Effect.gen(function* () {
        const id = yield* Account.newId
        const results = yield* Effect.forEach(
          Arr.range(1, 20),
          (amount) => Account.evaluate(id, new Deposit({ amount })),
          { concurrency: "unbounded" }
        )
        expect(results.map(({ sequence }) => sequence).sort((a, b) => a - b)).toEqual(Arr.range(1, 20))
        expect(yield* Account.fetch(id)).toEqual({ owner: null, balance: 210 })
      })
    )

    it.scoped("evaluate: concurrent commands from several nodes are each applied once, each on the current state", () =>
      Effect.gen(function* () {
        const nodes = yield* Effect.forEach(Arr.range(1, 4), () => aNode(Account.layer))
        const id = yield* Account.newId
        yield* Account.evaluate(id, new Deposit({ amount: 100 }))
        // Ten withdrawals of 20 from 100: five succeed, in any order.
        const results = yield* Effect.forEach(
          Arr.range(0, 9),
          (index) =>
            Effect.either(Effect.provide(Account.evaluate(id, new Withdraw({ amount: 20 })), nodeAt(nodes, index))),
          { concurrency: "unbounded" }
        )
        expect(results.filter(Either.isRight)).toHaveLength(5)
        expect(Arr.getLefts(results)).toEqual(Arr.makeBy(5, () => new InsufficientFunds({ balance: 0 })))
        expect(yield* Account.fetch(id)).toEqual({ owner: null, balance: 0 })
        expect(yield* headOf(id)).toBe(6)
      })
    )

    it.scoped("evaluate: a command that lost a race is decided again on the new state", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const others = yield* Effect.context<Aggregate.Instance<"Account">>()
        const id = yield* Account.newId
        yield* Account.evaluate(id, new Deposit({ amount: 10 }))
        let commits = 0
        const node = yield* aNode(Account.layer, {
          ...store,
          // Between this node's decision and its commit another node empties the account.
          commitAll: (events, projections) =>
            ++commits === 1
              ? Effect.zipRight(
                  Effect.orDie(Effect.provide(Account.evaluate(id, new Withdraw({ amount: 10 })), others)),
                  store.commitAll(events, projections)
                )
              : store.commitAll(events, projections)
        })
        const error = yield* Effect.flip(Effect.provide(Account.evaluate(id, new Withdraw({ amount: 10 })), node))
        expect(error).toEqual(new InsufficientFunds({ balance: 0 }))
        expect(commits).toBe(1)
        expect(yield* headOf(id)).toBe(2)
      })
    )

    it.scoped("evaluate: when the retries are exhausted the RetryCommand is the failure", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const Stubborn = Aggregate.make("Account", { ...definition, retry: Schedule.recurs(3) })
        const id = yield* Account.newId
        const conflict = new StoreError.RetryCommand({ aggregateId: id, sequence: 1 })
        let commits = 0
        const node = yield* aNode(Stubborn.layer, {
          ...store,
          commitAll: () =>
            Effect.suspend(() => {
              commits++
              return Effect.fail(conflict)
            })
        })
        expect(yield* Effect.flip(Effect.provide(Stubborn.evaluate(id, new Deposit({ amount: 1 })), node))).toEqual(
          conflict
        )
        expect(commits).toBe(4)
      })
    )

    it.scoped("evaluate: the default schedule is bounded", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const { retry: _, ...rest } = definition
        const Default = Aggregate.make("Account", rest)
        let commits = 0
        const node = yield* aNode(Default.layer, {
          ...store,
          commitAll: () =>
            Effect.suspend(() => {
              commits++
              return Effect.fail(new StoreError.RetryCommand({ aggregateId: "a", sequence: 1 }))
            })
        })
        const fiber = yield* Effect.fork(
          Effect.provide(Default.evaluate(yield* Account.newId, new Deposit({ amount: 1 })), node)
        )
        // The store on Postgres needs macrotasks between the retries, and the retries need the clock.
        yield* Effect.repeat(Effect.zipRight(TestClock.adjust("100 millis"), macrotask), {
          until: () => Effect.map(Fiber.poll(fiber), Option.isSome)
        })
        expect(yield* Effect.flip(Fiber.join(fiber))).toBeInstanceOf(StoreError.RetryCommand)
        expect(commits).toBe(16)
      })
    )

    for (const stored of [true, false]) {
      it.scoped(
        `evaluate: a commit of unknown outcome that was ${stored ? "" : "not "}stored is settled, and applied once`,
        () =>
          Effect.gen(function* () {
            const store = yield* StoreAdapter.StoreAdapter
            const limits = yield* Limits
            const id = yield* Account.newId
            yield* Account.evaluate(id, new Deposit({ amount: 10 }))
            const asked = limits.asked
            let commits = 0
            const node = yield* aNode(Account.layer, {
              ...store,
              commitAll: (events, projections) =>
                Effect.suspend(() =>
                  ++commits > 2
                    ? store.commitAll(events, projections)
                    : Effect.zipRight(
                        stored ? store.commitAll(events, projections) : Effect.void,
                        Effect.fail(failure("CommitUnknown"))
                      )
                )
            })
            const result = yield* Effect.provide(Account.evaluate(id, new Withdraw({ amount: 10 })), node)
            expect(result).toMatchObject({ sequence: 2, state: { balance: 0 } })
            expect(commits).toBe(3)
            // Decided once: a second decision would have found the account empty.
            expect(limits.asked - asked).toBe(1)
            expect(yield* headOf(id)).toBe(2)
          })
      )
    }

    it.scoped(
      "evaluate: a commit that can't be settled fails with CommitUnknown, also if the last attempt failed otherwise",
      () =>
        Effect.gen(function* () {
          const store = yield* StoreAdapter.StoreAdapter
          let commits = 0
          const node = yield* aNode(Account.layer, {
            ...store,
            commitAll: () =>
              Effect.suspend(() => Effect.fail(failure(++commits === 1 ? "CommitUnknown" : "Unavailable")))
          })
          const error = yield* Effect.flip(
            Effect.provide(Account.evaluate(yield* Account.newId, new Deposit({ amount: 1 })), node)
          )
          expect(error).toMatchObject({ reason: "CommitUnknown" })
          expect(commits).toBe(51)
        })
    )

    it.scoped("evaluate: a failure that is not transient is not retried", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        let commits = 0
        const node = yield* aNode(Account.layer, {
          ...store,
          commitAll: () =>
            Effect.suspend(() => {
              commits++
              return Effect.fail(failure("Exhausted"))
            })
        })
        const error = yield* Effect.flip(
          Effect.provide(Account.evaluate(yield* Account.newId, new Deposit({ amount: 1 })), node)
        )
        expect(error).toMatchObject({ reason: "Exhausted" })
        expect(commits).toBe(1)
      })
    )

    it.effect(
      "evaluate: a command that is interrupted while it waits for the lock stores nothing, and the next one gets the lock",
      () =>
        Effect.gen(function* () {
          const [started, go] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
          const Slow = Aggregate.make("Account", {
            ...definition,
            decide: {
              ...definition.decide,
              Touch: () => Effect.zipRight(Deferred.succeed(started, undefined), Effect.as(Deferred.await(go), []))
            }
          })
          yield* Effect.gen(function* () {
            const id = yield* Account.newId
            const first = yield* Effect.fork(Slow.evaluate(id, new Touch()))
            yield* Deferred.await(started)
            const second = yield* Effect.fork(Slow.evaluate(id, new Deposit({ amount: 1 })))
            const third = yield* Effect.fork(Slow.evaluate(id, new Deposit({ amount: 2 })))
            yield* Effect.yieldNow()
            expect(Exit.isInterrupted(yield* Fiber.interrupt(second))).toBe(true)
            yield* Deferred.succeed(go, undefined)
            yield* Fiber.join(first)
            expect(yield* Fiber.join(third)).toMatchObject({ sequence: 1, state: { balance: 2 } })
          }).pipe(Effect.provide(Slow.layer))
        })
    )

    it.effect("evaluate: an event that its own schema can't encode is a ValidationError, and nothing is stored", () =>
      Effect.gen(function* () {
        class Measured extends Schema.TaggedClass<Measured>()("Measured", { value: Schema.Number }) {}
        class Measure extends Schema.TaggedClass<Measure>()("Measure", { value: Schema.Number }) {}
        const Gauge = Aggregate.make("Gauge", {
          state: Schema.Number,
          initialState: 0,
          events: Measured,
          commands: Measure,
          decide: {
            Measure: ({ value }) =>
              Effect.succeed([new Measured({ value: 1 }), new Measured({ value }, { disableValidation: true })])
          },
          evolve: { Measured: (_, event) => event.value }
        })
        yield* Effect.gen(function* () {
          const id = yield* Gauge.newId
          // JSON has no NaN; the schema has.
          const nan = yield* Effect.flip(Gauge.evaluate(id, new Measure({ value: Number.NaN })))
          expect(nan).toMatchObject({ _tag: "ValidationError", issues: [{ index: 1, path: ["body", "value"] }] })
          const invalid = JSON.parse('{"_tag": "Measure", "value": "text"}')
          const error = yield* Effect.flip(Gauge.evaluate(id, invalid))
          expect(error).toMatchObject({ _tag: "ValidationError", issues: [{ index: 1, path: ["value"] }] })
          expect(yield* headOf(id, Gauge)).toBe(0)
          // A state that is a number has snapshots, too.
          yield* Gauge.evaluate(id, new Measure({ value: 7 }))
          yield* Gauge.snapshot(id)
          expect(yield* Gauge.fetch(id)).toBe(7)
        }).pipe(Effect.provide(Gauge.layer))
      })
    )

    it.effect("evaluate: an invalid id, and an unknown command, is a ValidationError", () =>
      Effect.gen(function* () {
        for (const id of ["", "x".repeat(256), "a\0"]) {
          const error = yield* Effect.flip(Account.evaluate(id, new Deposit({ amount: 1 })))
          expect(error).toMatchObject({ _tag: "ValidationError", issues: [{ path: ["id"] }] })
        }
        for (const command of [JSON.parse('{"_tag": "Close"}'), JSON.parse("null"), JSON.parse("{}")]) {
          const error = yield* Effect.flip(Account.evaluate(yield* Account.newId, command))
          expect(error).toMatchObject({ _tag: "ValidationError", issues: [{ path: ["_tag"] }] })
        }
      })
    )

    it.effect("evaluateUnknown: decodes a command, and fails with a ValidationError that names the wrong field", () =>
      Effect.gen(function* () {
        const id = yield* Account.newId
        expect(yield* Account.evaluateUnknown(id, { _tag: "Deposit", amount: 5 })).toMatchObject({ sequence: 1 })
        expect(yield* Effect.flip(Account.evaluateUnknown(id, { _tag: "Withdraw", amount: 50 }))).toEqual(
          new InsufficientFunds({ balance: 5 })
        )
        const issuesOf = (json: unknown) =>
          Effect.map(Effect.flip(Account.evaluateUnknown(id, json)), (error) =>
            error._tag === "ValidationError" ? error.issues.map(({ path }) => path.join(".")) : error
          )
        expect(yield* issuesOf({ _tag: "Deposit", amount: -5 })).toEqual(["amount"])
        expect(yield* issuesOf({ _tag: "Deposit" })).toEqual(["amount"])
        expect(yield* issuesOf({ _tag: "Close" })).toEqual(["_tag"])
        for (const json of [null, undefined, 1, "Deposit", [], {}, { amount: 1 }, new Date(0), () => 1]) {
          expect(yield* issuesOf(json)).not.toHaveLength(0)
        }
        expect(yield* headOf(id)).toBe(1)
      })
    )

    it.effect(
      "evaluate: events have the metadata that was set around the command, unchanged, also under the key `aggregate`",
      () =>
        Effect.gen(function* () {
          const id = yield* Account.newId
          const metadata = { userId: "u1", aggregate: "the application's own", kind: "k", id: "i" }
          yield* Account.evaluate(id, new Deposit({ amount: 1 })).pipe(
            Effect.provideService(Aggregate.Metadata, metadata)
          )
          const [stored] = yield* Effect.flatMap(StoreAdapter.StoreAdapter, (adapter) =>
            adapter.getEvents(Account.streamId(id), 1)
          )
          expect(stored?.metadata).toEqual(metadata)
          expect(yield* Account.fetch(id)).toEqual({ owner: null, balance: 1 })
        })
    )

    // --- projections ---

    it.effect(
      "projections: each event of a command is projected, and a projection's failure is the command's failure",
      () =>
        Effect.gen(function* () {
          class Blocked extends Schema.TaggedError<Blocked>()("Blocked", {}) {}
          const log: Array<string> = []
          const Audit = Projection.make({
            name: "audit",
            events: Schema.Union(Deposited, Withdrawn),
            project: {
              Deposited: (event, { id, kind, sequence }) =>
                Effect.sync(() => log.push(`${kind} ${id} ${sequence} +${event.amount}`)),
              Withdrawn: (event) => (event.amount > 5 ? new Blocked() : Effect.void)
            }
          })
          const Audited = Aggregate.make("Account", { ...definition, projections: [Audit] })
          yield* Effect.gen(function* () {
            const id = yield* Audited.newId
            yield* Audited.evaluate(id, new Open({ owner: "ann" }))
            yield* Audited.evaluate(id, new Deposit({ amount: 10 }))
            yield* Audited.evaluate(id, new Withdraw({ amount: 1 }))
            expect(yield* Effect.flip(Audited.evaluate(id, new Withdraw({ amount: 6 })))).toEqual(new Blocked())
            expect(log).toEqual([`Account ${id} 2 +10`])
            expect(yield* headOf(id)).toBe(3)
          }).pipe(Effect.provide(Audited.layer))
        })
    )

    it.effect("projections: a command that a projection evaluates on another aggregate is part of the commit", () =>
      Effect.gen(function* () {
        const other = yield* Account.newId
        const Mirror = Projection.make({
          name: "mirror",
          events: Deposited,
          project: { Deposited: ({ amount }) => Account.evaluate(other, new Deposit({ amount })) }
        })
        const failing: Projection.Projection<"no"> = {
          name: "failing",
          project: ({ sequence }) => (sequence === 2 ? Effect.fail("no" as const) : Effect.void)
        }
        const Mirrored = Aggregate.make("Mirrored", { ...definition, projections: [Mirror, failing] })
        yield* Effect.gen(function* () {
          const id = yield* Account.newId
          yield* Mirrored.evaluate(id, new Deposit({ amount: 7 }))
          expect(yield* Account.fetch(other)).toEqual({ owner: null, balance: 7 })
          expect(yield* Effect.flip(Mirrored.evaluate(id, new Deposit({ amount: 8 })))).toBe("no")
          expect(yield* Account.fetch(other)).toEqual({ owner: null, balance: 7 })
        }).pipe(Effect.provide(Mirrored.layer))
      })
    )

    // --- reading ---

    it.scoped(
      "get, fetch: the state of the store, also after another node's command; the initial state before the first event",
      () =>
        Effect.gen(function* () {
          const id = yield* Account.newId
          expect(yield* Account.fetch(id)).toEqual(definition.initialState)
          expect(yield* Account.get(id)).toEqual(definition.initialState)
          const node = yield* aNode(Account.layer)
          yield* Effect.provide(Account.evaluate(id, new Deposit({ amount: 3 })), node)
          expect(yield* Account.fetch(id)).toEqual({ owner: null, balance: 3 })
        })
    )

    const replaysEach = <Name extends string>(aggregate: Depositable<Name>) =>
      Effect.gen(function* () {
        const id = yield* aggregate.newId
        for (const amount of Arr.range(1, 12)) yield* aggregate.evaluate(id, new Deposit({ amount }))
        for (const sequence of Arr.range(0, 12)) {
          expect(yield* aggregate.replay(id, sequence)).toEqual({
            owner: null,
            balance: (sequence * (sequence + 1)) / 2
          })
        }
        for (const sequence of [13, -1, 1.5, Number.NaN, 2 ** 31]) {
          expect(yield* Effect.flip(aggregate.replay(id, sequence))).toBeInstanceOf(StoreError.ValidationError)
        }
      })
    it.effect("replay: the state at every sequence, without snapshots", () => replaysEach(Account))
    it.effect("replay: the state at every sequence, with snapshots", () => replaysEach(SavingsAccount))

    it.effect("a stream longer than a page is read completely, in pages", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const { now } = yield* Timestamp.HybridClock
        const id = yield* Account.newId
        const events = yield* Effect.forEach(Arr.range(1, 5_501), (sequence) =>
          Effect.map(now, (timestamp) => ({
            timestamp,
            aggregateId: Account.streamId(id),
            sequence,
            type: "Deposited",
            version: 1,
            body: { amount: 1 },
            metadata: {}
          }))
        )
        yield* store.commitEvents(events)
        const steps: Array<string> = []
        let folded = 0
        const Watched = Aggregate.make("Account", {
          ...definition,
          evolve: {
            ...definition.evolve,
            Deposited: (state, event: Deposited) => {
              if ([0, 500, 3000, 5500].includes(folded++)) steps.push(`fold ${folded}`)
              return definition.evolve.Deposited(state, event)
            }
          }
        })
        const paged = yield* aNode(Watched.layer, {
          ...store,
          getEvents: (id, from, options) =>
            Effect.suspend(() => {
              steps.push(`read ${from} to ${options?.maxSequence}`)
              return store.getEvents(id, from, options)
            })
        })
        expect(yield* Effect.provide(Watched.fetch(id), paged)).toEqual({ owner: null, balance: 5_501 })
        // While one page is folded the next page is read, and no further one.
        expect(steps).toEqual([
          "read 1 to 500",
          "read 501 to 3000",
          "fold 1",
          "read 3001 to 5500",
          "fold 501",
          "read 5501 to 8000",
          "fold 3001",
          "fold 5501"
        ])
        expect(yield* Account.fetch(id)).toEqual({ owner: null, balance: 5_501 })
        for (const sequence of [499, 500, 501, 3_000, 3_001, 5_500, 5_501]) {
          expect(yield* Account.replay(id, sequence)).toEqual({ owner: null, balance: sequence })
        }
      }).pipe(Effect.scoped)
    )

    it.effect(
      "reading the next page is interrupted when the current page can't be decoded, or the caller is interrupted",
      () =>
        Effect.gen(function* () {
          const store = yield* StoreAdapter.StoreAdapter
          const id = yield* Account.newId
          const types = ["Closed", "Deposited"]
          for (const type of types) {
            const asked = yield* Deferred.make<void>()
            const gone = yield* Deferred.make<void>()
            const page = Arr.makeBy(500, (index) => ({
              timestamp: Timestamp.fromParts({ millis: index, counter: 0, node: 0n }),
              aggregateId: Account.streamId(id),
              sequence: index + 1,
              type,
              version: 1,
              body: { amount: 1 },
              metadata: {}
            }))
            const node = yield* aNode(Account.layer, {
              ...store,
              getEvents: (_, from) =>
                from === 1
                  ? Effect.succeed(page)
                  : Effect.onInterrupt(Effect.zipRight(Deferred.succeed(asked, undefined), Effect.never), () =>
                      Deferred.succeed(gone, undefined)
                    )
            })
            const loading = yield* Effect.fork(Effect.flip(Effect.provide(Account.fetch(id), node)))
            yield* Deferred.await(asked)
            if (type === "Closed") expect(yield* Fiber.join(loading)).toMatchObject({ reason: "UnreadableEvent", type })
            else yield* Fiber.interrupt(loading)
            expect(yield* Deferred.isDone(gone)).toBe(true)
          }
        }).pipe(Effect.scoped)
    )

    // --- unreadable events ---

    it.effect("an event of an unknown type, or with a wrong body, fails with aggregate, sequence and type", () =>
      Effect.gen(function* () {
        for (const [type, body] of [
          ["Closed", {}],
          ["Deposited", { amount: "ten" }],
          ["Deposited", {}]
        ] as const) {
          const id = yield* Account.newId
          yield* Account.evaluate(id, new Deposit({ amount: 1 }))
          const aggregateId = Account.streamId(id)
          yield* raw({ aggregateId, sequence: 2, type, body })
          const expected = { _tag: "StoreError", reason: "UnreadableEvent", aggregateId, sequence: 2, type }
          expect(yield* Effect.flip(Account.fetch(id))).toMatchObject(expected)
          expect(yield* Effect.flip(Account.evaluate(id, new Touch()))).toMatchObject(expected)
          expect((yield* Effect.flip(Account.fetch(id))).message).toContain(
            `event ${type} 2 of aggregate "Account/${id}": it can't be decoded`
          )
          expect(yield* Account.replay(id, 1)).toEqual({ owner: null, balance: 1 })
        }
      })
    )

    // --- snapshots ---

    it.effect(
      "snapshots: one is stored when the stream passes a multiple of snapshotEvery, and loading begins there",
      () =>
        Effect.gen(function* () {
          const store = yield* StoreAdapter.StoreAdapter
          const id = yield* SavingsAccount.newId
          const snapshotAt = Effect.map(
            store.getSnapshot(SavingsAccount.streamId(id), 0),
            Option.map(({ sequence }) => sequence)
          )
          for (const amount of Arr.range(1, 12)) {
            yield* SavingsAccount.evaluate(id, new Deposit({ amount }))
            const last = Math.floor(amount / 5) * 5
            expect(yield* snapshotAt).toEqual(last === 0 ? Option.none() : Option.some(last))
          }
          const reads: Array<number> = []
          const node = yield* aNode(SavingsAccount.layer, {
            ...store,
            getEvents: (aggregateId, min, options) => {
              reads.push(min)
              return store.getEvents(aggregateId, min, options)
            }
          })
          expect(yield* Effect.provide(SavingsAccount.fetch(id), node)).toEqual({ owner: null, balance: 78 })
          expect(reads).toEqual([10])
        }).pipe(Effect.scoped)
    )

    it.effect("snapshot: stores a snapshot immediately, but none of an aggregate without events", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const id = yield* Account.newId
        yield* Account.snapshot(id)
        expect(yield* store.getSnapshot(Account.streamId(id), 0)).toEqual(Option.none())
        yield* Account.evaluate(id, new Deposit({ amount: 4 }))
        yield* Account.snapshot(id)
        yield* Account.snapshot(id)
        expect(Option.getOrThrow(yield* store.getSnapshot(Account.streamId(id), 0))).toMatchObject({
          sequence: 1,
          body: { state: { balance: 4 } }
        })
        expect(yield* Account.evaluate(id, new Deposit({ amount: 1 }))).toMatchObject({
          sequence: 2,
          state: { balance: 5 }
        })
      })
    )

    it.effect("snapshots: one of another version or schema, and one that can't be decoded, is ignored", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const id = yield* Account.newId
        for (const amount of [1, 2, 3]) yield* Account.evaluate(id, new Deposit({ amount }))
        yield* Account.snapshot(id)
        const good = Option.getOrThrow(yield* store.getSnapshot(Account.streamId(id), 0))
        // It doubles deposits, so that a state folded by it differs from a state of the snapshot.
        const evolve = {
          ...definition.evolve,
          Deposited: (state: typeof definition.state.Type, event: Deposited) => ({
            ...state,
            balance: state.balance + 2 * event.amount
          })
        }
        const Trusting = Aggregate.make("Account", { ...definition, evolve })
        const Newer = Aggregate.make("Account", { ...definition, evolve, stateVersion: 2 })
        const Wider = Aggregate.make("Account", {
          ...definition,
          state: Schema.Struct({
            ...definition.state.fields,
            deposits: Schema.optionalWith(Schema.Number, { default: () => 0 })
          }),
          initialState: { owner: null, balance: 0, deposits: 0 },
          decide: { ...definition.decide, Open: () => Effect.succeed([]), Withdraw: () => Effect.succeed([]) },
          evolve: {
            Opened: (state) => state,
            Deposited: (state, event) => ({
              ...state,
              balance: state.balance + event.amount,
              deposits: state.deposits + 1
            }),
            Withdrawn: (state) => state
          }
        })
        expect(yield* Effect.provide(Trusting.fetch(id), Trusting.layer)).toEqual({ owner: null, balance: 6 })
        expect(yield* Effect.provide(Newer.fetch(id), Newer.layer)).toEqual({ owner: null, balance: 12 })
        expect(yield* Effect.provide(Wider.fetch(id), Wider.layer)).toEqual({ owner: null, balance: 6, deposits: 3 })
        const broken = { ...good, sequence: 4, body: { state: { balance: "six" } } }
        yield* raw({ aggregateId: Account.streamId(id), sequence: 4, type: "Deposited", body: { amount: 4 } })
        yield* store.commitSnapshot(broken)
        expect(yield* Account.fetch(id)).toEqual({ owner: null, balance: 10 })
      })
    )

    it.scoped("snapshots: a snapshot that can't be stored does not fail the command", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const node = yield* aNode(SavingsAccount.layer, {
          ...store,
          commitSnapshot: () => Effect.fail(failure("Exhausted"))
        })
        const id = yield* SavingsAccount.newId
        for (const amount of Arr.range(1, 6)) {
          expect(yield* Effect.provide(SavingsAccount.evaluate(id, new Deposit({ amount })), node)).toMatchObject({
            sequence: amount
          })
        }
        expect(yield* Effect.flip(Effect.provide(SavingsAccount.snapshot(id), node))).toMatchObject({
          reason: "Exhausted"
        })
      })
    )

    // --- time ---

    it.scoped("timestamps rise along an aggregate even if a node's clock is behind, also after a snapshot", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const id = yield* SavingsAccount.newId
        yield* TestClock.setTime(3_000_000)
        const nodes = yield* Effect.forEach([1n, 2n], (node) =>
          aNode(SavingsAccount.layer.pipe(Layer.provide(Timestamp.layerWith({ node }))))
        )
        for (const sequence of Arr.range(1, 12)) {
          // The second node's wall clock is 50 minutes behind.
          yield* TestClock.setTime(sequence % 2 === 0 ? 1000 : 3_000_000 + sequence)
          yield* Effect.provide(SavingsAccount.evaluate(id, new Deposit({ amount: 1 })), nodeAt(nodes, sequence))
        }
        const timestamps = (yield* store.getEvents(SavingsAccount.streamId(id), 1)).map(({ timestamp }) => timestamp)
        expect(timestamps).toEqual([...timestamps].sort())
        expect(new Set(timestamps).size).toBe(12)
      })
    )

    it.scoped("after an event that is too far in the future a command fails with ClockDrift, and reads succeed", () =>
      Effect.gen(function* () {
        const id = yield* Account.newId
        yield* TestClock.setTime(7_200_000)
        const [ahead, behind] = [
          yield* aNode(Account.layer),
          yield* aNode(Account.layer.pipe(Layer.provide(Timestamp.layerWith({}))))
        ]
        yield* Effect.provide(Account.evaluate(id, new Deposit({ amount: 1 })), ahead)
        yield* TestClock.setTime(0)
        expect(
          yield* Effect.flip(Effect.provide(Account.evaluate(id, new Deposit({ amount: 1 })), behind))
        ).toMatchObject({
          reason: "ClockDrift"
        })
        expect(yield* Effect.provide(Account.fetch(id), behind)).toEqual({ owner: null, balance: 1 })
        expect(yield* headOf(id)).toBe(1)
      })
    )

    if (name.includes("Postgres")) {
      it.effect("caller's transaction: a rollback discards all its commands, and a commit stores all of them", () =>
        Effect.gen(function* () {
          const sql = Option.getOrThrow(yield* Effect.serviceOption(SqlClient.SqlClient))
          const [a, b] = [yield* Account.newId, yield* SavingsAccount.newId]
          const transfer = Effect.gen(function* () {
            yield* Account.evaluate(a, new Deposit({ amount: 10 }))
            for (const amount of Arr.range(1, 6)) yield* SavingsAccount.evaluate(b, new Deposit({ amount }))
            expect(yield* Account.fetch(a)).toEqual({ owner: null, balance: 10 })
            expect(yield* Effect.flip(Account.evaluate(a, new Withdraw({ amount: 11 })))).toEqual(
              new InsufficientFunds({ balance: 10 })
            )
          })
          yield* Effect.flip(sql.withTransaction(Effect.zipRight(transfer, Effect.fail("no"))))
          expect([yield* headOf(a), yield* headOf(b, SavingsAccount)]).toEqual([0, 0])
          expect(yield* Account.fetch(a)).toEqual(definition.initialState)
          yield* sql.withTransaction(transfer)
          expect([yield* headOf(a), yield* headOf(b, SavingsAccount)]).toEqual([1, 6])
        })
      )

      it.effect("caller's transaction: it does not wait for the lock of a command that waits for the transaction", () =>
        Effect.gen(function* () {
          const sql = Option.getOrThrow(yield* Effect.serviceOption(SqlClient.SqlClient))
          const id = yield* Account.newId
          const go = yield* Deferred.make<void>()
          const outside = yield* Effect.fork(
            Effect.zipRight(Deferred.await(go), Account.evaluate(id, new Deposit({ amount: 2 })))
          )
          yield* sql.withTransaction(
            Effect.gen(function* () {
              yield* Account.evaluate(id, new Deposit({ amount: 1 }))
              // The fiber outside acquires the aggregate's lock, and waits in the database for this transaction.
              yield* Deferred.succeed(go, undefined)
              yield* Effect.repeatN(macrotask, 50)
              yield* Account.evaluate(id, new Deposit({ amount: 3 }))
            })
          )
          expect(yield* Fiber.join(outside)).toMatchObject({ sequence: 3 })
          expect(yield* Account.fetch(id)).toEqual({ owner: null, balance: 6 })
        })
      )

      it.effect("a projection writes its tables in the transaction of the events, by the SqlClient of the layer", () =>
        Effect.gen(function* () {
          const sql = Option.getOrThrow(yield* Effect.serviceOption(SqlClient.SqlClient))
          const table = sql(uniqueName("balances"))
          yield* sql`create table ${table} (id text primary key, balance int check (balance < 100))`
          const Balances = Projection.make({
            name: "balances",
            events: Deposited,
            project: {
              Deposited: ({ amount }, { id }) =>
                Effect.flatMap(
                  SqlClient.SqlClient,
                  (client) =>
                    client`insert into ${table} as t values (${id}, ${amount})
                    on conflict (id) do update set balance = t.balance + excluded.balance`
                )
            }
          })
          const Projected = Aggregate.make("Account", { ...definition, projections: [Balances] })
          yield* Effect.gen(function* () {
            const id = yield* Projected.newId
            yield* Effect.forEach(Arr.range(1, 10), () => Projected.evaluate(id, new Deposit({ amount: 9 })), {
              concurrency: 5
            })
            expect(yield* Effect.flip(Projected.evaluate(id, new Deposit({ amount: 10 })))).toMatchObject({
              _tag: "SqlError"
            })
            expect(yield* sql`select balance from ${table} where id = ${id}`).toEqual([{ balance: 90 }])
            expect(yield* headOf(id)).toBe(10)
          }).pipe(Effect.provide(Projected.layer.pipe(Layer.provide(Layer.succeed(SqlClient.SqlClient, sql)))))
        })
      )
    }
  })
}

it.effect("a state may be null, at first and later", () =>
  Effect.gen(function* () {
    class Set extends Schema.TaggedClass<Set>()("Set", { value: Schema.NullOr(Schema.String) }) {}
    const Cell = Aggregate.make("Cell", {
      state: Schema.NullOr(Schema.String),
      initialState: null,
      events: Set,
      commands: Set,
      decide: { Set: (command) => Effect.succeed([command]) },
      evolve: { Set: (_, { value }) => value },
      snapshotEvery: 1
    })
    yield* Effect.gen(function* () {
      expect((yield* Cell.evaluate("a", new Set({ value: "x" }))).state).toBe("x")
      expect((yield* Cell.evaluate("a", new Set({ value: null }))).state).toBe(null)
      expect(yield* Cell.fetch("a")).toBe(null)
    }).pipe(Effect.provide(Cell.layer.pipe(Layer.provide(MemoryStore.layer))))
  })
)

it("an aggregate without a handler for a command, or with an invalid number, is refused when it is made", () => {
  const { Touch: _, ...decide } = definition.decide
  // @ts-expect-error a command without a decision
  expect(() => Aggregate.make("Account", { ...definition, decide })).toThrow(
    "decide of Account has no handler for Touch"
  )
  const older = Schema.TaggedStruct("Deposited", { amount: Schema.Number })
  const newer = Schema.TaggedStruct("Deposited", { amount: Schema.Number, currency: Schema.optional(Schema.String) })
  const other = Schema.TaggedStruct("Deposited", { cents: Schema.Number })
  const make = (
    ...events:
      | readonly [typeof older, typeof newer]
      | readonly [typeof newer, typeof older]
      | readonly [typeof other, typeof newer]
  ) =>
    Aggregate.make("Account", {
      state: Schema.Number,
      initialState: 0,
      events: Schema.Union(...events),
      commands: Deposit,
      decide: { Deposit: () => Effect.succeed([]) },
      evolve: { Deposited: (balance) => balance }
    })
  expect(() => make(older, newer)).toThrow(`events of Account: ${older} comes before ${newer}`)
  make(newer, older)
  make(other, newer)
  for (const snapshotEvery of [0, -1, 1.5, Number.NaN]) {
    expect(() => Aggregate.make("Account", { ...definition, snapshotEvery })).toThrow("snapshotEvery")
  }
  // @ts-expect-error an event without a tag
  expect(() => Aggregate.make("Account", { ...definition, events: Schema.Struct({ a: Schema.String }) })).toThrow(
    "_tag"
  )
})

it("an initial state that the schema of the state can't encode is refused when the aggregate is made", () => {
  const rest = { events: Deposited, commands: Deposit, decide: { Deposit: () => Effect.succeed([]) } }
  const makeNumber = <I>(state: Schema.Schema<number, I>, initialState: number) =>
    Aggregate.make("Account", { ...rest, state, initialState, evolve: { Deposited: (balance) => balance } })
  expect(() => makeNumber(Schema.Int, 1.5)).toThrow(
    new TypeError(
      "initialState of Account can't be encoded by the schema of the state, so no snapshot of it could be stored: Int\n└─ Predicate refinement failure\n   └─ Expected an integer, actual 1.5"
    )
  )
  makeNumber(Schema.Int, 1)
  makeNumber(Schema.NumberFromString, 1)
  // A schema that must wait to encode can't be checked, and neither can one that is not defined yet.
  const waiting = Schema.transformOrFail(Schema.String, Schema.Number, {
    decode: () => Effect.as(Effect.yieldNow(), 1),
    encode: () => Effect.as(Effect.yieldNow(), "1")
  })
  makeNumber(waiting, 1)
  Aggregate.make("Account", {
    ...rest,
    state: Schema.Struct({ waits: Schema.Array(waiting) }),
    initialState: { waits: [1] },
    evolve: { Deposited: (state) => state }
  })
  makeNumber(
    Schema.suspend((): Schema.Schema<number> => later),
    1.5
  )
  const later = Schema.Int
})

// --- helpers ---

interface Depositable<Name extends string> {
  readonly newId: Effect.Effect<string>
  readonly evaluate: (id: string, command: Deposit) => Effect.Effect<unknown, unknown, Aggregate.Instance<Name>>
  readonly replay: (id: string, sequence: number) => Effect.Effect<unknown, unknown, Aggregate.Instance<Name>>
}

const nodeAt = <A>(nodes: ReadonlyArray<A>, index: number): A => {
  const node = nodes[index % nodes.length]
  if (node === undefined) throw new Error("the test has no nodes")
  return node
}

const headOf = (
  id: string,
  { streamId }: { readonly streamId: (id: string) => string } = Account
): Effect.Effect<number, unknown, StoreAdapter.StoreAdapter> =>
  Effect.flatMap(StoreAdapter.StoreAdapter, (store) =>
    Effect.map(store.getEvents(streamId(id), 1), (events) => events.length)
  )

/** Stores an event directly, not by an aggregate. */
const raw = (event: Pick<Event.Event, "aggregateId" | "sequence" | "type" | "body">) =>
  Effect.gen(function* () {
    const { now } = yield* Timestamp.HybridClock
    const store = yield* StoreAdapter.StoreAdapter
    yield* store.commitEvents([{ ...event, timestamp: yield* now, metadata: {} }])
  })
