/** The command batch, without a store: joining, committing, leaving, failures and limits. */
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Runtime from "effect/Runtime"
import type { Event } from "../src/Event.js"
import * as Batch from "../src/internal/aggregate/groupCommit.js"
import * as Timestamp from "../src/Timestamp.js"
import { macrotask } from "./nodes.js"

it.effect("commands that joined are committed together, and have the result after the commit", () =>
  Effect.gen(function* () {
    const { batch, commit, commits, go, log } = yield* makeCommit()
    const members = yield* Effect.forEach(Arr.range(1, 3), (number) => {
      Batch.joinBatch(batch, [event(number)], number)
      return Effect.fork(Effect.tap(awaiting(batch), () => log.push(`member ${number}`)))
    })
    Batch.joinWithoutEvents(batch)
    const refused = yield* Effect.fork(Effect.tap(awaiting(batch), () => log.push("refused")))
    expect(batch).toMatchObject({ root: 3, commands: 4, waiting: 4, phase: { _tag: "Open" } })
    commit()
    expect(batch.phase._tag).toBe("Closed")
    yield* settled
    expect(commits).toEqual([[1, 2, 3]])
    expect(log).toEqual([])
    yield* Deferred.succeed(go, Exit.void)
    yield* Effect.forEach([...members, refused], Fiber.join)
    expect(batch.phase._tag).toBe("Done")
    expect(log).toEqual(["committed", "member 1", "member 2", "member 3", "refused"])
  })
)

it.effect("a command that joins a closed batch waits for its result, and adds no event", () =>
  Effect.gen(function* () {
    const { batch, commit, commits, go } = yield* makeCommit()
    Batch.joinBatch(batch, [event(1)], 1)
    commit()
    yield* settled
    expect(Batch.isOpen(batch)).toBe(false)
    Batch.joinWithoutEvents(batch)
    const late = yield* Effect.fork(awaiting(batch))
    yield* settled
    expect(yield* Fiber.poll(late)).toEqual(Option.none())
    yield* Deferred.succeed(go, Exit.void)
    yield* Fiber.join(late)
    // It may join after the end, too.
    Batch.joinWithoutEvents(batch)
    yield* awaiting(batch)
    expect(commits).toEqual([[1]])
  })
)

it.effect("a member that is interrupted leaves, and the others get the result", () =>
  Effect.gen(function* () {
    const { batch, commit, go } = yield* makeCommit()
    const [first, second] = yield* Effect.forEach([1, 2] as const, (number) => {
      Batch.joinBatch(batch, [event(number)], number)
      return Effect.fork(awaiting(batch))
    })
    commit()
    yield* settled
    expect(Exit.isInterrupted(yield* Fiber.interrupt(Option.getOrThrow(Option.fromNullable(first))))).toBe(true)
    expect(batch.waiting).toBe(1)
    yield* Deferred.succeed(go, Exit.void)
    yield* Fiber.join(Option.getOrThrow(Option.fromNullable(second)))
  })
)

it.effect("the last member that leaves interrupts the commit, and waits for its end", () =>
  Effect.gen(function* () {
    const { batch, commit, log } = yield* makeCommit()
    const members = yield* Effect.forEach([1, 2], (number) => {
      Batch.joinBatch(batch, [event(number)], number)
      return Effect.fork(awaiting(batch))
    })
    commit()
    yield* settled
    for (const member of members) {
      expect(log).toEqual([])
      yield* Fiber.interrupt(member)
    }
    expect(log).toEqual(["commit interrupted", "interrupted"])
    expect(batch).toMatchObject({ waiting: 0, phase: { _tag: "Done" } })
  })
)

it.effect("a batch that all members left before its commit stores nothing", () =>
  Effect.gen(function* () {
    const { batch, commit, commits, log } = yield* makeCommit()
    Batch.joinBatch(batch, [event(1)], 1)
    const member = yield* Effect.fork(awaiting(batch))
    yield* settled
    yield* Fiber.interrupt(member)
    expect(Batch.isOpen(batch)).toBe(true)
    commit()
    yield* settled
    expect(commits).toEqual([])
    expect(log).toEqual(["interrupted"])
    // A command that was decided on it is decided again.
    Batch.joinWithoutEvents(batch)
    expect(yield* Effect.flip(awaiting(batch))).toBeInstanceOf(Batch.RetryOutsideBatch)
  })
)

it.effect("the failure of a batch of one command is the failure of that command", () =>
  Effect.gen(function* () {
    const { batch, commit, go } = yield* makeCommit()
    Batch.joinBatch(batch, [event(1)], 1)
    commit()
    yield* Deferred.succeed(go, Exit.fail("its own"))
    expect(yield* Effect.flip(awaiting(batch))).toBe("its own")
  })
)

it.effect("a failure by the fault of one command makes every command retry outside of a batch", () =>
  Effect.gen(function* () {
    const { batch, commit, go } = yield* makeCommit()
    const members = yield* Effect.forEach([1, 2], (number) => {
      Batch.joinBatch(batch, [event(number)], number)
      return Effect.fork(Effect.flip(awaiting(batch)))
    })
    Batch.joinWithoutEvents(batch)
    const refused = yield* Effect.fork(Effect.flip(awaiting(batch)))
    commit()
    yield* Deferred.succeed(go, Exit.fail("one's"))
    for (const member of [...members, refused]) {
      expect(yield* Fiber.join(member)).toBeInstanceOf(Batch.RetryOutsideBatch)
    }
  })
)

it.effect("a failure that concerns all commands is the failure of each", () =>
  Effect.gen(function* () {
    const { batch, commit, go } = yield* makeCommit()
    const members = yield* Effect.forEach([1, 2], (number) => {
      Batch.joinBatch(batch, [event(number)], number)
      return Effect.fork(Effect.flip(awaiting(batch)))
    })
    commit()
    yield* Deferred.succeed(go, Exit.fail("all"))
    for (const member of members) expect(yield* Fiber.join(member)).toBe("all")
  })
)

it("a batch is full from 1000 events on", () => {
  const batch = Batch.openBatch<number, string>(0)
  const events = Arr.makeBy(999, event)
  Batch.joinBatch(batch, events, 1)
  expect(Batch.isFull(batch)).toBe(false)
  Batch.joinBatch(batch, [event(1000)], 2)
  expect(Batch.isFull(batch)).toBe(true)
})

it.effect("a batch that stays open is closed after a delay, and one that was closed before is left alone", () =>
  Effect.gen(function* () {
    const [staying, closed] = [yield* makeCommit(), yield* makeCommit()]
    const closings: Array<string> = []
    for (const [name, { batch, commit }] of [["staying", staying] as const, ["closed", closed] as const]) {
      Batch.joinBatch(batch, [event(1)], 1)
      yield* Batch.closeAfterDelay(batch, () => {
        closings.push(name)
        commit()
      })
    }
    closed.commit()
    expect(Batch.isOpen(staying.batch)).toBe(true)
    yield* Effect.repeat(macrotask, { until: () => closings.length > 0 })
    yield* settled
    expect(closings).toEqual(["staying"])
    expect([staying.commits, closed.commits]).toEqual([[[1]], [[1]]])
  })
)

// --- what the cases are made of ---

/** An open batch, and its commit, which ends when the test says how. */
const makeCommit = () =>
  Effect.gen(function* () {
    const runFork = Runtime.runFork(yield* Effect.runtime())
    const go = yield* Deferred.make<Exit.Exit<void, string>>()
    const batch = Batch.openBatch<number, string>(0)
    const commits: Array<ReadonlyArray<number>> = []
    const log: Array<string> = []
    const commit = () =>
      Batch.commitBatch(batch, {
        commit: (events) =>
          Effect.suspend(() => {
            commits.push(events.map(({ sequence }) => sequence))
            return Effect.onInterrupt(Effect.flatten(Deferred.await(go)), () =>
              Effect.sync(() => log.push("commit interrupted"))
            )
          }),
        onCommitted: (exit) =>
          Effect.sync(() => {
            if (Exit.isSuccess(exit)) log.push("committed")
            else if (Exit.isInterrupted(exit)) log.push("interrupted")
          }),
        fork: (effect) => runFork(Effect.uninterruptible(effect))
      })
    return { batch, commit, commits, go, log }
  })

/** Waits as a member does, with `all` as the failure that concerns all. */
const awaiting = (batch: Batch.CommandBatch<number, string>) =>
  Effect.uninterruptibleMask((restore) =>
    Batch.awaitBatch(batch, (cause) => Option.contains(Cause.failureOption(cause), "all"), restore)
  )

const event = (sequence: number): Event => ({
  timestamp: Timestamp.fromParts({ millis: sequence, counter: 0, node: 0n }),
  aggregateId: "Account/1",
  sequence,
  type: "Deposited",
  version: 1,
  body: {},
  metadata: {}
})

/** Lets every fiber of the test run until it waits. */
const settled = Effect.repeatN(macrotask, 5)
