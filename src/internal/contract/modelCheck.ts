/**
 * Random programs of commits, snapshots, reads, projections, transactions and interruptions. Each runs on a store and
 * on the model, which must agree after every step.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type { Event } from "../../Event.js"
import type { Projection } from "../../Projection.js"
import { StoreAdapter, type StoreAdapterService } from "../../StoreAdapter.js"
import { RetryCommand } from "../../StoreError.js"
import {
  type Case,
  event,
  everyCase,
  macrotask,
  newId,
  noSqlClient,
  passing,
  type Settings,
  snapshot,
  test
} from "./case.js"
import * as Model from "./model.js"

export const modelCases = (settings: Settings): ReadonlyArray<Case> => [
  test("model: random programs have the results of the model, step by step", () =>
    Effect.flatMap(StoreAdapter, (store) =>
      everyCase(settings, programs(settings), (program) => new Run(store).program(program))
    ))
]

// --- programs ---

type Step = Commit | Again | TakeSnapshot | Read | Concurrent | Transaction

interface Commit {
  readonly _tag: "Commit"
  readonly parts: ReadonlyArray<Part>
  readonly projections: ReadonlyArray<Ending>
  /** The commit is interrupted after this number of steps of the scheduler. */
  readonly interruptAfter: number | undefined
}

/** Events of one aggregate. */
interface Part {
  readonly aggregate: number
  /** The distance of the first sequence from the next one: 0 fits, a lower one is taken, a higher one leaves a gap. */
  readonly offset: number
  readonly length: number
}

/** How a projection ends. */
type Ending = "succeeds" | "fails" | "dies" | "commits" | "is refused"

/** The events of an earlier commit again, unchanged, or with one more event, or with another event at one place. */
interface Again {
  readonly _tag: "Again"
  readonly which: number
  readonly change: "none" | "one more" | number
  readonly projections: ReadonlyArray<Ending>
}

interface TakeSnapshot {
  readonly _tag: "TakeSnapshot"
  readonly aggregate: number
  readonly sequence: number
}

interface Read {
  readonly _tag: "Read"
  readonly aggregate: number
  readonly min: number
  readonly max: number | undefined
}

interface Concurrent {
  readonly _tag: "Concurrent"
  readonly commits: ReadonlyArray<Commit>
}

/** A transaction of the caller. */
interface Transaction {
  readonly _tag: "Transaction"
  readonly steps: ReadonlyArray<Commit | Again | TakeSnapshot | Read>
  readonly commits: boolean
}

const aggregates = 3

const programs = (settings: Settings): FastCheck.Arbitrary<ReadonlyArray<Step>> => {
  const aggregate = FastCheck.nat({ max: aggregates - 1 })
  const endings = (alone: boolean) =>
    FastCheck.oneof(
      { weight: 3, arbitrary: FastCheck.constant<ReadonlyArray<Ending>>([]) },
      {
        weight: 2,
        arbitrary: FastCheck.array(
          FastCheck.constantFrom<Ending>(
            "succeeds",
            "succeeds",
            "fails",
            "dies",
            ...(alone ? [] : (["commits", "is refused"] as const))
          ),
          { minLength: 1, maxLength: 2 }
        )
      }
    )
  const parts = FastCheck.uniqueArray(
    FastCheck.record({
      aggregate,
      offset: FastCheck.constantFrom(0, 0, 0, 0, 0, -1, -2, 1),
      length: FastCheck.integer({ min: 1, max: 3 })
    }),
    { minLength: 1, maxLength: aggregates, selector: (part) => part.aggregate }
  )
  const commit = (
    interruptAfter: FastCheck.Arbitrary<number | undefined>,
    projections: FastCheck.Arbitrary<ReadonlyArray<Ending>>
  ): FastCheck.Arbitrary<Commit> =>
    FastCheck.record({ _tag: FastCheck.constant("Commit"), parts, projections, interruptAfter })
  const uninterrupted = commit(FastCheck.constant(undefined), endings(false))
  const interrupted = commit(FastCheck.integer({ min: 0, max: 30 }), endings(false))
  // Projections of concurrent commits do not commit, because all of them commit to one stream and would conflict.
  const oneOfSeveral = commit(FastCheck.constant(undefined), endings(true))
  const again: FastCheck.Arbitrary<Again> = FastCheck.record({
    _tag: FastCheck.constant("Again"),
    which: FastCheck.nat({ max: 20 }),
    change: FastCheck.oneof(FastCheck.constantFrom("none" as const, "one more" as const), FastCheck.nat({ max: 8 })),
    projections: endings(false)
  })
  const takeSnapshot: FastCheck.Arbitrary<TakeSnapshot> = FastCheck.record({
    _tag: FastCheck.constant("TakeSnapshot"),
    aggregate,
    sequence: FastCheck.integer({ min: 1, max: 6 })
  })
  const read: FastCheck.Arbitrary<Read> = FastCheck.record({
    _tag: FastCheck.constant("Read"),
    aggregate,
    min: FastCheck.nat({ max: 6 }),
    max: FastCheck.option(FastCheck.nat({ max: 8 }), { nil: undefined })
  })
  const concurrent: FastCheck.Arbitrary<Concurrent> = FastCheck.record({
    _tag: FastCheck.constant("Concurrent"),
    commits: FastCheck.array(oneOfSeveral, { minLength: 2, maxLength: 3 })
  })
  const transaction: FastCheck.Arbitrary<Transaction> = FastCheck.record({
    _tag: FastCheck.constant("Transaction"),
    steps: FastCheck.array(FastCheck.oneof(uninterrupted, again, takeSnapshot, read), { maxLength: 4 }),
    commits: FastCheck.boolean()
  })
  const steps: Array<FastCheck.WeightedArbitrary<Step>> = [
    { weight: 5, arbitrary: uninterrupted },
    { weight: 2, arbitrary: interrupted },
    { weight: 2, arbitrary: again },
    { weight: 2, arbitrary: takeSnapshot },
    { weight: 2, arbitrary: read },
    { weight: 2, arbitrary: concurrent },
    ...(settings.lacks.includes("callerTransaction") ? [] : [{ weight: 2, arbitrary: transaction }])
  ]
  return FastCheck.array(FastCheck.oneof(...steps), { minLength: 1, maxLength: 12 })
}

// --- running ---

/** One program, on aggregates of its own. */
class Run {
  private readonly ids = Arr.makeBy(aggregates, newId)
  /** The stream that projections commit to. */
  private readonly side = newId()
  private model = Model.empty
  /** All commits so far, for the steps that commit again. */
  private readonly tried: Array<ReadonlyArray<Event>> = []

  constructor(private readonly store: StoreAdapterService) {}

  program(steps: ReadonlyArray<Step>): Effect.Effect<void, unknown> {
    return Effect.zipRight(
      Effect.forEach(steps, (step) => this.step(step), { discard: true }),
      this.agree
    )
  }

  private step(step: Step): Effect.Effect<void, unknown> {
    switch (step._tag) {
      case "Commit":
        return Effect.flatMap(this.eventsOf(step), (events) =>
          step.interruptAfter === undefined
            ? this.commit(events, step.projections)
            : this.interrupted(events, step.projections, step.interruptAfter)
        )
      case "Again":
        return this.again(step)
      case "TakeSnapshot":
        return Effect.flatMap(snapshot(this.id(step.aggregate), step.sequence), (taken) =>
          Effect.map(this.store.commitSnapshot(taken), () => {
            this.model = Model.commitSnapshot(this.model, taken)
          })
        )
      case "Read":
        return this.read(step)
      case "Concurrent":
        return this.concurrent(step)
      case "Transaction":
        return this.transaction(step)
    }
  }

  private commit(events: ReadonlyArray<Event>, endings: ReadonlyArray<Ending>): Effect.Effect<void, unknown> {
    return Effect.gen(this, function* () {
      const exit = yield* this.run(events, endings)
      this.model = this.explained(events, endings, exit)
    })
  }

  private again({ change, projections, which }: Again): Effect.Effect<void, unknown> {
    return Effect.gen(this, function* () {
      const events = this.tried[which % Math.max(this.tried.length, 1)]
      const last = events?.at(-1)
      if (events === undefined || last === undefined) return
      if (change === "none") return yield* this.commit(events, projections)
      if (change === "one more") {
        return yield* this.commit([...events, yield* event(last.aggregateId, last.sequence + 1)], projections)
      }
      const place = change % events.length
      const { aggregateId, sequence } = events[place] ?? last
      yield* this.commit(Arr.replace(events, place, yield* event(aggregateId, sequence)), projections)
    })
  }

  private interrupted(
    events: ReadonlyArray<Event>,
    endings: ReadonlyArray<Ending>,
    steps: number
  ): Effect.Effect<void, unknown> {
    return Effect.gen(this, function* () {
      const fiber = yield* Effect.fork(this.run(events, endings))
      for (let step = 0; step < steps; step++) yield* step < 15 ? Effect.yieldNow() : macrotask
      const exit = yield* Fiber.interrupt(fiber)
      if (Exit.isSuccess(exit)) {
        // The commit ended before the interruption.
        this.model = this.explained(events, endings, exit.value)
      } else {
        // The commit is stored as a whole or not at all.
        const [, after] = expected(this.model, this.side, events, endings)
        if (yield* this.holds(after)) this.model = after
      }
      yield* this.agree
    })
  }

  private concurrent({ commits }: Concurrent): Effect.Effect<void, unknown> {
    return Effect.gen(this, function* () {
      const all = yield* Effect.forEach(commits, (one) => this.eventsOf(one))
      const exits = yield* Effect.forEach(commits, (one, index) => this.run(all[index] ?? [], one.projections), {
        concurrency: "unbounded"
      })
      // The results must be those of some order of the commits, one after the other.
      for (const order of permutations(Arr.makeBy(commits.length, (index) => index))) {
        let model = this.model
        let explains = true
        for (const index of order) {
          const [events, exit] = [all[index] ?? [], exits[index]]
          const [verdict, after] = expected(model, this.side, events, commits[index]?.projections ?? [])
          explains &&= exit !== undefined && told(exit)._tag === verdict._tag
          model = after
        }
        if (explains && (yield* this.holds(model))) {
          this.model = model
          return
        }
      }
      expect.fail(
        `no order explains the results of concurrent commits: ${exits.map((exit) => told(exit)._tag).join(", ")}`
      )
    })
  }

  private transaction({ commits, steps }: Transaction): Effect.Effect<void, unknown> {
    return Effect.gen(this, function* () {
      const sql = Option.getOrThrowWith(yield* Effect.serviceOption(SqlClient.SqlClient), noSqlClient)
      const before = this.model
      const all = Effect.forEach(steps, (step) => this.step(step), { discard: true })
      const exit = yield* Effect.exit(
        sql.withTransaction(commits ? all : Effect.zipRight(all, Effect.fail("rolled back")))
      )
      if (commits) yield* exit
      else {
        expect(Exit.mapError(exit, String)).toEqual(Exit.fail("rolled back"))
        this.model = before
      }
      yield* this.agree
    })
  }

  private read({ aggregate, max, min }: Read): Effect.Effect<void, unknown> {
    return Effect.gen(this, function* () {
      const id = this.id(aggregate)
      const options = max === undefined ? undefined : { maxSequence: max }
      const within = ({ sequence }: { readonly sequence: number }) =>
        sequence >= min && sequence <= (max ?? Number.POSITIVE_INFINITY)
      expect(yield* this.store.getEvents(id, min, options)).toEqual(Model.streamOf(this.model, id).filter(within))
      expect(yield* this.store.getSnapshot(id, min, options)).toEqual(
        Option.filter(Option.fromNullable(this.model.snapshots.get(id)), within)
      )
    })
  }

  /** The store holds what the model holds. */
  private get agree(): Effect.Effect<void, unknown> {
    return Effect.forEach(
      [...this.ids, this.side],
      (id) =>
        Effect.gen(this, function* () {
          expect(yield* this.store.getEvents(id, 0)).toEqual(Model.streamOf(this.model, id))
          expect(yield* this.store.getSnapshot(id, 0)).toEqual(Option.fromNullable(this.model.snapshots.get(id)))
        }),
      { discard: true }
    )
  }

  /** Whether the store's streams are those of the model, to the timestamp. */
  private holds(model: Model.Model): Effect.Effect<boolean, unknown> {
    const timestamps = (events: ReadonlyArray<Event>) => events.map(({ timestamp }) => timestamp).join()
    return Effect.every([...this.ids, this.side], (id) =>
      Effect.map(this.store.getEvents(id, 0), (events) => timestamps(events) === timestamps(Model.streamOf(model, id)))
    )
  }

  private id(aggregate: number): string {
    return this.ids[aggregate] ?? this.side
  }

  private eventsOf({ parts }: Commit): Effect.Effect<ReadonlyArray<Event>> {
    return Effect.map(
      Effect.forEach(parts, ({ aggregate, length, offset }) => {
        const id = this.id(aggregate)
        const first = Math.max(Model.streamOf(this.model, id).length + 1 + offset, 1)
        return Effect.forEach(
          Arr.makeBy(length, (index) => first + index),
          (sequence) => event(id, sequence)
        )
      }),
      (events) => {
        this.tried.push(events.flat())
        return events.flat()
      }
    )
  }

  /** The commit as the store takes it. */
  private run(events: ReadonlyArray<Event>, endings: ReadonlyArray<Ending>): Effect.Effect<Exit.Exit<void, unknown>> {
    return Effect.exit(
      endings.length === 0
        ? this.store.commitEvents(events)
        : this.store.commitAll(
            events,
            endings.map((ending) => this.projection(ending))
          )
    )
  }

  private projection(ending: Ending): Projection<unknown> {
    switch (ending) {
      case "succeeds":
        return passing
      case "fails":
        return { name: ending, project: () => Effect.fail(failed) }
      case "dies":
        return { name: ending, project: () => Effect.die(died) }
      case "commits":
        return {
          name: ending,
          project: (one) =>
            Effect.flatMap(this.store.getEvents(this.side, 0), ({ length }) =>
              this.store.commitEvents([mirrored(this.side, length + 1, one)])
            )
        }
      case "is refused":
        return {
          name: ending,
          project: (one) => Effect.ignore(this.store.commitEvents([mirrored(this.side, 1000, one)]))
        }
    }
  }

  /** The model after a commit, whose result must be the expected one. */
  private explained(
    events: ReadonlyArray<Event>,
    endings: ReadonlyArray<Ending>,
    exit: Exit.Exit<void, unknown>
  ): Model.Model {
    const [verdict, after] = expected(this.model, this.side, events, endings)
    const stored = events.filter((one) => Model.isStored(this.model, one)).length
    // A store may name any event of a commit that mixes stored and new events.
    if (stored > 0 && stored < events.length) expect(told(exit)._tag).toBe(verdict._tag)
    else expect(told(exit)).toEqual(verdict)
    return after
  }
}

// --- results ---

const failed = "failed as the program wants it"
const died = "died as the program wants it"

type AppendResult =
  | { readonly _tag: "Succeeded" | "Failed" | "Died" }
  | { readonly _tag: "Refused"; readonly aggregateId: string; readonly sequence: number }
  | { readonly _tag: "Unexpected"; readonly why: string }

const expected = (
  model: Model.Model,
  side: string,
  events: ReadonlyArray<Event>,
  endings: ReadonlyArray<Ending>
): readonly [AppendResult, Model.Model] => {
  const [outcome, committed] = Model.commit(model, events)
  if (outcome._tag === "Refused") return [outcome, model]
  let after = committed
  if (outcome._tag === "Written") {
    for (const ending of endings) {
      if (ending === "fails") return [{ _tag: "Failed" }, model]
      if (ending === "dies") return [{ _tag: "Died" }, model]
      if (ending === "commits") {
        for (const one of events) {
          after = Model.commit(after, [mirrored(side, Model.streamOf(after, side).length + 1, one)])[1]
        }
      }
    }
  }
  return [{ _tag: "Succeeded" }, after]
}

const told = (exit: Exit.Exit<void, unknown>): AppendResult => {
  if (Exit.isSuccess(exit)) return { _tag: "Succeeded" }
  const failure = Option.getOrUndefined(Cause.failureOption(exit.cause))
  if (failure instanceof RetryCommand) {
    return { _tag: "Refused", aggregateId: failure.aggregateId, sequence: failure.sequence }
  }
  if (failure === failed) return { _tag: "Failed" }
  if (Option.contains(Cause.dieOption(exit.cause), died)) return { _tag: "Died" }
  return { _tag: "Unexpected", why: Cause.pretty(exit.cause) }
}

/** The event, moved to the stream that projections commit to. */
const mirrored = (side: string, sequence: number, one: Event): Event => ({ ...one, aggregateId: side, sequence })

const permutations = (items: ReadonlyArray<number>): ReadonlyArray<ReadonlyArray<number>> =>
  items.length < 2
    ? [items]
    : items.flatMap((first) => permutations(items.filter((item) => item !== first)).map((rest) => [first, ...rest]))
