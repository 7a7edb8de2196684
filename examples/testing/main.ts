/**
 * Tests of a small shop, by `AggregateTest` and `TestStore`. They run on any test runner; here `test` prints the result.
 */
import assert from "node:assert/strict"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as AggregateTest from "effect-maestro/AggregateTest"
import * as TestStore from "effect-maestro/TestStore"
import {
  Added,
  Confirm,
  Levels,
  Order,
  OutOfStock,
  Place,
  Placed,
  Reject,
  Reserve,
  Reserved,
  reservation,
  Stock
} from "./Shop.js"

/** What a test runner does. */
const test = async (name: string, run: () => unknown): Promise<void> => {
  try {
    await run()
    console.log(`✓ ${name}`)
  } catch (error) {
    console.log(`✗ ${name}\n\n${error instanceof Error ? error.message : error}\n`)
  }
}

// Decisions.

await test("what is in stock can be reserved", () =>
  AggregateTest.of(Stock)
    .given(new Added({ count: 5 }))
    .when(new Reserve({ count: 3, order: "o-1" }))
    .thenEvents(new Reserved({ count: 3, order: "o-1" }))
    .thenState({ left: 2 }))

await test("more than that is refused", () =>
  AggregateTest.of(Stock)
    .given(new Added({ count: 5 }), new Reserved({ count: 3, order: "o-1" }))
    .when(new Reserve({ count: 3, order: "o-2" }))
    .thenFails(new OutOfStock({ left: 2 })))

await test("an order that was never placed can't be confirmed", () =>
  AggregateTest.of(Order).when(new Confirm()).thenNothing())

await test("a test that is wrong", () =>
  AggregateTest.of(Stock)
    .given(new Added({ count: 5 }))
    .when(new Reserve({ count: 3, order: "o-1" }))
    .thenEvents(new Reserved({ count: 5, order: "o-1" })))

// Projections.

await test("the table has what is left", () =>
  AggregateTest.of(Stock)
    .id("tea")
    .given(new Added({ count: 5 }), new Reserved({ count: 3, order: "o-1" }))
    .id("coffee")
    .given(new Added({ count: 7 }))
    .project(Levels)
    .thenRows("select product, available from levels order by product", [
      { product: "coffee", available: 7 },
      { product: "tea", available: 2 }
    ]))

// Process managers.

const placed = new Placed({ product: "tea", count: 3 })

await test("an order is confirmed when the stock is reserved", () =>
  AggregateTest.of(Stock)
    .id("tea")
    .given(new Added({ count: 5 }))
    .of(Order)
    .id("o-1")
    .on(placed)
    .handledBy(reservation, [Stock, Order])
    .thenCommands(Stock.command("tea", new Reserve({ count: 3, order: "o-1" })), Order.command("o-1", new Confirm())))

await test("an order of more than there is in stock is rejected", () =>
  AggregateTest.of(Order)
    .id("o-1")
    .on(placed)
    .handledBy(reservation, [Stock, Order])
    .thenCommands(
      Stock.command("tea", new Reserve({ count: 3, order: "o-1" })),
      Order.command("o-1", new Reject({ reason: "0 left" }))
    ))

// Stored events of older releases.

await test("events of the first release are read", () => {
  AggregateTest.stored(Stock, { type: "Added", body: { count: "5" } }).reads(new Added({ count: 5 }))
  AggregateTest.stored(Stock, { type: "Taken", body: { count: 3, order: "o-1" } }).reads(
    new Reserved({ count: 3, order: "o-1" })
  )
  AggregateTest.stored(Stock, { type: "Counted", body: {} }).readsNothing()
  AggregateTest.stored(Stock, { type: "Added", version: 3, body: {} }).isUnreadable("newer than this release")
})

await test("a state may follow from events of the first release", () =>
  AggregateTest.of(Stock)
    .givenStored({ type: "Added", body: { count: "5" } })
    .when(new Reserve({ count: 5, order: "o-1" }))
    .thenState({ left: 0 }))

// Random sequences of commands.

await test("no sequence of commands leads to a negative stock", () =>
  AggregateTest.sequences(Stock).keepInvariant(({ left }) => left >= 0))

await test("each state is restored by its events, and by a snapshot", () => {
  AggregateTest.sequences(Stock).replayToSameState()
  AggregateTest.sequences(Stock).restoreFromSnapshots()
})

await test("an invariant that does not hold", () =>
  AggregateTest.sequences(Stock, { seed: 1 }).keepInvariant(({ left }) => left <= 1000))

// Trouble of the store.

await test("an order is placed once, although the acknowledgement is lost", () =>
  Effect.gen(function* () {
    yield* TestStore.loseNextAcknowledgement
    const { sequence } = yield* Order.evaluate("o-1", new Place({ product: "tea", count: 3 }))
    assert.equal(sequence, 1)
    assert.equal(yield* TestStore.calls("commitAll"), 2)
  }).pipe(Effect.provide(Order.layer.pipe(Layer.provideMerge(TestStore.layer))), Effect.runPromise))

await test("a full database is a failure of the command", () =>
  Effect.gen(function* () {
    yield* TestStore.failNext("commitAll", "Exhausted")
    const failure = yield* Effect.flip(Order.evaluate("o-1", new Place({ product: "tea", count: 3 })))
    assert.equal(failure._tag, "StoreError")
  }).pipe(Effect.provide(Order.layer.pipe(Layer.provideMerge(TestStore.layer))), Effect.runPromise))
