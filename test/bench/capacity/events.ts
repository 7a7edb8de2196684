/**
 * The events of the logs whose size and speed are measured: one schedule of events, made by commands of the library, and by SQL.
 *
 * Every second event belongs to an order, and the others to an account. A hundred orders are in use at a time, and each has ten events.
 * Five thousand accounts are in use at a time, and each has a hundred events. So the events of an account are spread over a million others,
 * or over the whole log where it is smaller.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate } from "effect-maestro"
import type pg from "pg"

/** How many events a log has, and how many bytes the body of each has. */
export interface Shape {
  readonly events: number
  readonly body: number
}

export const orderLength = 10
export const accountLength = 100

/** Whether a log of so many events has whole aggregates only. */
export const isWhole = (events: number): boolean =>
  events > 0 && events % (events > 2 * accountsInUse * accountLength ? 2 * accountsInUse * accountLength : 10_000) === 0

export const accountsOf = (events: number): number => events / 2 / accountLength
export const ordersOf = (events: number): number => events / 2 / orderLength

/** The id of an aggregate by its number. It has the length of an id of `newId`, and rises with the number. */
export const idOf = (number: number): string => `${idPrefix}${number.toString(16).padStart(12, "0")}`

/** Metadata of an application: the id of a user. */
export const metadata = { user: "00000000-0000-7000-8000-000000000000" }

/** A body whose JSON has so many bytes. */
export const bodyOf = (bytes: number, amount: number) => {
  const empty = { amount, currency: "EUR", reference: "" }
  return { ...empty, reference: reference(bytes - JSON.stringify(empty).length) }
}

const payment = { amount: Schema.Int, currency: Schema.String, reference: Schema.String }
class ItemAdded extends Schema.TaggedClass<ItemAdded>()("ItemAdded", payment) {}
class AddItem extends Schema.TaggedClass<AddItem>()("AddItem", payment) {}
class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", payment) {}
class Deposit extends Schema.TaggedClass<Deposit>()("Deposit", payment) {}

/** The state of both: how many events there were. */
const counting = { state: Schema.Int, initialState: 0 }

export const Order = Aggregate.make("Order", {
  ...counting,
  events: ItemAdded,
  commands: AddItem,
  decide: { AddItem: (command) => Effect.succeed([new ItemAdded(command)]) },
  evolve: { ItemAdded: (count) => count + 1 }
})

export const Account = Aggregate.make("Account", {
  ...counting,
  events: Deposited,
  commands: Deposit,
  decide: { Deposit: (command) => Effect.succeed([new Deposited(command)]) },
  evolve: { Deposited: (count) => count + 1 }
})

/** Makes the events of a log by commands of the library, by 16 clients. */
export const fillByCommands = ({ body, events }: Shape) =>
  Effect.forEach(
    Array.from({ length: events }, (_, index) => index),
    (index) => evaluateAt(index, events, body),
    {
      concurrency: 16,
      discard: true
    }
  ).pipe(Effect.provideService(Aggregate.Metadata, metadata))

/**
 * Makes the same events by SQL, because commands would take a minute for a million. Transactions of a thousand events follow one another,
 * so the events of an aggregate stand in the feed in their order.
 */
export const fillBySql = async (pool: pg.Pool, schema: string, shape: Shape): Promise<void> => {
  const client = await pool.connect()
  try {
    await client.query("set synchronous_commit = off")
    await client.query(fillStatement(schema, shape))
    await client.query("reset synchronous_commit")
  } finally {
    client.release()
  }
}

// --- internal ---

const idPrefix = "00000000-0000-7000-8000-"

/** A group of aggregates of one kind is in use at a time: each has its first event, then each its second, and so on. */
interface Group {
  readonly aggregates: number
  readonly length: number
}

const orders: Group = { aggregates: 100, length: orderLength }

/** How many accounts are in use at a time. So a log of a million events has one group of them. */
const accountsInUse = 5000

const accountsIn = (events: number): Group => ({
  aggregates: Math.min(accountsOf(events), accountsInUse),
  length: accountLength
})

/** The aggregate of the event with this number among those of its kind. */
const aggregateAt = ({ aggregates, length }: Group, number: number): number =>
  Math.floor(number / (aggregates * length)) * aggregates + (number % aggregates)

const aggregateInSql = ({ aggregates, length }: Group): string =>
  `number / ${aggregates * length} * ${aggregates} + number % ${aggregates}`

const sequenceInSql = ({ aggregates, length }: Group): string => `number % ${aggregates * length} / ${aggregates} + 1`

const text = "RF18539007547034"
const reference = (length: number): string => text.repeat(Math.ceil(length / text.length)).slice(0, length)

/** The event of the schedule with this number. */
const evaluateAt = (
  index: number,
  events: number,
  body: number
): Effect.Effect<unknown, Aggregate.Failure, Aggregate.Instance<"Account"> | Aggregate.Instance<"Order">> => {
  const number = Math.floor(index / 2)
  const payment = bodyOf(body, 10_000 + (index % 90_000))
  return index % 2 === 0
    ? Order.evaluate(idOf(aggregateAt(orders, number)), new AddItem(payment))
    : Account.evaluate(idOf(aggregateAt(accountsIn(events), number)), new Deposit(payment))
}

/** The schedule in SQL. A block of plpgsql takes no parameters; what is put into its text are numbers and a name of this program. */
const fillStatement = (schema: string, { body, events }: Shape): string => {
  const accounts = accountsIn(events)
  const before = `{"amount":`
  const after = `,"currency":"EUR","reference":"${bodyOf(body, 10_000).reference}"}`
  return `do $$ begin
    for start in 0..${events - 1} by 1000 loop
      insert into ${schema}.event_log (aggregate_id, sequence, type, body, metadata, timestamp, correlation_id)
      select
        case when is_order then 'Order/' else 'Account/' end || '${idPrefix}' || lpad(to_hex(
          case when is_order then ${aggregateInSql(orders)} else ${aggregateInSql(accounts)} end), 12, '0'),
        case when is_order then ${sequenceInSql(orders)} else ${sequenceInSql(accounts)} end,
        case when is_order then 'ItemAdded' else 'Deposited' end,
        ('${before}' || 10000 + index % 90000 || '${after}')::json, '${JSON.stringify(metadata)}', made, made::text
      from (
        select index, index / 2 as number, index % 2 = 0 as is_order, uuidv7() as made
        from generate_series(start, start + 999) index
      ) event;
      commit;
    end loop;
  end $$`
}
