/** Places orders: the order and its stock are two aggregates, and change together or not at all. */
import { Aggregate } from "effect-maestro"
import { Order, PlaceOrder } from "./Order.js"
import { ReserveStock, Stock } from "./Stock.js"

/** The commands that place an order. An order of more than there is in stock is refused, and nothing is stored. */
export const place = (order: string, details: ConstructorParameters<typeof PlaceOrder>[0]) =>
  Aggregate.evaluateAll([
    Order.command(order, new PlaceOrder(details)),
    Stock.command(details.product, new ReserveStock({ order, quantity: details.quantity }))
  ])
