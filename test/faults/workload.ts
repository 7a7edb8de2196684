/** Clients on several nodes that move money about, and keep a record of what they asked and were told. */
import * as SqlClient from "@effect/sql/SqlClient"
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
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { Aggregate, type Event, Projection, SqlStore, StoreAdapter, StoreError, Timestamp } from "effect-maestro"
import type { Answer, Attempt, Outcome } from "./history.js"

// --- the domain ---

class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Number }) {}
class Withdrawn extends Schema.TaggedClass<Withdrawn>()("Withdrawn", { amount: Schema.Number }) {}
export class Deposit extends Schema.TaggedClass<Deposit>()("Deposit", { amount: Schema.Number }) {}
class Withdraw extends Schema.TaggedClass<Withdraw>()("Withdraw", { amount: Schema.Number }) {}
class InsufficientFunds extends Schema.TaggedError<InsufficientFunds>()("InsufficientFunds", {
  account: Schema.String,
  balance: Schema.Number
}) {}

/** A table that is kept by the events; the log has to bear it out. */
const Balances = [
  Projection.makeSql({
    name: "balances, by SQL",
    events: Deposited,
    project: { Deposited: ({ amount }, { aggregateId }, sql) => addToBalance(sql, aggregateId, amount) }
  }),
  Projection.make({
    name: "balances, by an effect",
    events: Withdrawn,
    project: {
      Withdrawn: ({ amount }, { aggregateId }) =>
        Effect.flatMap(SqlClient.SqlClient, (sql) => addToBalance(sql, aggregateId, -amount))
    }
  })
]

const addToBalance = (sql: SqlClient.SqlClient, account: string, amount: number) =>
  sql`insert into balances as b values (${account}, ${amount})
    on conflict (account) do update set balance = b.balance + excluded.balance`

export const Wallet = Aggregate.make("Wallet", {
  state: Schema.Struct({ balance: Schema.Number }),
  initialState: { balance: 0 },
  events: Schema.Union(Deposited, Withdrawn),
  commands: Schema.Union(Deposit, Withdraw),
  decide: {
    Deposit: ({ amount }) => Effect.succeed([new Deposited({ amount })]),
    Withdraw: ({ amount }, { id, state }) =>
      amount > state.balance
        ? new InsufficientFunds({ account: id, balance: state.balance })
        : Effect.succeed([new Withdrawn({ amount })])
  },
  evolve: {
    Deposited: (state, { amount }) => ({ balance: state.balance + amount }),
    Withdrawn: (state, { amount }) => ({ balance: state.balance - amount })
  },
  projections: Balances,
  snapshotEvery: 10,
  // A server that is killed is back within a second or so.
  retry: Schedule.intersect(Schedule.jittered(Schedule.spaced("20 millis")), Schedule.recurs(500))
})

export const createTables = (sql: SqlClient.SqlClient) =>
  sql`create table balances (account text primary key, balance bigint not null)`

// --- nodes ---

type Services = Aggregate.Instance<"Wallet"> | StoreAdapter.StoreAdapter | SqlClient.SqlClient | Timestamp.HybridClock

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
  breaking: Breaking = (store) => store
): Effect.Effect<Node, unknown, Scope.Scope> =>
  Effect.gen(function* () {
    const broken = Layer.effect(StoreAdapter.StoreAdapter, Effect.map(StoreAdapter.StoreAdapter, breaking))
    const services = yield* Layer.build(
      Wallet.layer.pipe(
        Layer.provideMerge(broken),
        Layer.provideMerge(SqlStore.layer),
        Layer.provideMerge(
          PgClient.layer({ url: Redacted.make(url), maxConnections: connections, connectTimeout: "2 seconds" })
        ),
        Layer.provideMerge(Timestamp.layerWith({ node: BigInt(id) }))
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
  acknowledged = 0
  open = 0
  private ticks = 0
  private numbers = 0
  private waiting: Array<Deferred.Deferred<void>> = []
  stopped = false
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
    const work = yield* drawWork(world, id)
    const began = world.tick()
    const running = work.run.pipe(
      Effect.provideService(Aggregate.Metadata, { attempt: id }),
      Effect.provide(node.services)
    )
    const exit = yield* world.interruptAfter === undefined
      ? Effect.exit(running)
      : interruptedAfter(running, world.interruptAfter())
    world.record({
      id,
      accounts: work.accounts,
      events: work.events,
      began,
      ended: world.tick(),
      outcome: outcomeOf(exit)
    })
  })

interface Work {
  readonly accounts: ReadonlyArray<string>
  readonly events: number
  readonly run: Effect.Effect<ReadonlyArray<Answer>, unknown, Services>
}

const drawWork = (world: World, id: string): Effect.Effect<Work> =>
  Effect.gen(function* () {
    const account = yield* Random.choice(world.accounts)
    const amount = yield* Random.nextIntBetween(1, 100)
    const dice = yield* Random.nextIntBetween(0, 100)
    if (dice < 40) {
      return { accounts: [account], events: 1, run: Effect.map(command(account, new Deposit({ amount })), Arr.of) }
    }
    if (dice < 65) {
      return {
        accounts: [account],
        events: 1,
        run: Effect.map(command(account, new Withdraw({ amount: amount * 3 })), Arr.of)
      }
    }
    if (dice < 80) {
      const other = yield* Random.choice(world.accounts.filter((one) => one !== account))
      return { accounts: [account, other], events: 2, run: transfer(account, other, amount) }
    }
    const projected = dice < 90
    const fresh = ["a", "b"].map((name) => `${projected ? "" : unprojected}${id}-${name}`)
    return { accounts: fresh, events: 5, run: commitOf(id, fresh, amount, projected) }
  }).pipe(Effect.orDie)

const command = (account: string, asked: Deposit | Withdraw) =>
  Effect.map(
    Wallet.evaluate(account, asked),
    ({ sequence, state }): Answer => ({ account, sequence, balance: state.balance })
  )

/** Two commands in a transaction of the application's own. */
const transfer = (from: string, to: string, amount: number) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    return yield* sql.withTransaction(
      Effect.all([command(from, new Withdraw({ amount })), command(to, new Deposit({ amount }))])
    )
  })

/** Five events of two new accounts in one commit, straight to the store. */
const commitOf = (id: string, accounts: ReadonlyArray<string>, amount: number, projected: boolean) =>
  Effect.gen(function* () {
    const store = yield* StoreAdapter.StoreAdapter
    const { now } = yield* Timestamp.HybridClock
    const events: Array<Event.Event> = []
    for (const index of Arr.range(0, 4)) {
      events.push({
        timestamp: yield* now,
        aggregateId: accounts[index % 2] ?? id,
        sequence: (index >> 1) + 1,
        type: "Deposited",
        body: { amount },
        metadata: { attempt: id }
      })
    }
    yield* projected ? store.commitAll(events, Balances) : store.commitEvents(events)
    return []
  })

/** Begins the names of accounts whose events were stored without the projection. */
const unprojected = "plain-"

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

/** What a client may conclude from what it was told. */
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
