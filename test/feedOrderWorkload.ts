/** Random transactions that overlap on a few hot aggregates and on new ones, and a record of what they wrote. */
import * as SqlClient from "@effect/sql/SqlClient"
import { SqlError } from "@effect/sql/SqlError"
import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { Aggregate, type Event, Projection, type SqlStore, StoreAdapter, StoreError, Timestamp } from "effect-maestro"
import { Account, Deposit, InsufficientFunds, Limits, Withdraw } from "./account.js"
import type { Attempt, Place } from "./feedOrderModel.js"
import { macrotask } from "./nodes.js"
import type { StoreServices } from "./subscribers.js"

// --- the domain ---

class Booked extends Schema.TaggedClass<Booked>()("Booked", { amount: Schema.Int }) {}
export class Book extends Schema.TaggedClass<Book>()("Book", { amounts: Schema.Array(Schema.Int) }) {}

const upsert = (sql: SqlClient.SqlClient, account: string, amount: number) =>
  sql`insert into books as b (account, last, sum, count, trail)
    values (${account}, ${amount}, ${amount}, 1, left(md5(':' || ${amount}::int), 8))
    on conflict (account) do update set last = excluded.last, sum = b.sum + excluded.sum, count = b.count + 1,
      trail = left(md5(b.trail || ':' || excluded.last), 8)`

export const createBooks = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) =>
    sql`create table books (account text primary key, last int not null, sum int not null, count int not null, trail text not null)`
)

const BySql = Projection.makeSql({
  name: "books, by SQL",
  events: Booked,
  project: { Booked: ({ amount }, { aggregateId }, sql) => upsert(sql, aggregateId, amount) }
})

export const ByEffect = Projection.make({
  name: "books, by an effect",
  events: Booked,
  project: {
    Booked: ({ amount }, { aggregateId }) =>
      Effect.flatMap(SqlClient.SqlClient, (sql) => Effect.zipRight(macrotask, upsert(sql, aggregateId, amount)))
  }
})

const books = {
  state: Schema.Struct({ count: Schema.Int }),
  initialState: { count: 0 },
  events: Booked,
  commands: Book,
  decide: { Book: ({ amounts }: Book) => Effect.succeed(amounts.map((amount) => new Booked({ amount }))) },
  evolve: { Booked: (state: { readonly count: number }) => ({ count: state.count + 1 }) },
  retry: Schedule.recurs(50)
}

export const SqlBook = Aggregate.make("SqlBook", { ...books, projections: [BySql] })
export const EffectBook = Aggregate.make("EffectBook", { ...books, projections: [ByEffect] })

export class Sold extends Schema.TaggedClass<Sold>()("Sold", { amount: Schema.Int, till: Schema.String }) {}

/** A strong projection that evaluates a command of another aggregate: a sale pays into a till. */
const PaysIn = Projection.make({
  name: "pays in",
  events: Sold,
  project: {
    Sold: ({ amount, till }, { metadata }) =>
      Account.evaluate(till, new Deposit({ amount })).pipe(
        Effect.provideService(Aggregate.Metadata, { attempt: metadata.attempt })
      )
  }
})

export const Sale = Aggregate.make("Sale", {
  state: Schema.Struct({}),
  initialState: {},
  events: Sold,
  commands: Sold,
  decide: { Sold: (command) => Effect.succeed([command]) },
  evolve: { Sold: (state) => state },
  projections: [PaysIn],
  retry: Schedule.recurs(50)
})

export const layerOnAny = Sale.layer.pipe(Layer.provideMerge(Account.layer), Layer.provide(Limits.layer))
export const layerOnSql = Layer.mergeAll(layerOnAny, SqlBook.layer, EffectBook.layer)

export type OnAny = Layer.Layer.Success<typeof layerOnAny> | StoreServices
export type OnSql = Layer.Layer.Success<typeof layerOnSql> | StoreServices | SqlStore.Tables | SqlClient.SqlClient

/** A node: aggregates on a store, in SQL or not. */
export interface Node {
  readonly onAny: Context.Context<OnAny>
  readonly onSql: Option.Option<Context.Context<OnSql>>
}

// --- the record ---

/** The work of all workers so far. */
export class Record {
  readonly attempts: Array<Attempt> = []
  /** Attempts that were rolled back to a savepoint inside others. */
  readonly undone = new Set<string>()
  /** Failures that this workload must not cause. */
  readonly unexpected: Array<string> = []
  commands = 0
  private numbers = 0

  nextId(): string {
    return `attempt-${++this.numbers}`
  }
}

class Undone extends Data.TaggedError("Undone") {}

/** Refusals, the workload's own rollbacks, and conflicts between transactions. */
const isExpected = (cause: Cause.Cause<unknown>): boolean => {
  const error = Cause.squash(cause)
  if (error instanceof InsufficientFunds || error instanceof Undone || error instanceof StoreError.RetryCommand)
    return true
  const code =
    error instanceof StoreError.StoreError ? error.code : error instanceof SqlError ? codeOf(error.cause) : ""
  return code === "40001" || code === "40P01"
}

const codeOf = (cause: unknown): unknown =>
  typeof cause === "object" && cause !== null && "code" in cause ? cause.code : undefined

// --- the transactions ---

type Work<R> = Effect.Effect<ReadonlyArray<Place>, unknown, R>

const hot = (kind: string) => Effect.map(Random.nextIntBetween(0, 6), (index) => `${kind}-${index}`)
const amount = Random.nextIntBetween(1, 100)
const sometimes = (probability: number) => Effect.map(Random.next, (value) => value < probability)

/** Yields a few times, so that other workers commit in between. */
const pause = Effect.flatMap(Random.nextIntBetween(0, 8), (turns) => Effect.repeatN(macrotask, turns))

/** The places of the events that a command wrote. */
const placesOf = (answer: {
  readonly events: ReadonlyArray<unknown>
  readonly position: Place
}): ReadonlyArray<Place> =>
  answer.events.map((_, index) => ({
    aggregateId: answer.position.aggregateId,
    sequence: answer.position.sequence - answer.events.length + 1 + index
  }))

const deposit = (account: string) =>
  Effect.flatMap(amount, (amount) => Effect.map(Account.evaluate(account, new Deposit({ amount })), placesOf))

const withdraw = (account: string) =>
  Effect.flatMap(Random.nextIntBetween(1, 30), (amount) =>
    Effect.map(Account.evaluate(account, new Withdraw({ amount })), placesOf)
  )

const inTransaction = <A, E, R>(work: Effect.Effect<A, E, R>) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) => sql.withTransaction(work))

const oneOf = (id: string, kind: string) =>
  Effect.flatMap(sometimes(0.3), (fresh) => (fresh ? Effect.succeed(`${id}-${kind}`) : hot(kind)))

const plain = (id: string): Work<OnAny> => Effect.flatMap(oneOf(id, "account"), deposit)

/** One command id used twice, which takes effect once. */
const withId = (id: string, concurrency = 2): Work<OnAny> =>
  Effect.gen(function* () {
    const account = yield* oneOf(id, "account")
    const command = Aggregate.withCommandId(`${id}|once`)(
      Effect.map(Account.evaluate(account, new Deposit({ amount: yield* amount })), placesOf)
    )
    const both = yield* Effect.all(Arr.replicate(Effect.zipRight(pause, command), 2), { concurrency })
    return both.flat()
  })

const sale = (id: string): Work<OnAny> =>
  Effect.gen(function* () {
    const [shop, till] = [yield* oneOf(id, "sale"), yield* hot("account")]
    return placesOf(yield* Sale.evaluate(shop, new Sold({ amount: yield* amount, till })))
  })

/** A commit of two or three aggregates, one of them hot. */
const several = (id: string, projections: ReadonlyArray<Projection.Projection<unknown, OnSql>>): Work<OnSql> =>
  Effect.gen(function* () {
    const store = yield* StoreAdapter.StoreAdapter
    const contended = yield* hot("several")
    const events = Effect.gen(function* () {
      const { length } = yield* store.getEvents(contended, 1)
      const places = [
        { aggregateId: `${id}-z`, sequence: 1 },
        { aggregateId: contended, sequence: length + 1 },
        { aggregateId: `${id}-z`, sequence: 2 },
        { aggregateId: `${id}-a`, sequence: 1 }
      ]
      return yield* Effect.forEach(places, (place) => event(id, place))
    })
    const commit = Effect.tap(events, (all) => store.commitAll(all, projections))
    return yield* Effect.retry(commit, { times: 50, while: (error) => error instanceof StoreError.RetryCommand })
  })

const event = (attempt: string, place: Place): Effect.Effect<Event.Event> =>
  Effect.gen(function* () {
    const { now } = yield* Timestamp.HybridClock
    const body = { amount: yield* amount }
    return { timestamp: yield* now, ...place, type: "Booked", version: 1, body, metadata: { attempt } }
  })

const book = (id: string): Work<OnSql> =>
  Effect.gen(function* () {
    const amounts = yield* Effect.replicateEffect(amount, yield* Random.nextIntBetween(1, 3))
    const bySql = yield* Random.nextBoolean
    const account = yield* oneOf(id, bySql ? "sqlBook" : "effectBook")
    const command = new Book({ amounts })
    return placesOf(yield* bySql ? SqlBook.evaluate(account, command) : EffectBook.evaluate(account, command))
  })

/** The transfer of the README, with other commits between its halves. */
const transfer = (id: string): Work<OnSql> =>
  Effect.gen(function* () {
    const [from, to] = [yield* hot("account"), yield* oneOf(id, "account")]
    const first = yield* withdraw(from)
    yield* pause
    return [...first, ...(yield* deposit(to))]
  }).pipe(inTransaction)

/** Several writes of all kinds. */
const long = (id: string): Work<OnSql> =>
  Effect.gen(function* () {
    const works = [plain, sale, book, (id: string) => withId(id, 1), (id: string) => several(id, [BySql])]
    const some: ReadonlyArray<(id: string) => Work<OnSql>> = yield* Effect.replicateEffect(Random.choice(works), 3)
    const places = yield* Effect.forEach(some, (work, index) => Effect.zipLeft(work(`${id}|${index}`), pause))
    return places.flat()
  }).pipe(inTransaction)

/** A transaction that rolls a part back to a savepoint, and writes to these aggregates again. */
const nested = (record: Record, id: string): Work<OnSql> =>
  Effect.gen(function* () {
    const [a, b] = [yield* hot("account"), yield* oneOf(id, "account")]
    const first = (yield* Random.nextBoolean) ? yield* deposit(a) : []
    record.undone.add(`${id}-undone`)
    const lost = Effect.all([deposit(b), pause, sale(`${id}-undone`), Effect.fail(new Undone())])
    yield* lost.pipe(
      Effect.provideService(Aggregate.Metadata, { attempt: `${id}-undone` }),
      inTransaction,
      Effect.catchIf(
        (error) => error instanceof Undone,
        () => Effect.void
      )
    )
    yield* pause
    return [...first, ...(yield* deposit(b)), ...(yield* book(id)), ...(yield* deposit(a))]
  }).pipe(inTransaction)

const undone = (id: string): Work<OnSql> =>
  Effect.all([plain(id), pause, book(id), pause, Effect.fail(new Undone())]).pipe(Effect.as([]), inTransaction)

/** A transfer at a higher isolation level, at which a conflict ends it. */
const isolated = (id: string): Work<OnSql> =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const level = (yield* Random.nextBoolean) ? "repeatable read" : "serializable"
    const [from, to] = [yield* oneOf(id, "account"), `${id}-isolated`]
    return yield* sql.withTransaction(
      Effect.gen(function* () {
        yield* sql`set transaction isolation level ${sql.literal(level)}`
        const first = yield* deposit(from)
        yield* pause
        return [...first, ...(yield* deposit(to)), ...(yield* book(id))]
      })
    )
  })

const onAny = (id: string): Effect.Effect<Work<OnAny>> =>
  Effect.map(Random.nextIntBetween(0, 3), (dice) => [plain(id), sale(id), withId(id)][dice] ?? plain(id))

const onSql = (record: Record, id: string): Effect.Effect<Work<OnSql>> =>
  Effect.map(Random.nextIntBetween(0, 100), (dice) => {
    if (dice < 12) return plain(id)
    if (dice < 20) return withId(id)
    if (dice < 30) return sale(id)
    if (dice < 45) return book(id)
    if (dice < 53) return several(id, dice < 49 ? [BySql] : [ByEffect])
    if (dice < 73) return transfer(id)
    if (dice < 83) return long(id)
    if (dice < 90) return nested(record, id)
    if (dice < 95) return undone(id)
    return isolated(id)
  })

/** Runs and records one attempt, and returns the committed events. */
export const attempt = (record: Record, node: Node): Effect.Effect<ReadonlyArray<Place>> =>
  Effect.gen(function* () {
    const id = record.nextId()
    const work = yield* Option.match(node.onSql, {
      onNone: () => Effect.map(onAny(id), Effect.provide(node.onAny)),
      onSome: (services) => Effect.map(onSql(record, id), Effect.provide(services))
    })
    const exit = yield* Effect.exit(Effect.provideService(work, Aggregate.Metadata, { attempt: id }))
    if (Exit.isFailure(exit) && !isExpected(exit.cause)) record.unexpected.push(Cause.pretty(exit.cause))
    const written = Exit.isSuccess(exit) ? Option.some(exit.value) : Option.none()
    record.attempts.push({ id, written })
    return Option.getOrElse(written, () => [])
  })

/** Runs workers on all nodes, each one attempt after the other, until so many events are acknowledged. */
export const storm = (
  record: Record,
  nodes: ReadonlyArray<Node>,
  options: {
    readonly workers: number
    readonly commands: number
    readonly seed: number
    readonly after: (node: Node, places: ReadonlyArray<Place>) => Effect.Effect<void>
  }
): Effect.Effect<void> =>
  Effect.forEach(
    Arr.range(1, options.workers),
    (worker) =>
      Effect.gen(function* () {
        while (record.commands < options.commands) {
          const node = nodes[worker % nodes.length]
          if (node === undefined) return
          const places = yield* attempt(record, node)
          record.commands += places.length
          yield* options.after(node, places)
        }
      }).pipe(Effect.withRandom(Random.make(`${options.seed}-${worker}`))),
    { concurrency: "unbounded", discard: true }
  )
