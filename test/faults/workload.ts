/** Clients on several nodes that move money between accounts, and record their commands and the answers. */
import { PgClient } from "@effect/sql-pg"
import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { Aggregate, type Event, SqlStore, StoreAdapter, StoreError, Timestamp } from "effect-maestro"
import {
  Balances,
  Deposit,
  Exchange,
  Felt,
  InsufficientFunds,
  Sale,
  Sold,
  slotCount,
  Tenant,
  Trade,
  Wallet,
  Withdraw
} from "./domain.js"
import type { Answer, Attempt, Outcome } from "./history.js"
import { drawExchanges, drawTransfer } from "./transfers.js"
import { Abandoned, command, inTransaction, pause, type Services, unprojected, type Work } from "./work.js"

// --- nodes ---

/** A process of its own, as far as the store can tell: its own pool, its own clock, its own instance of the aggregate. */
export interface Node {
  readonly name: string
  readonly services: Context.Context<Services>
  /** How far the node's clock is from the true time, in milliseconds. */
  skew: number
  readonly clock: Clock.Clock
}

export const connections = 4

/** Makes another store of a store, to see whether what is wrong with it is found. */
export type Breaking = (store: StoreAdapter.StoreAdapterService) => StoreAdapter.StoreAdapterService

export const makeNode = (
  name: string,
  id: number,
  url: string,
  breaking: Breaking = (store) => store,
  felt: Felt["Type"] = { tenants: 0 }
): Effect.Effect<Node, unknown, Scope.Scope> =>
  Effect.gen(function* () {
    const broken = Layer.effect(StoreAdapter.StoreAdapter, Effect.map(StoreAdapter.StoreAdapter, breaking))
    const services = yield* Layer.build(
      Layer.merge(Sale.layer, Trade.layer).pipe(
        Layer.provideMerge(Wallet.layer),
        Layer.provideMerge(broken),
        Layer.provideMerge(SqlStore.layer),
        Layer.provideMerge(
          PgClient.layer({ url: Redacted.make(url), maxConnections: connections, connectTimeout: "2 seconds" })
        ),
        Layer.provideMerge(Timestamp.layerWith({ node: BigInt(id) })),
        Layer.provideMerge(Layer.succeed(Felt, felt))
      )
    )
    const real = Clock.make()
    const node: Node = { name, services, skew: 0, clock: real }
    // All else is the real clock's; what it has is on its prototype.
    const skewed: Clock.Clock = Object.assign(Object.create(real), {
      unsafeCurrentTimeMillis: () => real.unsafeCurrentTimeMillis() + node.skew,
      currentTimeMillis: Effect.sync(() => real.unsafeCurrentTimeMillis() + node.skew)
    })
    return Object.assign(node, { clock: skewed })
  })

// --- clients ---

/** What the clients have in common: the accounts, and the record. */
export class World {
  readonly attempts: Array<Attempt> = []
  /** Contended by all. */
  readonly accounts = Arr.makeBy(6, (index) => `account-${index}`)
  /** Where a client can ask. */
  nodes: ReadonlyArray<Node> = []
  /** What projections felt of other callers than their own. */
  readonly felt: Felt["Type"] = { tenants: 0 }
  acknowledged = 0
  open = 0
  private ticks = 0
  private numbers = 0
  private waiting: Array<Deferred.Deferred<void>> = []
  stopped = false

  /**
   * With `calm`, no fault of this run breaks a connection or a server. With `deadlocks`, all commands are exchanges. Without `lists`, no
   * commands are evaluated in lists.
   */
  constructor(
    readonly calm = false,
    readonly deadlocks = false,
    readonly lists = true
  ) {}

  /** Interrupts each attempt after so many steps; never where there is none. */
  interruptAfter: (() => number) | undefined

  tick(): number {
    return ++this.ticks
  }

  nextId(prefix: string): string {
    return `${prefix}-${++this.numbers}`
  }

  record(attempt: Attempt): void {
    this.attempts.push(attempt)
    if (attempt.outcome._tag === "Open") this.open++
    if (attempt.outcome._tag === "Acknowledged") {
      this.acknowledged++
      for (const deferred of this.waiting.splice(0)) Deferred.unsafeDone(deferred, Effect.void)
    }
  }

  /** Waits for a command that is acknowledged from here on. */
  get nextAcknowledgement(): Effect.Effect<void> {
    return Effect.flatMap(Deferred.make<void>(), (deferred) => {
      this.waiting.push(deferred)
      return Deferred.await(deferred)
    })
  }
}

/** One client: one attempt after the other, until the world stops. */
export const client = (world: World, node: Node): Effect.Effect<void> =>
  Effect.gen(function* () {
    while (!world.stopped) {
      yield* attempt(world, node)
      // Also where the store answers without a turn of the event loop.
      yield* Effect.sleep("1 millis")
    }
  }).pipe(Effect.withClock(node.clock))

const attempt = (world: World, node: Node): Effect.Effect<void> =>
  Effect.gen(function* () {
    const id = world.nextId(node.name)
    const work = yield* world.deadlocks ? drawExchange(id) : drawWork(world, id)
    const began = world.tick()
    const runningOn = ({ clock, services }: Node) =>
      work.run.pipe(
        Effect.provideService(Aggregate.Metadata, { attempt: id }),
        Effect.provideService(Tenant, id),
        Effect.provide(services),
        Effect.withClock(clock)
      )
    const isFelt = (exit: Exit.Exit<unknown, unknown>) =>
      Exit.isFailure(exit) && (world.deadlocks || isOfAnother(exit.cause, world.calm))
    const steps = world.interruptAfter?.() ?? Number.POSITIVE_INFINITY
    const isWhole = steps === Number.POSITIVE_INFINITY
    const first = runningOn(node)
    let exit = yield* isWhole ? Effect.exit(first) : interruptedAfter(first, steps)
    let outcome = outcomeOf(exit)
    let felt = isWhole && isFelt(exit)
    if (work.repeatable && outcome._tag === "Open") {
      // Another failure says nothing of the first time. The client may ask another node.
      for (let time = 0; time < 200 && outcome._tag !== "Acknowledged" && outcome._tag !== "Refused"; time++) {
        yield* Effect.sleep("10 millis")
        exit = yield* Effect.exit(runningOn(yield* Effect.orDie(Random.choice(world.nodes))))
        felt ||= isFelt(exit)
        outcome = outcomeOf(exit)
      }
      if (outcome._tag === "Failed") outcome = { _tag: "Open", reason: outcome.reason }
    }
    world.record({
      id,
      accounts: work.accounts,
      events: work.events,
      moves: work.moves,
      began,
      ended: world.tick(),
      outcome,
      felt
    })
  })

const drawWork = (world: World, id: string): Effect.Effect<Work> =>
  Effect.gen(function* () {
    if (world.lists && (yield* Random.next) < 0.3) return yield* drawTransfer(id, world.accounts)
    const account = yield* Random.choice(world.accounts)
    const amount = yield* Random.nextIntBetween(1, 100)
    const dice = yield* Random.nextIntBetween(0, 100)
    const other = yield* Random.choice(world.accounts.filter((one) => one !== account))
    if (dice < 34) {
      return { accounts: [account], events: 1, run: Effect.map(command(account, new Deposit({ amount })), Arr.of) }
    }
    if (dice < 54) {
      return {
        accounts: [account],
        events: 1,
        run: Effect.map(command(account, new Withdraw({ amount: amount * 3 })), Arr.of)
      }
    }
    if (dice < 66) return { accounts: [account, other], events: 2, run: transfer(account, other, amount) }
    if (dice < 71) return { accounts: [account, other], events: 3, run: detour(account, other, amount) }
    if (dice < 75) return { accounts: [account, other], events: 2, run: abandoned(account, other, amount) }
    if (dice < 81) return { accounts: [account], events: 2, run: sale(id, account, amount) }
    if (dice < 85) return { accounts: [account], events: 1, run: twice(id, account, amount) }
    const projected = dice < 90
    const fresh = ["a", "b"].map((name) => `${projected ? "" : unprojected}${id}-${name}`)
    return { accounts: fresh, events: 5, run: commitOf(id, fresh, amount, projected) }
  }).pipe(Effect.orDie)

/** Two of the slots in any order. */
const drawExchange = (id: string): Effect.Effect<Work> =>
  Effect.gen(function* () {
    if ((yield* Random.next) < 0.3) return yield* drawExchanges(id)
    const first = yield* Random.nextIntBetween(0, slotCount)
    const second = (first + (yield* Random.nextIntBetween(1, slotCount))) % slotCount
    const account = `${unprojected}${id}-trade`
    return {
      accounts: [account],
      events: 1,
      run: Effect.as(Trade.evaluate(account, new Exchange({ first, second })), [])
    }
  })

/** Two commands in a transaction of the application's own, between which others commit. */
const transfer = (from: string, to: string, amount: number) =>
  inTransaction(
    Effect.gen(function* () {
      const first = yield* command(from, new Withdraw({ amount }))
      yield* pause
      return [first, yield* command(to, new Deposit({ amount }))]
    })
  )

/** A part of the transaction is rolled back to a savepoint, and done again behind what others committed meanwhile. */
const detour = (from: string, to: string, amount: number) =>
  inTransaction(
    Effect.gen(function* () {
      const first = yield* command(from, new Deposit({ amount }))
      yield* inTransaction(Effect.zipRight(command(to, new Deposit({ amount })), new Abandoned())).pipe(
        Effect.catchTag("Abandoned", () => Effect.void)
      )
      yield* pause
      const second = yield* command(to, new Deposit({ amount }))
      return [first, second, yield* command(from, new Deposit({ amount }))]
    })
  )

/** A transaction that is rolled back at its end. */
const abandoned = (from: string, to: string, amount: number) =>
  inTransaction(
    Effect.all([command(from, new Deposit({ amount })), pause, command(to, new Deposit({ amount })), new Abandoned()])
  ).pipe(Effect.as([]))

const sale = (id: string, account: string, price: number) =>
  Effect.as(Sale.evaluate(`${unprojected}${id}-sale`, new Sold({ account, price })), [])

/** A command that comes twice, and takes effect once. */
const twice = (id: string, account: string, amount: number) =>
  Effect.map(
    Effect.all(Arr.replicate(Aggregate.withCommandId(id)(Wallet.evaluate(account, new Deposit({ amount }))), 2), {
      concurrency: 2
    }),
    (answers) =>
      answers
        .filter(({ duplicate }) => !duplicate)
        .map(({ sequence, state }): Answer => ({ account, sequence, balance: state.balance }))
  )

/** Five events of two new accounts in one commit, straight to the store. */
const commitOf = (id: string, accounts: ReadonlyArray<string>, amount: number, projected: boolean) =>
  Effect.gen(function* () {
    const store = yield* StoreAdapter.StoreAdapter
    const { now } = yield* Timestamp.HybridClock
    const events: Array<Event.Event> = []
    for (const index of Arr.range(0, 4)) {
      events.push({
        timestamp: yield* now,
        aggregateId: Wallet.streamId(accounts[index % 2] ?? id),
        sequence: (index >> 1) + 1,
        type: "Deposited",
        version: 1,
        body: { amount },
        metadata: { attempt: id }
      })
    }
    yield* projected ? store.commitAll(events, Balances) : store.commitEvents(events)
    return []
  })

export const isProjected = (account: string): boolean => !account.startsWith(unprojected)

/** Lets the attempt go so many steps, by the scheduler and by the event loop, and no further. */
const interruptedAfter = <A, E, R>(
  effect: Effect.Effect<A, E, R>,
  steps: number
): Effect.Effect<Exit.Exit<A, E>, never, R> =>
  Effect.gen(function* () {
    const fiber = yield* Effect.fork(effect)
    for (let step = 0; step < steps && Option.isNone(yield* Fiber.poll(fiber)); step++) {
      yield* step < 30 ? Effect.yieldNow() : macrotask
    }
    return yield* Fiber.interrupt(fiber)
  })

const macrotask = Effect.async<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})

/**
 * Whether a caller that was not interrupted failed because of another: with a cancel, or, where no fault breaks anything, with what is
 * neither its own doing nor a deadlock.
 */
const isOfAnother = (cause: Cause.Cause<unknown>, calm: boolean): boolean => {
  const error = Cause.squash(cause)
  if (codeOf(error) === "57014") return true
  const isOwn =
    error instanceof InsufficientFunds || error instanceof Abandoned || error instanceof StoreError.RetryCommand
  return calm && !isOwn && codeOf(error) !== "40P01"
}

const codeOf = (error: unknown): unknown =>
  typeof error !== "object" || error === null
    ? undefined
    : "code" in error
      ? error.code
      : "cause" in error
        ? codeOf(error.cause)
        : undefined

/** The outcome that a client concludes from an answer. */
const outcomeOf = (exit: Exit.Exit<ReadonlyArray<Answer>, unknown>): Outcome => {
  if (Exit.isSuccess(exit)) return { _tag: "Acknowledged", answers: exit.value }
  const failure = Option.getOrUndefined(Cause.failureOption(exit.cause))
  if (failure instanceof InsufficientFunds)
    return { _tag: "Refused", account: failure.account, balance: failure.balance }
  // A defect here is a COMMIT of the application's own transaction that failed: it is up to the application.
  if (failure === undefined || !Cause.isFailType(exit.cause)) return { _tag: "Open", reason: Cause.pretty(exit.cause) }
  if (failure instanceof StoreError.StoreError) {
    return { _tag: failure.reason === "CommitUnknown" ? "Open" : "Failed", reason: failure.reason }
  }
  return { _tag: "Failed", reason: String(failure) }
}
