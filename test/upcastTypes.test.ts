/** The types of histories: the compiler refuses what can't work, and names the type and the problem. */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate, Projection, Subscription, Upcast } from "effect-maestro"
import { expectTypeOf, it } from "vitest"
import type { Checked } from "../src/internal/codec/upcastTypes.js"
import { Account, Deposited, definition, Events, Today, V1, V2, Withdrawn } from "./releases.js"

const toV2 = Upcast.from(1, V1).pipe(Upcast.to(2, V2, (old) => ({ ...old, currency: "EUR" })))

/** What the compiler wants instead of a part of that type. */
type Wanted<K extends string, Part extends Upcast.History[string]> = Checked<
  typeof Today.Type,
  { readonly [P in K]: Part }
>[K]

it("a schema with a history has the type of the schema without it", () => {
  expectTypeOf(Events).toEqualTypeOf<Schema.Schema<typeof Today.Type, typeof Today.Encoded>>()
  const types = () => [
    Aggregate.make("Account", { ...definition, events: Events }),
    Projection.make({ name: "p", events: Events, project: { Deposited: () => Effect.void } }),
    Subscription.on(Account, { Withdrawn: ({ amount }) => Effect.succeed(amount.toFixed()) }),
    // @ts-expect-error the names of old types have no handlers
    Projection.make({ name: "p", events: Events, project: { PaidIn: () => Effect.void } })
  ]
  expectTypeOf(types).toBeFunction()
})

it("each step takes the shape before it, and must return the shape after it", () => {
  const types = () => [
    Upcast.from(1, V1).pipe(
      Upcast.to(2, V2, (old) => {
        expectTypeOf(old).toEqualTypeOf<typeof V1.Type>()
        return { ...old, currency: "EUR" }
      }),
      Upcast.toEvent(3, (old) => {
        expectTypeOf(old).toEqualTypeOf<typeof V2.Type>()
        return { ...old, by: "clerk" }
      }),
      Upcast.downcast(4, V1, (newer) => {
        expectTypeOf(newer).toEqualTypeOf<typeof V1.Type>()
        return { amount: newer.amount, currency: "EUR", by: "clerk" }
      })
    ),
    // @ts-expect-error the shape of version 2 has a currency
    Upcast.from(1, V1).pipe(Upcast.to(2, V2, (old) => old)),
    // @ts-expect-error the shape of version 2 has no field of that name
    Upcast.from(1, V1).pipe(Upcast.to(2, V2, (old) => ({ ...old, currency: "EUR", curency: "EUR" }))),
    // @ts-expect-error the shape of version 1 has no currency
    Upcast.from(1, V1).pipe(Upcast.toEvent(2, (old) => ({ ...old, by: old.currency }))),
    // @ts-expect-error a chain that has ended takes no further step
    toV2.pipe(Upcast.dropped),
    // @ts-expect-error a downcast comes after the version of today
    toV2.pipe(Upcast.downcast(3, V1, (newer) => newer)),
    toV2.pipe(
      Upcast.toEvent(() => new Withdrawn({ amount: 1 })),
      // @ts-expect-error a type that is written no more has no newer version
      Upcast.downcast(3, V1, (newer) => newer)
    ),
    // @ts-expect-error a split returns a list
    toV2.pipe(Upcast.toEvents(() => new Withdrawn({ amount: 1 })))
  ]
  expectTypeOf(types).toBeFunction()
})

it("the last step of a type of today returns an event of that type, or its fields", () => {
  const types = () => [
    Upcast.events(Today, { Deposited: toV2.pipe(Upcast.toEvent(3, (old) => ({ ...old, by: "clerk" }))) }),
    Upcast.events(Today, { Deposited: toV2.pipe(Upcast.toEvent(3, (old) => new Deposited({ ...old, by: "clerk" }))) }),
    // @ts-expect-error a field is missing
    Upcast.events(Today, { Deposited: toV2.pipe(Upcast.toEvent(3, (old) => old)) }),
    // @ts-expect-error a field has another type
    Upcast.events(Today, { Deposited: toV2.pipe(Upcast.toEvent(3, (old) => ({ ...old, by: "nobody" }))) }),
    // @ts-expect-error an event of another type
    Upcast.events(Today, { Deposited: toV2.pipe(Upcast.toEvent(3, () => new Withdrawn({ amount: 1 }))) }),
    // @ts-expect-error a downcast to an event of another type
    Upcast.events(Today, { Deposited: Upcast.since(1).pipe(Upcast.downcast(2, V1, (newer) => newer)) })
  ]
  expectTypeOf(types).toBeFunction()
})

it("a split, and the chain of a type that is written no more, return events of the union with their tags", () => {
  const types = () => [
    Upcast.events(Today, { Moved: toV2.pipe(Upcast.toEvent(({ amount }) => ({ _tag: "Withdrawn", amount }))) }),
    Upcast.events(Today, { Deposited: toV2.pipe(Upcast.toEvents(3, () => [new Withdrawn({ amount: 1 })])) }),
    // @ts-expect-error no tag
    Upcast.events(Today, { Moved: toV2.pipe(Upcast.toEvent(({ amount }) => ({ amount }))) }),
    // @ts-expect-error a tag that no event has
    Upcast.events(Today, { Moved: toV2.pipe(Upcast.toEvents(() => [{ _tag: "Withdrew", amount: 1 }])) }),
    // @ts-expect-error a part without a field of its event
    Upcast.events(Today, { Moved: toV2.pipe(Upcast.toEvents(() => [{ _tag: "Withdrawn" }])) }),
    // @ts-expect-error a part without a field of its event, of a type of today
    Upcast.events(Today, { Deposited: toV2.pipe(Upcast.toEvents(3, () => [{ _tag: "Withdrawn" }])) })
  ]
  expectTypeOf(types).toBeFunction()
})

it("parts of the wrong kind do not compile", () => {
  const types = () => [
    // @ts-expect-error a chain without an end
    Upcast.events(Today, { Deposited: toV2 }),
    // @ts-expect-error a chain without an end, of a type that is written no more
    Upcast.events(Today, { Moved: toV2 }),
    // @ts-expect-error a type of today without its version
    Upcast.events(Today, { Deposited: toV2.pipe(Upcast.toEvent(() => new Withdrawn({ amount: 1 }))) }),
    // @ts-expect-error a version of today of a type that is written no more
    Upcast.events(Today, { Moved: Upcast.since(2) }),
    // @ts-expect-error a type of today
    Upcast.events(Today, { Deposited: Upcast.dropped }),
    // @ts-expect-error a type of today
    Upcast.events(Today, { Deposited: Upcast.renamed("Withdrawn") }),
    // @ts-expect-error no event has that name
    Upcast.events(Today, { Moved: Upcast.renamed("Withdrew") }),
    // @ts-expect-error its own name
    Upcast.events(Today, { Moved: Upcast.renamed("Moved") }),
    Upcast.events(Today, { Moved: Upcast.renamed("Went"), Went: Upcast.renamed("Withdrawn") })
  ]
  expectTypeOf(types).toBeFunction()
})

it("the message of the compiler names the type and the problem", () => {
  expectTypeOf<
    Wanted<"Deposited", typeof toV2>
  >().toEqualTypeOf<"the chain of Deposited must end in toEvent or toEvents">()
  expectTypeOf<
    Wanted<"Deposited", Upcast.Dropped>
  >().toEqualTypeOf<"Deposited is the tag of an event, so it can't be dropped">()
  expectTypeOf<
    Wanted<"Deposited", Upcast.Renamed<"Withdrawn">>
  >().toEqualTypeOf<"Deposited is the tag of an event, so it can't be renamed">()
  expectTypeOf<
    Wanted<"Moved", Upcast.Renamed<"Withdrew">>
  >().toEqualTypeOf<"Moved is renamed to Withdrew, which is the tag of no event">()
  expectTypeOf<
    Wanted<"Moved", Upcast.Chain<never, never>>
  >().toEqualTypeOf<"Moved is the tag of no event, so its last step has no version of today">()
  expectTypeOf<
    Wanted<"Deposited", Upcast.Replaced<Withdrawn>>
  >().toEqualTypeOf<"the last step of Deposited must name the version of today, because Deposited is the tag of an event">()
})

it("a step that returns what is no field of the event is refused, and the text names it", () => {
  const typo = toV2.pipe(Upcast.toEvent(3, (old) => ({ ...old, by: "clerk", curency: "EUR" })))
  expectTypeOf<
    Wanted<"Deposited", typeof typo>
  >().toEqualTypeOf<"the last step of Deposited returns curency, which is no field of it">()
})

it("a literal of a step needs no `as const`", () => {
  const Level = Schema.Struct({ level: Schema.Literal("low", "high") })
  const chain = Upcast.from(1, V1).pipe(Upcast.to(2, Level, () => ({ level: "low" })))
  expectTypeOf(chain).toEqualTypeOf<Upcast.Steps<typeof Level.Type>>()
})
