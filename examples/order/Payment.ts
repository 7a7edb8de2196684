/**
 * The payment of an order: an aggregate of its own, since it lives on where the order has ended.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate } from "effect-maestro"

const details = { order: Schema.NonEmptyString, amount: Schema.Positive }

// Events.

class PaymentRequested extends Schema.TaggedClass<PaymentRequested>()("PaymentRequested", details) {}

export class PaymentReceived extends Schema.TaggedClass<PaymentReceived>()("PaymentReceived", {
  order: Schema.NonEmptyString
}) {}

class PaymentRefunded extends Schema.TaggedClass<PaymentRefunded>()("PaymentRefunded", {}) {}

// Commands.

export class RequestPayment extends Schema.TaggedClass<RequestPayment>()("RequestPayment", details) {}
export class ReceivePayment extends Schema.TaggedClass<ReceivePayment>()("ReceivePayment", {}) {}
export class RefundPayment extends Schema.TaggedClass<RefundPayment>()("RefundPayment", {}) {}

const Status = Schema.Literal("none", "requested", "received", "refunded")

/** The payment is not where it would have to be for that. */
export class WrongStatus extends Schema.TaggedError<WrongStatus>()("WrongStatus", {
  status: Status,
  expected: Status
}) {
  override get message(): string {
    return `the payment would have to be ${this.expected}, and is ${this.status}`
  }
}

const PaymentState = Schema.Struct({ status: Status, order: Schema.NullOr(Schema.String) })

export const Payment = Aggregate.make("Payment", {
  state: PaymentState,
  initialState: { status: "none", order: null },
  events: Schema.Union(PaymentRequested, PaymentReceived, PaymentRefunded),
  commands: Schema.Union(RequestPayment, ReceivePayment, RefundPayment),

  decide: {
    RequestPayment: ({ amount, order }, { state }) =>
      Effect.as(mustBe("none", state.status), [new PaymentRequested({ amount, order })]),
    ReceivePayment: (_, { state }) =>
      Effect.as(mustBe("requested", state.status), [new PaymentReceived({ order: state.order ?? "" })]),
    RefundPayment: (_, { state }) => Effect.as(mustBe("received", state.status), [new PaymentRefunded()])
  },

  evolve: {
    PaymentRequested: (_, { order }) => ({ status: "requested" as const, order }),
    PaymentReceived: (state) => ({ ...state, status: "received" as const }),
    PaymentRefunded: (state) => ({ ...state, status: "refunded" as const })
  }
})

/** The id of an order's payment. */
export const paymentOf = (order: string): string => `payment of ${order}`

// --- internal ---

const mustBe = (expected: typeof Status.Type, status: typeof Status.Type): Effect.Effect<void, WrongStatus> =>
  status === expected ? Effect.void : new WrongStatus({ status, expected })
