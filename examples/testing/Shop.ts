/**
 * A small shop, whose tests are in `main.ts`: the stock of a product, orders, and the process manager between them.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate, Projection, Subscription, Upcast } from "effect-maestro"

const Count = Schema.Int.pipe(Schema.between(1, 1000))

// The stock of a product. Its id is the product.

export class Added extends Schema.TaggedClass<Added>()("Added", { count: Count }) {}
export class Reserved extends Schema.TaggedClass<Reserved>()("Reserved", { count: Count, order: Schema.String }) {}

export class Add extends Schema.TaggedClass<Add>()("Add", { count: Count }) {}
export class Reserve extends Schema.TaggedClass<Reserve>()("Reserve", { count: Count, order: Schema.String }) {}

export class OutOfStock extends Schema.TaggedError<OutOfStock>()("OutOfStock", { left: Schema.Int }) {}

/** The first release stored `Added` with a text, and reservations as `Taken`. */
const stockEvents = Upcast.events(Schema.Union(Added, Reserved), {
  Added: Upcast.from(1, Schema.Struct({ count: Schema.NumberFromString })).pipe(
    Upcast.toEvent(2, ({ count }) => ({ count }))
  ),
  Taken: Upcast.renamed("Reserved"),
  Counted: Upcast.dropped
})

/** The table that lists what is left of each product. */
export const Levels = Projection.makeSql({
  name: "levels",
  events: stockEvents,
  tables: {
    levels: (sql) => sql`create table levels (product text primary key, available int not null)`
  },
  project: {
    Added: ({ count }, { id }, sql) =>
      sql`insert into levels as l (product, available) values (${id}, ${count})
        on conflict (product) do update set available = l.available + excluded.available`,
    Reserved: ({ count }, { id }, sql) => sql`update levels set available = available - ${count} where product = ${id}`
  }
})

export const Stock = Aggregate.make("Stock", {
  state: Schema.Struct({ left: Schema.Int }),
  initialState: { left: 0 },
  events: stockEvents,
  commands: Schema.Union(Add, Reserve),
  refusals: { Reserve: [OutOfStock] },
  decide: {
    Add: ({ count }) => Effect.succeed([new Added({ count })]),
    Reserve: ({ count, order }, { state: { left } }) =>
      count > left ? new OutOfStock({ left }) : Effect.succeed([new Reserved({ count, order })])
  },
  evolve: {
    Added: ({ left }, { count }) => ({ left: left + count }),
    Reserved: ({ left }, { count }) => ({ left: left - count })
  },
  projections: [Levels]
})

// An order of one product.

export class Placed extends Schema.TaggedClass<Placed>()("Placed", { product: Schema.String, count: Count }) {}
export class Confirmed extends Schema.TaggedClass<Confirmed>()("Confirmed", {}) {}
export class Rejected extends Schema.TaggedClass<Rejected>()("Rejected", { reason: Schema.String }) {}

export class Place extends Schema.TaggedClass<Place>()("Place", { product: Schema.String, count: Count }) {}
export class Confirm extends Schema.TaggedClass<Confirm>()("Confirm", {}) {}
export class Reject extends Schema.TaggedClass<Reject>()("Reject", { reason: Schema.String }) {}

export const Order = Aggregate.make("Order", {
  state: Schema.Literal("none", "placed", "confirmed", "rejected"),
  initialState: "none",
  events: Schema.Union(Placed, Confirmed, Rejected),
  commands: Schema.Union(Place, Confirm, Reject),
  decide: {
    Place: ({ count, product }) => Effect.succeed([new Placed({ count, product })]),
    Confirm: (_, { state }) => Effect.succeed(state === "placed" ? [new Confirmed()] : []),
    Reject: ({ reason }, { state }) => Effect.succeed(state === "placed" ? [new Rejected({ reason })] : [])
  },
  evolve: { Placed: () => "placed", Confirmed: () => "confirmed", Rejected: () => "rejected" }
})

/** Reserves what is ordered. An order of more than there is in stock is rejected. */
export const reservation = Subscription.on(Order, {
  Placed: ({ count, product }, event) =>
    Stock.evaluate(product, new Reserve({ count, order: event.id })).pipe(
      Aggregate.withCommandId(Subscription.commandId("reservation", event)),
      Effect.zipRight(Order.evaluate(event.id, new Confirm())),
      Effect.catchTag("OutOfStock", ({ left }) => Order.evaluate(event.id, new Reject({ reason: `${left} left` })))
    )
})
