/**
 * The payment of an order: an aggregate of its own, because a refund happens after the order has ended. It has the id of its order.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate } from "effect-maestro"

const details = { amount: Schema.Positive }

// Events.

class PaymentRequested extends Schema.TaggedClass<PaymentRequested>()("PaymentRequested", details) {}
class PaymentReceived extends Schema.TaggedClass<PaymentReceived>()("PaymentReceived", {}) {}
class PaymentRefunded extends Schema.TaggedClass<PaymentRefunded>()("PaymentRefunded", {}) {}

// Commands.

export class RequestPayment extends Schema.TaggedClass<RequestPayment>()("RequestPayment", details) {}
export class ReceivePayment extends Schema.TaggedClass<ReceivePayment>()("ReceivePayment", {}) {}
export class RefundPayment extends Schema.TaggedClass<RefundPayment>()("RefundPayment", {}) {}

const Status = Schema.Literal("none", "requested", "received", "refunded")

/** The payment has another status than the command needs. */
export class WrongStatus extends Schema.TaggedError<WrongStatus>()("WrongStatus", {
  status: Status,
  expected: Status
}) {
  override get message(): string {
    return `the payment must be ${this.expected}, and is ${this.status}`
  }
}

/** The provider does not accept payments of this amount. */
export class AmountTooHigh extends Schema.TaggedError<AmountTooHigh>()("AmountTooHigh", { limit: Schema.Number }) {
  override get message(): string {
    return `a payment has at most ${this.limit}`
  }
}

const PaymentState = Schema.Struct({ status: Status })

const limit = 10_000

export const Payment = Aggregate.make("Payment", {
  state: PaymentState,
  initialState: { status: "none" },
  events: Schema.Union(PaymentRequested, PaymentReceived, PaymentRefunded),
  commands: Schema.Union(RequestPayment, ReceivePayment, RefundPayment),

  decide: {
    RequestPayment: ({ amount }, { state }) =>
      amount > limit
        ? new AmountTooHigh({ limit })
        : Effect.as(mustBe("none", state.status), [new PaymentRequested({ amount })]),
    ReceivePayment: (_, { state }) => Effect.as(mustBe("requested", state.status), [new PaymentReceived()]),
    RefundPayment: (_, { state }) => Effect.as(mustBe("received", state.status), [new PaymentRefunded()])
  },

  evolve: {
    PaymentRequested: () => ({ status: "requested" }),
    PaymentReceived: () => ({ status: "received" }),
    PaymentRefunded: () => ({ status: "refunded" })
  }
})

// --- internal ---

const mustBe = (expected: typeof Status.Type, status: typeof Status.Type): Effect.Effect<void, WrongStatus> =>
  status === expected ? Effect.void : new WrongStatus({ status, expected })
