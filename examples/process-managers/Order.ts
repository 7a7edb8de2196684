/**
 * An order: it is placed, and then confirmed or cancelled, never both.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate } from "effect-maestro"

const goods = { product: Schema.NonEmptyString, quantity: Schema.Int.pipe(Schema.positive()) }

const details = {
  ...goods,
  customer: Schema.NonEmptyString,
  amount: Schema.Positive,
  /** How long the customer may take to pay. */
  payWithin: Schema.DurationFromMillis
}

// Events.

class OrderPlaced extends Schema.TaggedClass<OrderPlaced>()("OrderPlaced", details) {}
class OrderConfirmed extends Schema.TaggedClass<OrderConfirmed>()("OrderConfirmed", {}) {}
/** It has the goods, because the process manager returns them to the stock. */
class OrderCancelled extends Schema.TaggedClass<OrderCancelled>()("OrderCancelled", {
  ...goods,
  reason: Schema.String
}) {}

// Commands.

export class PlaceOrder extends Schema.TaggedClass<PlaceOrder>()("PlaceOrder", details) {}
export class ConfirmOrder extends Schema.TaggedClass<ConfirmOrder>()("ConfirmOrder", {}) {}
export class CancelOrder extends Schema.TaggedClass<CancelOrder>()("CancelOrder", { reason: Schema.String }) {}

const Status = Schema.Literal("none", "open", "confirmed", "cancelled")

/** The order is not open: it was not placed yet, or it is confirmed or cancelled. */
export class NotOpen extends Schema.TaggedError<NotOpen>()("NotOpen", { status: Status }) {
  override get message(): string {
    return this.status === "none" ? "there is no such order" : `the order is ${this.status} already`
  }
}

export class AlreadyPlaced extends Schema.TaggedError<AlreadyPlaced>()("AlreadyPlaced", {}) {
  override get message(): string {
    return "the order has been placed already"
  }
}

const OrderState = Schema.Struct({ status: Status, product: Schema.String, quantity: Schema.Int })

export const Order = Aggregate.make("Order", {
  state: OrderState,
  initialState: { status: "none", product: "", quantity: 0 },
  events: Schema.Union(OrderPlaced, OrderConfirmed, OrderCancelled),
  commands: Schema.Union(PlaceOrder, ConfirmOrder, CancelOrder),

  decide: {
    PlaceOrder: (command, { state }) =>
      state.status === "none" ? Effect.succeed([new OrderPlaced(command)]) : new AlreadyPlaced(),
    ConfirmOrder: (_, { state }) => Effect.as(mustBeOpen(state), [new OrderConfirmed()]),
    CancelOrder: ({ reason }, { state }) =>
      Effect.as(mustBeOpen(state), [new OrderCancelled({ product: state.product, quantity: state.quantity, reason })])
  },

  evolve: {
    OrderPlaced: (_, { product, quantity }) => ({ status: "open", product, quantity }),
    OrderConfirmed: (state) => ({ ...state, status: "confirmed" }),
    OrderCancelled: (state) => ({ ...state, status: "cancelled" })
  }
})

// --- internal ---

const mustBeOpen = ({ status }: typeof OrderState.Type): Effect.Effect<void, NotOpen> =>
  status === "open" ? Effect.void : new NotOpen({ status })
