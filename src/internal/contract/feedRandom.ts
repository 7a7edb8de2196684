/**
 * Random programs of overlapping commits, while readers follow the feed. The model is a log in which each stream has
 * all its events, once and in sequence. Every reader must have seen this log in one order.
 */
import { expect } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import * as Fiber from "effect/Fiber"
import type { FeedEvent, Position } from "../../EventFeed.js"
import type { Projection } from "../../Projection.js"
import { everyCase, newId, projecting, stream, test } from "./case.js"
import {
  again,
  at,
  commitNext,
  committedOf,
  eventsOf,
  expectInSequence,
  expectRising,
  type FeedCase,
  type FeedSettings,
  follow,
  macrotasks,
  ports,
  readOn
} from "./feedCase.js"

export const feedRandomCases = (settings: FeedSettings): ReadonlyArray<FeedCase> => {
  // Fewer runs, because a program has many commits.
  const runs = Math.max(Math.ceil(settings.runs / 10), 1)
  return [
    test("random programs: readers that follow positions while commits overlap skip no event and see none twice", () =>
      everyCase(settings, programs(["commits", "projects", "fails"]), bounded(), runs)),

    test("order under overlapping transactions: random programs whose transactions continue with other aggregates", () =>
      everyCase(settings, programs(["commits", "projects", "fails", "continues", "continues"]), bounded(), runs))
  ]
}

// --- programs ---

const aggregates = 4

type Kind = "commits" | "projects" | "fails" | "continues"

interface Commit {
  readonly kind: Kind
  readonly aggregates: ReadonlyArray<number>
  readonly length: number
  /** For how many macrotasks its transaction stays open. */
  readonly pause: number
  /**
   * The aggregates that the transaction writes to next: later ones than its own, so that transactions do not deadlock.
   */
  readonly next: ReadonlyArray<number>
}

interface Program {
  readonly writers: ReadonlyArray<ReadonlyArray<Commit>>
  /** The limits of the readers' pages. */
  readonly readers: ReadonlyArray<number>
}

const programs = (kinds: ReadonlyArray<Kind>): FastCheck.Arbitrary<Program> => {
  const aggregate = FastCheck.nat({ max: aggregates - 1 })
  const commit: FastCheck.Arbitrary<Commit> = FastCheck.record({
    kind: FastCheck.constantFrom(...kinds),
    aggregates: FastCheck.uniqueArray(aggregate, { minLength: 1, maxLength: 2 }),
    length: FastCheck.integer({ min: 1, max: 3 }),
    pause: FastCheck.constantFrom(0, 1, 3, 10, 30, 100),
    next: FastCheck.uniqueArray(aggregate, { minLength: 1, maxLength: 3 })
  }).map((step) => ({
    ...step,
    next: step.next.filter((one) => one > Math.max(...step.aggregates)).toSorted((one, other) => one - other)
  }))
  return FastCheck.record({
    writers: FastCheck.array(FastCheck.array(commit, { minLength: 1, maxLength: 4 }), { minLength: 2, maxLength: 4 }),
    readers: FastCheck.array(FastCheck.constantFrom(1, 2, 5, 1000), { minLength: 1, maxLength: 3 })
  })
}

// --- running ---

/** In seconds: the limit of one program, and the limit of the search for a smaller program that fails too. */
const [timeLimit, shrinking] = [20, 10]

/** The check of a program, with a limit that lets the case fail with its seed before the timeout of the case. */
const bounded = () => {
  let failedAt: number | undefined
  return (program: Program) =>
    Effect.flatMap(Clock.currentTimeMillis, (now) =>
      failedAt !== undefined && now - failedAt > shrinking * 1000
        ? Effect.void
        : check(program).pipe(
            Effect.timeoutFail({
              duration: `${timeLimit} seconds`,
              onTimeout: () => "a commit or a reader of the program has not ended"
            }),
            Effect.tapErrorCause(() => Effect.sync(() => (failedAt ??= now)))
          )
    )
}

const check = ({ readers, writers }: Program) =>
  Effect.gen(function* () {
    const { feed, store } = yield* ports
    const after = yield* feed.head
    const ids = Arr.makeBy(aggregates, newId).toSorted()
    const end = newId()
    let written = Number.POSITIVE_INFINITY
    const isEnough = (seen: ReadonlyArray<FeedEvent>) => eventsOf(seen, [...ids, end]).length >= written
    const reading = yield* Effect.forEach(readers, (limit) => Effect.fork(follow(feed, { after, limit }, isEnough)))
    const heads: Array<Position> = []

    const idOf = (aggregate: number) => at(ids, aggregate)
    const projectionsOf = ({ kind, next, pause }: Commit): ReadonlyArray<Projection<unknown>> => {
      const paused = pause === 0 ? Effect.void : macrotasks(pause)
      switch (kind) {
        case "commits":
          return []
        case "projects":
          return [{ name: "pausing", project: () => paused }]
        case "fails":
          return [projecting(Effect.zipRight(paused, Effect.fail("as the program wants it")))]
        case "continues": {
          let first = true
          return [
            projecting(
              Effect.suspend(() => {
                if (!first) return Effect.void
                first = false
                return Effect.zipRight(
                  paused,
                  Effect.forEach(next, (aggregate) => commitNext(store, idOf(aggregate)))
                )
              })
            )
          ]
        }
      }
    }
    const commit = (step: Commit) =>
      Effect.suspend(() =>
        Effect.flatMap(
          Effect.forEach(step.aggregates, (aggregate) =>
            Effect.flatMap(store.getEvents(idOf(aggregate), 0), ({ length }) =>
              stream(idOf(aggregate), length + 1, step.length)
            )
          ),
          (events) => store.commitAll(events.flat(), projectionsOf(step))
        )
      )
    yield* Effect.forEach(
      writers,
      (steps) =>
        Effect.forEach(steps, (step) =>
          again(commit(step)).pipe(
            Effect.catchIf(
              (error) => error === "as the program wants it",
              () => Effect.void
            ),
            Effect.zipRight(Effect.map(feed.head, (head) => heads.push(head)))
          )
        ),
      { concurrency: "unbounded", discard: true }
    )

    const streams = yield* Effect.forEach(ids, (id) => store.getEvents(id, 0))
    const last = yield* stream(end, 1, 1)
    written = streams.flat().length + 1
    yield* store.commitEvents(last)
    for (const [index, reader] of reading.entries()) {
      const seen = eventsOf(yield* Fiber.join(reader), [...ids, end])
      const all = eventsOf(yield* readOn(feed, { after, limit: 7 }), [...ids, end])
      // The feed still shows the events in the order that the reader saw, and no other event before them.
      expect(seen, `reader ${index} has seen what the feed shows`).toEqual(all)
      expectRising(all)
      expectInSequence(all)
      for (const [which, id] of [...ids, end].entries()) {
        expect(eventsOf(all, [id]).map(committedOf)).toEqual(streams[which] ?? last)
      }
    }
    const positions = new Set((yield* readOn(feed, { after })).map(({ position }) => position))
    for (const head of heads) expect(head === after || positions.has(head), "a head is where an event is").toBe(true)
  })
