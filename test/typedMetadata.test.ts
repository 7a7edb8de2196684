/** Metadata by a schema: `Aggregate.metadata`. */
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Aggregate, EventFeed, MemoryStore, StoreError } from "effect-maestro"
import { expectTypeOf } from "vitest"
import { Do, type Done, firstOf, Leaf } from "./chain.js"

const UserId = Schema.String.pipe(Schema.pattern(/^u/), Schema.brand("UserId"))
const Audit = Aggregate.metadata(Schema.Struct({ userId: UserId, since: Schema.optional(Schema.Date) }))
const Tenant = Aggregate.metadata(Schema.Struct({ tenant: Schema.NumberFromString }))

const userId = UserId.make("u1")
const once = new Do({ times: 1 })

const onMemory = Leaf.layer.pipe(Layer.provideMerge(MemoryStore.layer))

const test = (name: string, run: () => Effect.Effect<void, unknown, Layer.Layer.Success<typeof onMemory>>) =>
  it.effect(name, () => Effect.provide(Effect.suspend(run), onMemory))

test("what is provided is stored encoded, and read back by its schema from the feed and from history", () =>
  Effect.gen(function* () {
    const since = new Date(0)
    yield* Leaf.evaluate("a", once).pipe(Audit.provide({ userId, since }))
    const event = yield* firstOf("Leaf/a")
    expect(event.metadata).toEqual({ userId: "u1", since: "1970-01-01T00:00:00.000Z" })
    expect(yield* Audit.of(event)).toEqual({ userId, since })
    const [historic] = yield* Stream.runCollect(Leaf.history("a"))
    expect(historic && (yield* Audit.of(historic))).toEqual({ userId, since })
    expectTypeOf(Audit.of(event)).toEqualTypeOf<
      Either.Either<{ readonly userId: typeof userId; readonly since?: Date | undefined }, StoreError.StoreError>
    >()
  }))

test("several schemas and untyped metadata stand beside each other, and the innermost wins", () =>
  Effect.gen(function* () {
    yield* Leaf.evaluate("a", once).pipe(
      Tenant.provide({ tenant: 7 }),
      Audit.provide({ userId }),
      Audit.provide({ userId: UserId.make("u2") }),
      Effect.provideService(Aggregate.Metadata, { why: "because" })
    )
    const event = yield* firstOf("Leaf/a")
    expect(event.metadata).toEqual({ why: "because", userId: "u1", tenant: "7" })
    expect([yield* Audit.of(event), yield* Tenant.of(event)]).toEqual([{ userId }, { tenant: 7 }])
    // It ends with the effect.
    yield* Leaf.evaluate("b", once)
    expect((yield* firstOf("Leaf/b")).metadata).toEqual({})
  }))

test("one value may be provided to many effects, and none sees a change of another", () =>
  Effect.gen(function* () {
    const audited = Audit.provide({ userId })
    yield* audited(Leaf.evaluate("a", once))
    Object.assign((yield* firstOf("Leaf/a")).metadata, { userId: "changed" })
    yield* audited(Leaf.evaluate("b", once))
    expect((yield* firstOf("Leaf/b")).metadata).toEqual({ userId: "u1" })
  }))

test("a value that the schema can't encode is a ValidationError with its path, and the effect does not run", () =>
  Effect.gen(function* () {
    let ran = false
    const run = Effect.sync(() => {
      ran = true
    })
    const bad = ["x", 7, undefined] as ReadonlyArray<unknown> as ReadonlyArray<typeof userId>
    for (const userId of bad) {
      const error = yield* Effect.flip(Audit.provide({ userId })(run))
      expect(error).toMatchObject({ operation: "Aggregate.metadata", issues: [{ path: ["metadata", "userId"] }] })
    }
    const Throwing = Aggregate.metadata(
      Schema.Struct({
        a: Schema.transform(Schema.String, Schema.String, {
          decode: (text) => text,
          encode: (): string => {
            throw new Error("no")
          }
        })
      })
    )
    expect((yield* Effect.flip(Throwing.provide({ a: "" })(run))).issues[0].path).toEqual(["metadata"])
    const List = Aggregate.metadata(Schema.Array(Schema.String))
    expect((yield* Effect.flip(List.provide(["a"])(run))).issues[0].path).toEqual(["metadata"])
    expect(ran).toBe(false)
  }))

test("what JSON can't hold is refused by evaluate, and so is an untyped value around it that is no object", () =>
  Effect.gen(function* () {
    const Any = Aggregate.metadata(Schema.Struct({ value: Schema.Unknown }))
    const evaluate = Leaf.evaluate("a", once)
    const error = yield* Effect.flip(evaluate.pipe(Any.provide({ value: new Map() })))
    expect(error).toBeInstanceOf(StoreError.ValidationError)
    const text = "text" as unknown as Record<string, unknown>
    const other = evaluate.pipe(Audit.provide({ userId }), Effect.provideService(Aggregate.Metadata, text))
    expect(yield* Effect.flip(other)).toMatchObject({ issues: [{ path: ["metadata"] }] })
    const throwing: Record<string, unknown> = {
      get tenant() {
        throw new Error("can't be read")
      }
    }
    const unread = evaluate.pipe(Audit.provide({ userId }), Effect.provideService(Aggregate.Metadata, throwing))
    expect(yield* Effect.flip(unread)).toMatchObject({ issues: [{ path: ["metadata"] }] })
    expect((yield* EventFeed.read()).events).toEqual([])
  }))

test("metadata of another form is an UnreadableEvent that names the event", () =>
  Effect.gen(function* () {
    yield* Leaf.evaluate("a", once)
    yield* Leaf.evaluate("a", once).pipe(Effect.provideService(Aggregate.Metadata, { userId: "x" }))
    const { events } = yield* EventFeed.read()
    for (const event of events) {
      expect(yield* Effect.flip(Audit.of(event))).toMatchObject({
        _tag: "StoreError",
        reason: "UnreadableEvent",
        operation: "Aggregate.metadata",
        aggregateId: "Leaf/a",
        sequence: event.sequence,
        type: "Done"
      })
    }
    expect(Either.isLeft(Audit.of({ metadata: {} }))).toBe(true)
  }))

it("only a schema whose encoded form is an object is metadata, and only its values can be provided", () => {
  // @ts-expect-error: a text is no object
  Aggregate.metadata(Schema.String)
  // @ts-expect-error: a plain text is no UserId
  Audit.provide({ userId: "u1" })
  expectTypeOf(Audit.provide({ userId })(Leaf.evaluate("a", once))).toEqualTypeOf<
    Effect.Effect<Aggregate.Evaluated<number, Done>, Aggregate.Failure, Aggregate.Instance<"Leaf">>
  >()
})
