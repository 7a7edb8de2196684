/**
 * The stock of a product: what is delivered, what orders have reserved, and what cancelled orders have returned. Its id is the product.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate } from "effect-maestro"

const quantity = Schema.Int.pipe(Schema.positive())
const details = { order: Schema.String, quantity }

// Events.

class StockDelivered extends Schema.TaggedClass<StockDelivered>()("StockDelivered", { quantity }) {}
class StockReserved extends Schema.TaggedClass<StockReserved>()("StockReserved", details) {}
class StockReturned extends Schema.TaggedClass<StockReturned>()("StockReturned", details) {}

// Commands.

export class DeliverStock extends Schema.TaggedClass<DeliverStock>()("DeliverStock", { quantity }) {}
export class ReserveStock extends Schema.TaggedClass<ReserveStock>()("ReserveStock", details) {}
export class ReturnStock extends Schema.TaggedClass<ReturnStock>()("ReturnStock", details) {}

/** Fewer are available than an order needs. */
export class OutOfStock extends Schema.TaggedError<OutOfStock>()("OutOfStock", { available: Schema.Int }) {
  override get message(): string {
    return `only ${this.available} in stock`
  }
}

export const Stock = Aggregate.make("Stock", {
  state: Schema.Struct({ available: Schema.Int }),
  initialState: { available: 0 },
  events: Schema.Union(StockDelivered, StockReserved, StockReturned),
  commands: Schema.Union(DeliverStock, ReserveStock, ReturnStock),

  decide: {
    DeliverStock: ({ quantity }) => Effect.succeed([new StockDelivered({ quantity })]),
    ReserveStock: ({ order, quantity }, { state }) =>
      quantity > state.available ? new OutOfStock(state) : Effect.succeed([new StockReserved({ order, quantity })]),
    ReturnStock: ({ order, quantity }) => Effect.succeed([new StockReturned({ order, quantity })])
  },

  evolve: {
    StockDelivered: ({ available }, { quantity }) => ({ available: available + quantity }),
    StockReserved: ({ available }, { quantity }) => ({ available: available - quantity }),
    StockReturned: ({ available }, { quantity }) => ({ available: available + quantity })
  }
})
